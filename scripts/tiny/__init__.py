"""Trains the embedded checkpoints and scorers."""
