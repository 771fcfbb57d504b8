"""Low-rank adapters (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Annotated, Literal

from diffusers import ModelMixin
from peft import LoraConfig

from grpo_guard.schema import NOT_EMPTY, Advice, AtMost, Positive, PositiveInt, component, require


@component
class Lora:
    """Train low-rank adapters on frozen linear layers: W x + (alpha / rank) B A x."""

    rank: Annotated[PositiveInt, AtMost(65_536), Advice("32 is usual")]
    """Rank of every adapter: the rows of A and the columns of B. 32 and 64 are usual."""
    alpha: Annotated[Positive, Advice("twice the rank is usual")]
    """Scale of the adapters, divided by `rank`; positive, twice the rank is usual."""
    targets: Annotated[list[str], NOT_EMPTY]
    """Layers that get an adapter, by the ends of their names in the transformer.

    attn.to_q is the query projection of the image tokens in every attention block.
    """
    init: Literal["gaussian", True] = "gaussian"
    """How peft initialises A; B always begins at zero, so that training begins at the base model.

    gaussian: normal with a standard deviation of 1 / rank. true: Kaiming-uniform.
    """

    def attach(self, transformer: ModelMixin) -> None:
        """Add trainable adapters to a frozen transformer.

        Raises ConfigError if a target matches no module.
        """
        names = [name for name, _ in transformer.named_modules()]
        missing = [t for t in self.targets if not any(n == t or n.endswith(f".{t}") for n in names)]
        require(
            not missing,
            f"targets={missing} match no module of {type(transformer).__name__};"
            " see its named_modules()",
        )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=self.targets,
            init_lora_weights=self.init,
        )
        transformer.add_adapter(config)
