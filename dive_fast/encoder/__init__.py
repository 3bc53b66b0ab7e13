"""The identity encoder: photos of a person to the learned words that stand for them, in one pass."""
