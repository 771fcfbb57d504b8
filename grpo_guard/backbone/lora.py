"""Low-rank adapters."""

from __future__ import annotations

from diffusers import ModelMixin
from peft import LoraConfig

from grpo_guard.types import component, require


@component
class Lora:
    """Adapters of a rank on the modules whose names end in one of `targets`, scaled by alpha / rank."""

    rank: int
    alpha: float
    targets: list[str]
    init: str | bool = "gaussian"

    def __post_init__(self) -> None:
        require(self.rank > 0, f"rank={self.rank} is not positive; 32 is usual")

    def attach(self, transformer: ModelMixin) -> None:
        """Add trainable adapters to a frozen transformer."""
        names = [name for name, _ in transformer.named_modules()]
        missing = [t for t in self.targets if not any(n == t or n.endswith(f".{t}") for n in names)]
        require(
            not missing,
            f"targets={missing} match no module of {type(transformer).__name__}; see its named_modules()",
        )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=self.targets,
            init_lora_weights=self.init,
        )
        transformer.add_adapter(config)
