"""Pipelines: stages as processes, their manifest, their results."""
