"""Training of the pocket base model on the pocket world."""
