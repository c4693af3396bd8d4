"""Data generation and training of world models."""
