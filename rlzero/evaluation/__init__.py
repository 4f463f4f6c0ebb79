"""What `rlzero.evaluate` is made of: suites, samples, comparisons."""
