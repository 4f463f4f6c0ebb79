"""rlzero: DeepSeek-R1, reproduced in JAX."""

__version__ = '0.2.0'
