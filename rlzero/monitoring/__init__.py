"""Alerts: looks at the metrics of a run while it goes on; no JAX here."""
