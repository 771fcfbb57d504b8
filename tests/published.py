"""What every published recipe must set, what its authors set, and where that stands.

`docs/recipes.md` shows the same tables: python tests/published.py prints them. GRPO-Guard's files
are read in a fork with the authors' history. `same` marks what is no different here.
"""

import dataclasses

GRPO = "yifan123/flow_grpo config/grpo.py@31c71b9"
BASE = "yifan123/flow_grpo config/base.py@54809b5"
TRAIN_SD3 = "yifan123/flow_grpo scripts/train_sd3.py@74db691"
TRAIN_FLUX = "yifan123/flow_grpo scripts/train_flux.py@74db691"
STEP = "yifan123/flow_grpo flow_grpo/diffusers_patch/sd3_sde_with_logprob.py@54809b5"
STATS = "yifan123/flow_grpo flow_grpo/stat_tracking.py@94e23ee"
EMA = "rzxmax/flow_grpo flow_grpo/ema.py@a487b5f"
PICKSCORE = "zhtmike/flow_grpo flow_grpo/pickscore_scorer.py@5a1150c"
OCR = "zhtmike/flow_grpo flow_grpo/ocr.py@def7b84"
GUARD = "zhtmike/flow_grpo config/grpo_guard.py@2e2f712"
TRAIN_GUARD = "zhtmike/flow_grpo scripts/train_sd3_GRPO_Guard.py@2e2f712"
DANCE = "XueZeyue/DanceGRPO scripts/finetune/finetune_flux_grpo.sh@22b85ef"
TRAIN_DANCE = "XueZeyue/DanceGRPO fastvideo/train_grpo_flux.py@22b85ef"
EMBED_DANCE = "vjayam07/DanceGRPO fastvideo/data_preprocess/preprocess_flux_embedding.py@42013f0"
PAPER = "arXiv 2510.22319 (its text was not checked again)"


@dataclasses.dataclass(frozen=True)
class Row:
    """One setting: its value here, the file that states the authors' value, and that value."""

    here: object
    source: str
    official: str = "same"


def restate(rows: dict[str, Row], places: dict[str, str]) -> dict[str, Row]:
    """Return rows whose values stand in other files as well: in those that `places` maps to."""
    return {
        key: dataclasses.replace(row, source=places.get(row.source, row.source))
        for key, row in rows.items()
    }


ATTENTION = [
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
]  # fmt: skip
FLUX_MLPS = ["ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"]

FLOW_GRPO = {
    "updates": Row(2, GRPO),
    "steps_per_sample": Row(None, GRPO, "timestep_fraction .99: all steps but the last"),
    "sde.window": Row("Window", GRPO, "all steps but the last are trained"),
    "sde.window.first": Row(0, GRPO),
    "sde.window.last": Row(None, GRPO),
    "final_steps": Row("Euler", STEP),
    "data.prompts": Row(48, GRPO),
    "data.repeats": Row(24, GRPO),
    "backbone.resolution": Row(512, GRPO),
    "advantage": Row("Group", STATS),
    "advantage.aggregate": Row("weighted_sum", STATS),
    "advantage.clamp": Row(5.0, BASE),
    "clipping": Row("Clip", TRAIN_SD3),
    "clipping.adaptation": Row("Fixed", TRAIN_SD3),
    "ema": Row("Average", EMA),
    "ema.decay": Row(0.9, TRAIN_SD3),
    "ema.every": Row(8, TRAIN_SD3),
    "optim": Row("AdamW", TRAIN_SD3),
    "optim.betas": Row([0.9, 0.999], BASE),
    "optim.eps": Row(1e-8, BASE),
    "optim.weight_decay": Row(1e-4, BASE),
    "max_grad_norm": Row(1.0, BASE),
    "iterations": Row(1000, GRPO, "no end: stopped by hand"),
}
SD35 = FLOW_GRPO | {
    "steps": Row(10, GRPO),
    "sde": Row("Flow", STEP),
    "sde.level": Row(0.7, BASE),
    "old_policy": Row("RolloutOldPolicy", TRAIN_SD3),
    "backbone": Row("SD3", TRAIN_SD3),
    "backbone.model": Row("stabilityai/stable-diffusion-3.5-medium", GRPO),
    "backbone.guidance": Row(4.5, GRPO),
    "backbone.t5_tokens": Row(128, TRAIN_SD3),
    "backbone.dtype": Row("float16", BASE, "float16; frozen weights in float32"),
    "backbone.vae_dtype": Row("float32", TRAIN_SD3),
    "backbone.text_dtype": Row("float16", TRAIN_SD3),
    "backbone.lora": Row("Lora", TRAIN_SD3),
    "backbone.lora.rank": Row(32, TRAIN_SD3),
    "backbone.lora.alpha": Row(64, TRAIN_SD3),
    "backbone.lora.init": Row("gaussian", TRAIN_SD3),
    "backbone.lora.targets": Row(ATTENTION, TRAIN_SD3),
    "eval.steps": Row(40, GRPO),
}
SD35_VANILLA = SD35 | {
    "clipping.ratio": Row("log_ratio_raw", TRAIN_SD3),
    "clipping.weight": Row("uniform", TRAIN_SD3),
    "clipping.high": Row(1e-4, BASE),
    "clipping.low": Row(1e-4, BASE),
    "kl": Row("Penalty", TRAIN_SD3),
    "kl.distance": Row("flow_grpo", TRAIN_SD3),
    "kl.beta": Row(0.04, GRPO),
    "advantage.std": Row("global", GRPO),
    "optim.lr": Row(3e-4, BASE),
    "eval.every": Row(60, GRPO),
    "checkpoint.export_every": Row(60, GRPO),
}
SD35_GUARD = restate(SD35, {GRPO: GUARD, TRAIN_SD3: TRAIN_GUARD}) | {
    "clipping.ratio": Row("log_ratio_norm", TRAIN_GUARD, "the same; bias of a whole microbatch"),
    "clipping.weight": Row("inverse_dt", TRAIN_GUARD),
    "clipping.high": Row(2e-6, GUARD),
    "clipping.low": Row(2e-6, GUARD),
    "kl": Row("NoKl", GUARD),
    "advantage.std": Row("group", GUARD),
    "optim.lr": Row(1e-4, GUARD),
    "eval.every": Row(30, GUARD),
    "checkpoint.export_every": Row(30, GUARD),
}
FLUX = restate(FLOW_GRPO, {TRAIN_SD3: TRAIN_FLUX}) | {
    "steps": Row(6, GRPO),
    "sde": Row("Flow", STEP),
    "sde.level": Row(0.9, GRPO),
    "old_policy": Row("RolloutOldPolicy", TRAIN_FLUX),
    "backbone": Row("Flux", TRAIN_FLUX),
    "backbone.model": Row("black-forest-labs/FLUX.1-dev", GRPO),
    "backbone.guidance": Row(3.5, GRPO),
    "backbone.t5_tokens": Row(128, TRAIN_FLUX),
    "backbone.dtype": Row("bfloat16", GRPO, "bfloat16; frozen weights in float32"),
    "backbone.vae_dtype": Row("float32", TRAIN_FLUX),
    "backbone.text_dtype": Row("bfloat16", TRAIN_FLUX),
    "backbone.lora": Row("Lora", TRAIN_FLUX),
    "backbone.lora.rank": Row(64, TRAIN_FLUX),
    "backbone.lora.alpha": Row(128, TRAIN_FLUX),
    "backbone.lora.init": Row("gaussian", TRAIN_FLUX),
    "backbone.lora.targets": Row(ATTENTION + FLUX_MLPS, TRAIN_FLUX),
    "kl": Row("NoKl", GRPO),
    "advantage.std": Row("global", GRPO),
    "eval.steps": Row(28, GRPO),
    "eval.every": Row(30, GRPO),
    "checkpoint.export_every": Row(30, GRPO),
}
FLUX_VANILLA = FLUX | {
    "clipping.ratio": Row("log_ratio_raw", TRAIN_FLUX),
    "clipping.weight": Row("uniform", TRAIN_FLUX),
    "clipping.high": Row(1e-4, BASE),
    "clipping.low": Row(1e-4, BASE),
    "optim.lr": Row(3e-4, BASE),
}
FLUX_GUARD = FLUX | {
    "steps": Row(6, PAPER),
    "sde.level": Row(0.9, PAPER),
    "clipping.ratio": Row("log_ratio_norm", PAPER),
    "clipping.weight": Row("inverse_dt", PAPER),
    "clipping.high": Row(2e-6, PAPER),
    "clipping.low": Row(2e-6, PAPER),
    "kl": Row("NoKl", PAPER),
    "advantage.std": Row("global", PAPER),
    "optim.lr": Row(2e-4, PAPER),
    "backbone.lora.rank": Row(32, PAPER),
    "backbone.lora.alpha": Row(64, PAPER),
}
DANCE_GUARD = FLUX_GUARD | {
    "sde": Row("Dance", PAPER),
    "sde.level": Row(0.3, PAPER),
    "clipping.weight": Row("beta_over_dt", PAPER),
}
DANCE_VANILLA = {
    "iterations": Row(300, DANCE),
    "steps": Row(16, DANCE),
    "updates": Row(3, DANCE, "12 samples per GPU, a step after every 4"),
    "steps_per_sample": Row(9, DANCE, "timestep_fraction .6 of 15 steps: 9"),
    "sde": Row("Dance", TRAIN_DANCE),
    "sde.level": Row(0.3, DANCE),
    "sde.window": Row("Window", DANCE, "all steps but the last may be trained"),
    "sde.window.first": Row(0, TRAIN_DANCE),
    "sde.window.last": Row(None, TRAIN_DANCE),
    "final_steps": Row("Euler", TRAIN_DANCE),
    "old_policy": Row("RolloutOldPolicy", TRAIN_DANCE),
    "data.prompts": Row(16, DANCE, "one prompt on each of 16 GPUs"),
    "data.repeats": Row(12, DANCE),
    "backbone": Row("Flux", TRAIN_DANCE),
    "backbone.model": Row("black-forest-labs/FLUX.1-dev", DANCE),
    "backbone.resolution": Row(720, DANCE),
    "backbone.guidance": Row(3.5, TRAIN_DANCE),
    "backbone.t5_tokens": Row(512, EMBED_DANCE, "diffusers' default: 512"),
    "backbone.dtype": Row("bfloat16", TRAIN_DANCE),
    "backbone.vae_dtype": Row("bfloat16", TRAIN_DANCE),
    "backbone.text_dtype": Row("bfloat16", EMBED_DANCE),
    "backbone.lora": Row(None, TRAIN_DANCE, "whole transformer"),
    "advantage": Row("Group", TRAIN_DANCE),
    "advantage.std": Row("group", TRAIN_DANCE, "group, of n - 1 degrees of freedom; + 1e-8"),
    "advantage.aggregate": Row("weighted_sum", TRAIN_DANCE),
    "advantage.clamp": Row(5.0, DANCE),
    "clipping": Row("Clip", TRAIN_DANCE),
    "clipping.ratio": Row("log_ratio_raw", TRAIN_DANCE),
    "clipping.weight": Row("uniform", TRAIN_DANCE),
    "clipping.adaptation": Row("Fixed", TRAIN_DANCE),
    "clipping.high": Row(1.40625e-4, DANCE, "1e-4, which this is after scaling to 720 px"),
    "clipping.low": Row(1.40625e-4, DANCE, "1e-4, which this is after scaling to 720 px"),
    "kl": Row("NoKl", TRAIN_DANCE),
    "ema": Row("NoEma", DANCE, "none (--use_ema is off)"),
    "optim": Row("AdamW", TRAIN_DANCE),
    "optim.lr": Row(1e-5, DANCE),
    "optim.betas": Row([0.9, 0.999], TRAIN_DANCE),
    "optim.eps": Row(1e-8, TRAIN_DANCE),
    "optim.weight_decay": Row(1e-4, DANCE),
    "max_grad_norm": Row(1.0, DANCE),
    "eval.steps": Row(28, TRAIN_DANCE, "no evaluation"),
    "eval.every": Row(40, TRAIN_DANCE, "no evaluation"),
    "checkpoint.export_every": Row(40, DANCE),
}
RECIPES = {
    "sd35_vanilla": SD35_VANILLA,
    "sd35_guard": SD35_GUARD,
    "flux_flow_vanilla": FLUX_VANILLA,
    "flux_flow_guard": FLUX_GUARD,
    "flux_dance_vanilla": DANCE_VANILLA,
    "flux_dance_guard": DANCE_GUARD,
}
"""The rows of each choice of `published`."""

EXCEPTIONS = {
    ("sd35_vanilla", "pickscore"): {"kl.beta": Row(0.01, GRPO)},
    ("sd35_guard", "pickscore"): {
        "clipping.high": Row(4e-6, GUARD),
        "clipping.low": Row(4e-6, GUARD),
    },
}
"""What a choice sets otherwise for one task."""

TASKS = {
    "pickscore": {
        "reward": Row("ClipReward", PICKSCORE),
        "reward.model": Row("yuvalkirstain/PickScore_v1", PICKSCORE),
        "reward.scale": Row(26.0, PICKSCORE),
        "reward.dtype": Row("float32", PICKSCORE),
    },
    "ocr": {
        "reward": Row("OCR", OCR, "PaddleOCR 2.9.1"),
        "reward.match": Row("substring", OCR),
        "reward.confidence": Row(0.5, OCR, "above 0; PaddleOCR itself drops lines below 0.5"),
    },
    "geneval": {
        "reward": Row("GenEval", GRPO, "a server with Mask2Former and CLIP"),
        "reward.measure": Row("graded", GRPO, "its graded score"),
    },
}
"""The reward of each task, which all its recipes share."""


def show(value: object) -> str:
    """Return a value as the tables show it."""
    if isinstance(value, list):
        return ", ".join(f"{item:g}" if isinstance(item, float) else item for item in value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(rows: dict[str, Row]) -> list[str]:
    """Return the lines of a table."""
    return ["| setting | here | official | source |", "|---|---|---|---|"] + [
        f"| `{key}` | {show(row.here)} | {row.official} | {row.source} |"
        for key, row in sorted(rows.items())
    ]


if __name__ == "__main__":
    for name, rows in {**RECIPES, **TASKS}.items():
        print("\n".join([f"## {name}", "", *table(rows), ""]))
