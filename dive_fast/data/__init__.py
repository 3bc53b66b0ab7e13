"""Readers of person re-identification sets, prepared sets, and writers of the layouts that trainers read."""
