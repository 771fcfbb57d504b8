"""Published recipes hold their authors' settings; controlled arms differ in the objective alone."""

import functools
import inspect
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from published import EXCEPTIONS, RECIPES, TASKS, show

from grpo_guard.backbone.flux import Flux
from grpo_guard.console import cli

FAMILIES = {"sd35": "sd35_{}", "flux_flow": "flux_{}_flow", "flux_dance": "flux_{}_dance"}
ARMS = [(recipe, task) for recipe in RECIPES for task in TASKS]
BASES = [base.format(task) for base in FAMILIES.values() for task in TASKS]
UNPUBLISHED = (
    "seed", "microbatch", "max_failed", "max_skipped", "asynchronous", "selftest", "resume",
    "keep_trajectory", "output", "strategy", "logger", "watch", "clipping.name", "reward",
    "data.path", "data.heldout", "data.heldout_share", "data.parse", "backbone.microbatch",
    "backbone.gradient_checkpointing", "backbone.compile", "backbone.prompt_cache", "backbone.init",
    "ema.on_cpu", "eval.prompts", "eval.pictures", "eval.microbatch", "eval.train_prompts",
    "eval.seed", "eval.resolution", "eval.kl", "eval.keep_gold", "eval.gold",
    "eval.alarm", "eval.stop_on_over_optimisation", "checkpoint.every", "checkpoint.keep",
    "checkpoint.best", "checkpoint.asynchronous", "checkpoint.push_to_hub",
)  # fmt: skip
"""Settings of this program that no paper states: where a run works, what it keeps and measures."""
NODES = ("", "data", "eval", "checkpoint")
"""Components that the tables do not name; a reward's are named by its task."""
DOCUMENT = Path(cli.ROOT) / "docs/recipes.md"
BACKBONES = Path(cli.CONF) / "backbone"


def composed(*overrides):
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        return compose("train", [*overrides, "output=x"])


def base_of(recipe, task):
    """Return the experiment to which a choice of `published` belongs, for a task."""
    return FAMILIES[recipe.rpartition("_")[0]].format(task)


@functools.cache
def arm(recipe, task):
    """Compose a recipe for a task, once."""
    return composed(f"experiment={base_of(recipe, task)}", f"published={recipe}")


def value_of(cfg, key):
    """Return a setting; of a component its class, of a setting that is left out its default."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if name not in node:
        return inspect.signature(get_object(node["_target_"])).parameters[name].default
    value = node[name]
    if isinstance(value, DictConfig):
        return value["_target_"].rpartition(".")[2]
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def leaves(node, prefix=""):
    """Yield the key of every setting of a configuration; that of a component for its class."""
    for name, value in node.items():
        key = f"{prefix}.{name}".lstrip(".")
        if isinstance(value, dict):
            yield from leaves(value, key)
        elif name == "_target_":
            yield prefix
        elif name != "_partial_":
            yield key


def rows_of(recipe, task):
    return RECIPES[recipe] | TASKS[task] | EXCEPTIONS.get((recipe, task), {})


@pytest.mark.parametrize(("recipe", "task"), ARMS)
def test_recipes_hold_the_published_settings(recipe, task):
    cfg = arm(recipe, task)
    wanted = {key: row.here for key, row in rows_of(recipe, task).items()}
    assert {key: value_of(cfg, key) for key in wanted} == wanted


@pytest.mark.parametrize(("recipe", "task"), ARMS)
def test_no_setting_of_a_recipe_is_left_unpinned(recipe, task):
    keys = set(leaves(OmegaConf.to_container(arm(recipe, task), resolve=True)))
    free = re.compile(rf"({'|'.join(map(re.escape, UNPUBLISHED))})(\.|$)")
    unpinned = {key for key in keys if key not in NODES and not free.match(key)}
    assert unpinned <= set(rows_of(recipe, task))


@pytest.mark.parametrize(("recipe", "task"), ARMS)
def test_every_recipe_is_built(recipe, task):
    exp = cli.build(arm(recipe, task))
    samples = 192 if recipe == "flux_dance_vanilla" else 1152
    assert exp.batch_sizes.samples == samples


@pytest.mark.parametrize("task", TASKS)
def test_dances_clip_range_is_what_it_sets_at_its_size(task):
    exp = cli.build(arm("flux_dance_vanilla", task))
    assert isinstance(exp.backbone, Flux)
    dimensions = (exp.backbone.resolution // 8) ** 2 * 16
    low, high = exp.clipping.limits(dimensions, exp.steps)
    assert high.expm1() == pytest.approx([1e-4] * 16)
    assert low.expm1() == pytest.approx([-1e-4] * 16)


@pytest.mark.parametrize("task", TASKS)
def test_a_choice_on_the_command_line_beats_the_recipes(task):
    cfg = composed(
        f"experiment=sd35_{task}", "published=sd35_vanilla", "kl=x", "kl.beta=1", "advantage=none"
    )
    assert value_of(cfg, "kl.distance") == "gaussian"
    assert (cfg.kl.beta, cfg.advantage.std) == (1, "none")


@pytest.mark.parametrize("path", sorted(Path(cli.CONF).glob("published/**/*.yaml")), ids=str)
def test_a_recipe_says_how_it_is_run(path):
    package, command, what, *_ = path.read_text(encoding="utf-8").splitlines()
    assert package == "# @package _global_"
    assert "scripts/train.py" in command
    experiment, published = re.search(r"experiment=(\w+) published=(\w+)$", command).groups()
    task = OmegaConf.select(composed(f"experiment={experiment}"), "reward.name")
    assert experiment == base_of(published, task)
    assert path.stem in (published, f"{published}_{task}")
    assert what.startswith("# ")


def documented(heading):
    """Return the rows below a heading of docs/recipes.md, by their settings."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = re.search(
        rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*?) \| (.*?) \|$", section[1], re.MULTILINE)
    return {key: cells for key, *cells in rows}


def as_documented(rows):
    return {key: [show(row.here), row.official, row.source] for key, row in rows.items()}


def heading_of(recipe):
    return f"`published={recipe}`"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_document_shows_every_setting(recipe):
    assert documented(heading_of(recipe)) == as_documented(RECIPES[recipe])


def summary_of(recipe):
    """Return the row of a recipe in the first table of its settings."""
    cfg = arm(recipe, "ocr")
    return [
        show(cfg.clipping.high),
        show(cfg.optim.lr),
        show(cfg.kl.beta) if "beta" in cfg.kl else "none",
        cfg.advantage.std,
        f"{cfg.data.prompts} x {cfg.data.repeats}",
        *map(show, (cfg.steps, cfg.updates, cfg.iterations, cfg.backbone.resolution)),
        "LoRA" if cfg.backbone.get("lora") else "all weights",
    ]


def test_the_document_begins_with_the_settings_that_matter_most():
    text = DOCUMENT.read_text(encoding="utf-8").partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` ((?:\| [^|]+ ){10})\|$", text, re.MULTILINE)
    cells = {recipe: row.strip("| ").split(" | ") for recipe, row in rows}
    assert cells == {recipe: summary_of(recipe) for recipe in RECIPES}


@pytest.mark.parametrize(("recipe", "task"), EXCEPTIONS)
def test_the_document_shows_the_exceptions(recipe, task):
    heading = f"{heading_of(recipe)} with `experiment={base_of(recipe, task)}`"
    assert documented(heading) == as_documented(EXCEPTIONS[recipe, task])


@pytest.mark.parametrize("task", TASKS)
def test_the_document_shows_every_reward(task):
    assert documented(f"Reward of `{task}`") == as_documented(TASKS[task])


@pytest.mark.parametrize("name", ["tiny_ab", *BASES])
def test_controlled_arms_differ_in_the_objective_alone(name):
    arms = [
        OmegaConf.to_container(composed(f"experiment={name}", f"clipping={c}"))
        for c in ("vanilla", "guard")
    ]
    assert arms[0].pop("clipping") != arms[1].pop("clipping")
    assert arms[0] == arms[1]
    assert arms[0]["kl"]["_target_"].endswith("NoKl")


@pytest.mark.parametrize("preset", ["fast", "gpu_24gb", "gpu_80gb", "[fast,gpu_24gb]"])
@pytest.mark.parametrize("name", ["sd35_ocr", "flux_ocr_flow"])
def test_presets_join_recipes(name, preset):
    cfg = composed(f"experiment={name}", f"preset={preset}")
    assert cli.build(cfg).batch_sizes.samples == 48 * 24


@pytest.mark.parametrize("backbone", sorted(f.stem for f in BACKBONES.glob("*.yaml")))
def test_the_fast_preset_leaves_out_classifier_free_guidance_alone(backbone):
    """The guidance of FLUX.1 is an input of the model, and stays."""
    configured = composed(f"backbone={backbone}").backbone
    is_embedded = get_object(configured["_target_"]) is Flux
    for preset in ("fast", "[fast,gpu_24gb]", "[gpu_24gb,fast]"):
        guidance = composed(f"backbone={backbone}", f"preset={preset}").backbone.guidance
        assert guidance == (configured.guidance if is_embedded else 1)


def test_a_guidance_of_ones_own_outdoes_the_fast_preset():
    assert (
        composed("experiment=sd35_ocr", "preset=fast", "backbone.guidance=2").backbone.guidance == 2
    )


@pytest.mark.parametrize("preset", ["gpu_24gb", "gpu_80gb", "gpu_80gb_sd35"])
def test_presets_join_published_arms(preset):
    cfg = composed("experiment=sd35_ocr", "published=sd35_guard", f"preset={preset}")
    assert cli.build(cfg).clipping.high == 2e-6
