"""Training: recipes, the one loop, checkpoints, pre-training."""
