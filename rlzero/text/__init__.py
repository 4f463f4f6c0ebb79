"""Text: files of it, tokens and templates; no JAX."""
