"""Fine-tune flow-matching text-to-image models by reinforcement learning."""

__version__ = "0.2.0"
"""The version of the package; pyproject.toml reads it from here."""
