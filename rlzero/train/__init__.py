"""Training: packing, optimisers, checkpoints, the supervised loop."""
