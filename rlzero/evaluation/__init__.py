"""Evaluation: suites, samples, statistics, comparisons."""
