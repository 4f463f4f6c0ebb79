"""Alerts: looks at the metrics of a run while it trains; no JAX here."""
