"""Distillation: a fused model's guided images in a few steps without guidance."""
