"""The work of a step by formula, and the rates of devices."""
