"""Tasks: problems with answers that a program can check."""
