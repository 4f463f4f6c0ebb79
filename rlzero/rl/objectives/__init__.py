"""The choices that make up an objective, a file each.

Every choice is a pure function beside its equation and its source; the tables
name those that `rl/objective.py` lets a config select. `rl/losses.py` puts
them together.
"""
