"""Scores of completions: verifiers in workers, rewards, reward models."""
