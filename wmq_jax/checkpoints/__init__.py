"""Checkpoints: our own, and name maps from the official ones."""
