"""A run folder is claimed by one process; a refused run leaves it as it was."""

import json

import pytest
import yaml
from composing import compose_run
from omegaconf import OmegaConf

from grpo_guard.console import cli
from grpo_guard.console.claim import check_before_claim, claim
from grpo_guard.lifecycle.lock import LOCK
from grpo_guard.reward.remote import Remote
from grpo_guard.schema import ConfigError

LINE = '{"iteration": 0}\n'


@pytest.fixture(scope="module")
def cfg():
    return compose_run("output=unused", "logger=none", "strategy.threads=1")


@pytest.fixture(scope="module")
def experiment(cfg):
    return cli.build(cfg)


@pytest.fixture
def open_claim(cfg, experiment, tmp_path):
    """Return a function that claims a folder below the test's, with some settings changed."""
    import dataclasses

    def open_claim(folder="a/run", **changes):
        changes = {"output": str(tmp_path / folder)} | changes
        changed = OmegaConf.merge(cfg, changes)
        return claim(dataclasses.replace(experiment, **changes), changed)

    return open_claim


def refuse(*_):
    raise ConfigError("urls=http://a cannot be reached")


def die(*_):
    raise KeyboardInterrupt


def test_a_run_holds_its_folder(open_claim, tmp_path):
    folder = tmp_path / "a" / "run"
    with open_claim():
        assert {path.name for path in folder.iterdir()} == {LOCK, "config.yaml"}
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["output"] == str(folder)


def test_a_second_run_is_refused_while_the_first_goes_on(open_claim):
    with (
        open_claim(),
        pytest.raises(ConfigError, match="is being written by process"),
        open_claim(),
    ):
        pass


def test_a_refused_run_leaves_nothing(open_claim, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="cannot be reached"), open_claim():
        refuse()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert not list((tmp_path / "a").iterdir())
    with pytest.raises(ConfigError, match="cannot be reached"), open_claim("b/c/run"):
        refuse()
    assert not (tmp_path / "b").exists()


def test_a_refusal_while_resuming_leaves_the_run(open_claim, tmp_path):
    with open_claim():
        (tmp_path / "a/run/metrics.jsonl").write_text(LINE)
    with pytest.raises(ConfigError, match="cannot be reached"), open_claim():
        refuse()
    assert {path.name for path in (tmp_path / "a/run").iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
    }


@pytest.mark.parametrize("changes", [{}, {"seed": 7}, {"resume": "never"}], ids=str)
def test_a_folder_without_results_is_used_again(open_claim, tmp_path, changes):
    """Whatever config.yaml holds: the process may have been killed while it wrote it."""
    with pytest.raises(KeyboardInterrupt), open_claim():
        die()
    file = tmp_path / "a/run/config.yaml"
    assert file.exists()
    with open_claim(**changes):
        assert yaml.safe_load(file.read_text())["seed"] == changes.get("seed", 0)
    file.write_text("_target")
    with open_claim(**changes):
        pass
    (tmp_path / "a/run/metrics.jsonl").write_text("")  # a server was down before an iteration
    with open_claim(**changes):
        pass


@pytest.mark.parametrize(
    "result", ["metrics.jsonl", "state/000001/seal.json", "checkpoints/best/README.md"]
)
def test_a_folder_with_results_is_kept_for_its_run(open_claim, tmp_path, result):
    with open_claim():
        file = tmp_path / "a/run" / result
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(LINE)
    with open_claim():
        pass
    with pytest.raises(ConfigError, match=r"holds a run with other settings \(seed\)"):
        open_claim(seed=7).__enter__()
    with pytest.raises(ConfigError, match="already holds one"):
        open_claim(resume="never").__enter__()


def compose_servers(**changes):
    """Return an experiment whose reward and one gold are on a server that is down."""
    settings = [f"{key}={value}" for key, value in changes.items()]
    settings += [
        f"{key}.{name}={value}"
        for key in ("reward", "eval.gold.far")
        for name, value in {"urls": "[http://127.0.0.1:9]", "retries": 0}.items()
    ]
    remote = ["reward=remote", "+reward@eval.gold.far=remote"]
    return cli.build(compose_run("output=unused", "logger=none", *remote, *settings))


@pytest.mark.parametrize("key", ["reward.token", "eval.gold.far.token"])
def test_tokens_must_be_there_before_a_folder_is_claimed(key, monkeypatch):
    monkeypatch.delenv("sekret4f9a", raising=False)
    with pytest.raises(ConfigError, match=rf"^{key} is the name of an environment") as refusal:
        check_before_claim(compose_servers(**{key: "sekret4f9a"}))
    assert "sekret" not in str(refusal.value)


def test_servers_must_answer_before_a_folder_is_claimed(monkeypatch):
    monkeypatch.setenv("HERE", "s3cret")
    with pytest.raises(ConfigError, match=r"^reward\.urls=http://127.0.0.1:9/health cannot be rea"):
        check_before_claim(compose_servers(**{"reward.token": "HERE"}))
    monkeypatch.setattr(Remote, "check_servers", lambda self: None)
    check_before_claim(compose_servers(**{"reward.token": "HERE"}))


def test_a_state_that_is_none_is_refused_before_a_folder_is_claimed(experiment, tmp_path):
    import dataclasses

    state = tmp_path / "run/state/000001"
    for resume in (state, tmp_path / "run", "x" * 5000):
        with pytest.raises(ConfigError, match=r"^resume=\S+ is not a state of a run; give RUN/st"):
            check_before_claim(dataclasses.replace(experiment, resume=str(resume)))
    state.mkdir(parents=True)
    (state / "seal.json").write_text(json.dumps({}))
    check_before_claim(dataclasses.replace(experiment, resume=str(state)))
