"""The parts of mutate.py."""
