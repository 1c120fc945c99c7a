"""Where the question file comes from, and whether it is the right one."""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from gammatune.cache_dir import cache_dir
from gammatune.config import PINNED, TasksConfig
from gammatune.errors import UserError

SPECBENCH_URL = "https://raw.githubusercontent.com/hemingkx/Spec-Bench/main/data/spec_bench/question.jsonl"
SPECBENCH_SHA256 = "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"
SPECBENCH_ENV = "SPECBENCH_PATH"
DEMO_PATH = Path(__file__).with_name("demo.jsonl")
TIMEOUT_S = 30
HOW_TO_GET = f"get {SPECBENCH_URL} on a machine that can reach it and set tasks.path or {SPECBENCH_ENV} to the file"


def find_question_file(config: TasksConfig, url: str = SPECBENCH_URL) -> tuple[Path, bytes]:
    """The question file and its bytes, checked against the checksum that the config asks for.

    Spec-Bench's file is taken from config.path, else $SPECBENCH_PATH, else the cache, else downloaded from `url`.
    Raises UserError when it is missing, cannot be read or is not the file that was asked for.
    """
    if config.source == "demo":
        path, pinned, remedy = DEMO_PATH, None, "set tasks.checksum=pinned to accept the set as shipped"
    elif local := config.path or os.environ.get(SPECBENCH_ENV):
        path, pinned = Path(local).expanduser(), SPECBENCH_SHA256
        remedy = f"replace it by {SPECBENCH_URL}, or set tasks.checksum=null to run your own questions"
    else:
        path, pinned = fetch_specbench(url), SPECBENCH_SHA256
        remedy = "set tasks.checksum=pinned to run Spec-Bench, or set tasks.path to the file that you mean"
    content = read_bytes(path, "tasks.path" if config.path else SPECBENCH_ENV)
    check_sha256(content, pinned if config.checksum == PINNED else config.checksum, f"The question file {path}", remedy)
    return path, content


def fetch_specbench(url: str) -> Path:
    """The cached copy of Spec-Bench's questions, downloaded and checked on first use."""
    path = cache_dir() / "specbench" / "question.jsonl"
    if not path.exists():
        content = download(url)
        check_sha256(content, SPECBENCH_SHA256, f"What {url} served", HOW_TO_GET)
        store(path, content)
    remedy = "delete it so that it is fetched again"
    check_sha256(read_bytes(path, SPECBENCH_ENV), SPECBENCH_SHA256, f"The cached file {path}", remedy)
    return path


def download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"Spec-Bench's questions are not in the cache and could not be downloaded ({error}): {HOW_TO_GET}."
        ) from error


def store(path: Path, content: bytes) -> None:
    # Renaming is atomic: another process sees the whole file or none.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"Spec-Bench's questions cannot be stored in {path.parent} ({error.strerror}): set GAMMATUNE_CACHE "
            "to a folder that can be written."
        ) from error


def read_bytes(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"The question file {path} cannot be read ({error.strerror}): point {setting} at a copy of "
            "Spec-Bench's question.jsonl, or leave it out to have the file downloaded."
        ) from error


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_sha256(content: bytes, expected: str | None, what: str, remedy: str) -> None:
    """Raises UserError, with `remedy`, when the content has another sha256 than expected (None accepts any)."""
    found = sha256(content)
    if expected is not None and found != expected:
        raise UserError(f"{what} has sha256 {found}, but {expected} was expected: {remedy}.")
