"""A checkpoint is uploaded on request, and a failure never costs the run."""

import pytest
from huggingface_hub.errors import HTTPError

from grpo_guard.lifecycle import hub
from grpo_guard.lifecycle.hub import check_hub, newest_checkpoint, push_checkpoint
from grpo_guard.schema import ConfigError


class Api:
    """Stands in for the Hub; `error` is raised by the upload."""

    endpoint = "https://hub.example"

    def __init__(self, error=None):
        self.error = error
        self.calls = []

    def create_repo(self, repository, **options):
        self.calls.append((repository, options))

    def upload_folder(self, **options):
        if self.error:
            raise self.error
        self.calls.append(options)


@pytest.fixture
def checkpoint(tmp_path):
    for name in ("000002", "000010", "best", "000011.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    return newest_checkpoint(tmp_path)


def test_the_newest_checkpoint_is_uploaded_privately(checkpoint, monkeypatch):
    api = Api()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert push_checkpoint(checkpoint, "me/model") == "https://hub.example/me/model"
    (repository, options), upload = api.calls
    assert (repository, options) == ("me/model", {"private": True, "exist_ok": True})
    assert upload["folder_path"] == checkpoint
    assert checkpoint.name == "000010"
    assert upload["commit_message"] == "Checkpoint after 10 iterations"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("no route\nto the Hub"), "no route"),
        (HTTPError("peer closed connection"), "peer closed connection"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_failed_upload_is_a_warning_with_the_command_for_later(
    error, reason, checkpoint, monkeypatch, caplog
):
    monkeypatch.setattr(hub, "HfApi", lambda: Api(error))
    assert push_checkpoint(checkpoint, "me/model") is None
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{checkpoint} was not uploaded ({reason}); later: hf upload me/model {checkpoint}"
    )


def test_a_run_without_a_checkpoint_has_nothing_to_upload(tmp_path):
    with pytest.raises(ConfigError, match=r"has no checkpoint to upload"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("repository", "token", "message"),
    [
        (
            "a b/c",
            "token",
            "checkpoint.push_to_hub=a b/c is no name of a repository; give USER/NAME",
        ),
        ("me/model", None, "checkpoint.push_to_hub=me/model needs a login"),
    ],
)
def test_what_cannot_be_uploaded_is_refused_at_the_start(repository, token, message, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: token)
    with pytest.raises(ConfigError, match=message):
        check_hub(repository)


def test_a_name_and_a_token_are_enough_to_start(monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: "token")
    check_hub("me/model")
