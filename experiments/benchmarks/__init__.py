"""The sections of experiments/bench.py."""
