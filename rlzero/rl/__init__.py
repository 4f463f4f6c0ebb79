"""The algorithm: a GRPO step, its losses, its training loop."""
