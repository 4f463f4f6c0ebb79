"""Programs that measure: no stage, no test; each prints JSON."""
