"""What goes back on a command line means the same there, whatever is in it."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, strategies
from omegaconf import OmegaConf

from grpo_guard.console.overrides import check_options, hide_secret, quote, quote_override
from grpo_guard.schema import ConfigError

PATHS = [
    "runs/noise_level/clipping=guard_sde.level=0.3",
    "runs/a,b",
    "runs/[a]/{b}",
    "runs/my run",
    'runs/it\'s "so"',
    "runs/back\\slash\\",
    "runs/back\\'slash",
    "runs/(1)#2;3!é&~",
]


def read(override):
    """Return the value of an override as a run gets it."""
    parsed = OverridesParser.create().parse_override(override)
    assert not parsed.is_sweep_override()
    cfg = OmegaConf.create({"seed": 7})
    OmegaConf.update(cfg, "output", parsed.value())
    return cfg.output


@pytest.mark.parametrize("path", [*PATHS, "runs/${seed}", "null", "1", "true", " a ", "[a]"])
def test_a_quoted_value_is_exactly_this_text(path):
    assert read(f"output={quote(path)}") == path


@given(strategies.text(strategies.characters(exclude_characters="\0$", codec="utf-8"), min_size=1))
def test_any_text_can_be_quoted(text):
    assert read(f"output={quote(text)}") == text


@pytest.mark.parametrize("path", PATHS)
def test_a_user_need_not_quote_a_path(path):
    assert read(quote_override(f"output={path}")) == path


@pytest.mark.parametrize("path", ["state=1", "state,1", "[state]/1", "a state"])
def test_a_path_that_exists_is_no_sweep(path, tmp_path):
    (tmp_path / path).mkdir(parents=True)
    assert read(quote_override(f"resume={tmp_path}/{path}")) == f"{tmp_path}/{path}"


@pytest.mark.parametrize(
    "word",
    [
        "clipping=vanilla,guard",
        "+sweeps=noise_level",
        "~kl",
        "-m",
        "--cfg",
        "seed=1",
        "output='a b'",
        "output=null",
        "output=runs/${seed}",
        "eval.gold={}",
        "reward.urls=[http://a:8000,http://b:8000]",
        "optim.lr=interval(1e-5,1e-3)",
    ],
)
def test_what_the_grammar_reads_stays(word):
    assert quote_override(word) == word


def test_a_reference_in_a_path_is_resolved():
    assert read(quote_override("output=runs/seed=${seed}")) == "runs/seed=7"


def test_a_shell_and_the_grammar_read_a_path_again():
    for path in PATHS:
        (word,) = shlex.split(shlex.quote(f"output={path}"))
        assert read(quote_override(word)) == path


@pytest.mark.parametrize("words", [["--nothing"], ["--cfg=nothing"], ["--package"]])
def test_an_option_that_hydra_lacks_is_refused_in_a_line(words, capsys):
    with pytest.raises(ConfigError, match=r"^[^\n]+; --help lists the options$"):
        check_options(words)
    check_options(["-m", "--cfg", "job", "seed=1", "~kl"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("override", "printed"),
    [
        ("reward.token=s3 cret", "reward.token=..."),
        ("reward.urls=[http://me:s3cret@host:1/v1]", "reward.urls=[http://...@host:1/v1]"),
        ("backbone.model=https://s3@cret@host/a", "backbone.model=https://...@host/a"),
        ("seed=1", "seed=1"),
        ("reward.max_tokens=5", "reward.max_tokens=5"),
    ],
)
def test_secrets_are_not_printed(override, printed):
    assert hide_secret(override) == printed
