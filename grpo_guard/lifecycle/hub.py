"""Uploads what a run trained to the Hugging Face Hub, on request."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from grpo_guard.messages import first_line
from grpo_guard.schema import ConfigError

_log = logging.getLogger(__name__)


def check_hub(repository: str) -> None:
    """Raise ConfigError if nothing could be uploaded to a repository of the Hub.

    It asks nobody: the name must be valid, and a token must be on this machine.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(
            f"checkpoint.push_to_hub={repository} is no name of a repository; give USER/NAME"
        ) from error
    if not get_token():
        raise ConfigError(
            f"checkpoint.push_to_hub={repository} needs a login;"
            " run `hf auth login`, or set HF_TOKEN"
        )


def push_checkpoint(checkpoint: Path, repository: str) -> str | None:
    """Upload a checkpoint's folder, and return its address; None if that fails.

    A repository that does not exist is made, and is private. A failure costs a warning, which names
    the command that uploads the folder later: the run itself is finished and safe.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=checkpoint,
            commit_message=f"Checkpoint after {int(checkpoint.name)} iterations",
        )
    except Exception as error:  # whatever a network, the hub or its libraries raise
        _log.warning(
            "%s was not uploaded (%s); later: hf upload %s %s",
            checkpoint,
            first_line(error),
            repository,
            checkpoint,
        )
        return None
    return f"{api.endpoint}/{repository}"


def newest_checkpoint(run: Path) -> Path:
    """Return the folder of the last checkpoint that a run exported, which is not its best one.

    Raises ConfigError if there is none.
    """
    numbered = sorted(path for path in run.glob("checkpoints/*") if path.name.isdigit())
    if not numbered:
        raise ConfigError(f"{run} has no checkpoint to upload; train it to its end first")
    return numbered[-1]
