"""The life of a run: batches, scoring, states and checkpoints, stopping, model cards."""
