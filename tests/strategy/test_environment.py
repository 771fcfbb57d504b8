"""What a launcher leaves in the environment is checked before processes meet."""

import pytest
import torch

from grpo_guard.console.errors import explain_mistake
from grpo_guard.parallel.launched import check_environment, world_size
from grpo_guard.schema import ConfigError, RunError
from grpo_guard.strategy.ddp import Ddp
from grpo_guard.strategy.single import Single

WHOLE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets these variables, and none of the others."""

    def apply(**variables):
        for name in WHOLE:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return apply


@pytest.mark.parametrize("text", ["", "two", "0", "-1", "1.5"])
def test_a_number_of_processes_that_is_none(environment, text):
    environment(WORLD_SIZE=text)
    message = f"^WORLD_SIZE={text} in the environment is not a number from 1 on; start"
    for use in (
        world_size,
        lambda: Ddp(processes=2, timeout=1.0, threads=None),
        Single(device="cpu", threads=None).start,
    ):
        with pytest.raises(ConfigError, match=message):
            use()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": ""}, "^MASTER_ADDR must be in the environment of each process; start"),
        ({"MASTER_ADDR": "", "RANK": ""}, "^RANK, MASTER_ADDR must be in the environment"),
        ({"MASTER_PORT": "http"}, "^MASTER_PORT=http in the environment is not a number from 1 "),
        ({"RANK": "one"}, "^RANK=one in the environment is not a number from 0 on; start"),
        ({"RANK": "2"}, "^RANK=2 is not below WORLD_SIZE=2 in the environment; start"),
    ],
)
def test_an_environment_in_which_processes_cannot_meet(environment, changes, message):
    environment(**WHOLE | changes)
    with pytest.raises(ConfigError, match=message):
        Ddp(processes=2, timeout=1.0, threads=None).start()


def test_a_whole_environment():
    check_environment(WHOLE)


def test_processes_that_never_come(environment):
    environment(**WHOLE | {"MASTER_PORT": "1"})
    with pytest.raises(RunError, match=r"^RANK=1 cannot meet .* at 127.0.0.1:1 \([^\n]*\); check"):
        Ddp(processes=2, timeout=1.0, threads=None).start()


@pytest.mark.parametrize(
    ("variables", "name"), [({"RANK": "1"}, "RANK=1"), ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2")]
)
def test_one_process_is_not_one_of_several(environment, variables, name):
    environment(**variables)
    with pytest.raises(ConfigError, match=f"^{name} is in the environment, but strategy=single"):
        Single(device="cpu", threads=None).start()


@pytest.mark.parametrize("variables", [{}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_one_process_of_one(environment, variables):
    environment(**variables)
    assert Single(device="cpu", threads=None).start().processes == 1


def test_a_variable_is_not_joined_to_a_key():
    from hydra.errors import InstantiationException

    for message, line in (("WORLD_SIZE= is", "strategy: WORLD_SIZE= is"), ("a=1", "strategy.a=1")):
        error = InstantiationException("Error\nfull_key: strategy")
        error.__cause__ = ConfigError(message)
        assert explain_mistake(error) == line


def test_the_threads_of_one_job_are_not_those_of_the_next():
    """threads=null of a sweep's second job means torch's own choice, not the first job's."""
    own = torch.get_num_threads()
    for threads, expected in ((3, 3), (2, 2), (None, own), (None, own)):
        Single(device="cpu", threads=threads).start()
        assert torch.get_num_threads() == expected
