"""Processes of a run and learners: what the strategies are made of."""
