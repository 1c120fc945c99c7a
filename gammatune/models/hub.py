"""Fetch a checkpoint from the model hub into its own cache: small files first, weights only after the checks."""

from pathlib import Path

from huggingface_hub import model_info, snapshot_download

# HTTPError is what the hub's client raises for a broken connection; the client library behind the name differs by version.
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gammatune.config import Checkpoint
from gammatune.errors import UserError

SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "*.index.json",
]
TIMEOUT_S = 10
WEIGHT_FILES = (["model*.safetensors"], ["pytorch_model*.bin"])  # in order of preference; never both


def fetch_small_files(role: str, checkpoint: Checkpoint) -> Path:
    """Folder with config and tokenizer; its name is the resolved commit. Raises UserError as in `download`."""
    return download(role, checkpoint, checkpoint.revision, SMALL_FILES)


def fetch_weights(role: str, checkpoint: Checkpoint, folder: Path) -> None:
    """Add the weights of the commit that `folder` is named after. Raises UserError as in `download`."""
    for patterns in WEIGHT_FILES:
        download(role, checkpoint, folder.name, patterns)
        if any(folder.glob(patterns[0])):
            return


def download(role: str, checkpoint: Checkpoint, revision: str | None, patterns: list[str]) -> Path:
    """Snapshot folder from the hub, or from its cache without a connection.

    Raises UserError, with the way out, when the repository is unknown, gated, or cannot be reached.
    """
    name, local = checkpoint.id, f"give a local folder with model_pair.{role}.path=/folder"
    try:
        offline = not hub_answers(name, revision)
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline))
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: accept the licence on the model's page with your account and log in with `hf "
            f"auth login`, or {local}."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision {revision}: correct model_pair.{role}.revision, or {local}.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"The hub knows no model {name} (or it is private and needs `hf auth login`): correct "
            f"model_pair.{role}.id, or {local}."
        ) from error
    except (LocalEntryNotFoundError, HTTPError) as error:
        gate = ", accept the licence on the model's page, log in with `hf auth login`" if checkpoint.gated else ""
        raise UserError(
            f"{name} is not on this machine and the model hub cannot be reached: connect{gate} and run again, or {local}."
        ) from error


def hub_answers(name: str, revision: str | None) -> bool:
    """Whether the hub serves that revision; False when nothing comes within TIMEOUT_S, its refusals pass through.

    The download alone would wait without limit for a hub that accepts connections and stays silent.
    """
    try:
        model_info(name, revision=revision, timeout=TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True
