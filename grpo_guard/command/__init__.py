"""One module for each command: what scripts/ and the command `grpo-guard` run."""
