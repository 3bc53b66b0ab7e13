"""ReID training: configuration, recipes, losses, the training loop, checkpoints."""
