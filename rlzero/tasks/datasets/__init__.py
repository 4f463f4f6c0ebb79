"""Stored problems: the only place that loads TFDS and grain."""
