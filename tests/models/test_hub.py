"""Checkpoints from a model hub: a small server on this machine that speaks as much of its protocol as a download needs."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tiny_checkpoints import checkpoint_maker

COMMIT = "a" * 40
CLIENT = """
import json, sys
from gammatune.errors import UserError
from gammatune.models.pair import load_pair
from gammatune.config import Checkpoint, PairConfig
def load(case):
    target, draft = (Checkpoint(**case[role]) for role in ("target", "draft"))
    try:
        pair = load_pair(PairConfig(name="hub", target=target, draft=draft))
        return [pair.identity, pair.vocab_size]
    except UserError as error:
        return str(error)
for line in sys.stdin:
    print(json.dumps([load(case) for case in json.loads(line)]), flush=True)
"""


class Hub(BaseHTTPRequestHandler):
    """Serves the folders in `repositories`; org/gated is described but not served, and the unknown is refused."""

    repositories: dict[str, Path]
    requested: list[str]

    def do_HEAD(self):
        self.answer(send_body=False)

    def do_GET(self):
        self.answer(send_body=True)

    def answer(self, send_body):
        path = unquote(urlsplit(self.path).path).strip("/")
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        if name not in self.repositories:
            return self.refuse(401, "RepoNotFound")
        if "no-such-branch" in path:
            return self.refuse(404, "RevisionNotFound")
        if path.startswith("api/"):
            return self.describe(path, self.repositories[name], send_body)
        if name == "org/gated":
            return self.refuse(403, "GatedRepo")
        return self.serve(self.repositories[name] / path.split(f"/resolve/{COMMIT}/")[1], send_body)

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def describe(self, path, folder, send_body):
        files = sorted(folder.iterdir())
        if "/tree/" in path:
            answer = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": digest(f)} for f in files]
        else:
            answer = {"id": folder.name, "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}
        self.send(json.dumps(answer).encode(), {"Content-Type": "application/json"}, send_body)

    def serve(self, file, send_body):
        if send_body:
            self.requested.append(file.name)
        self.send(file.read_bytes(), {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT}, send_body)

    def send(self, body, headers, send_body):
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def digest(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()


def case(target="org/target", draft="org/draft", **extra):
    return {"target": {"id": target, **extra}, "draft": {"id": draft}}


CASES = {
    "good": case(),
    "gated": case("org/gated", gated=True),
    "unknown": case("org/nothing"),
    "branch": case(revision="no-such-branch"),
    "foreign": case(draft="org/foreign"),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Per case [identity, vocab_size] or the refusal: with the hub, then without; and the names of all files served."""
    folder = tmp_path_factory.mktemp("hub")
    make = checkpoint_maker(folder)
    repositories = {
        "org/target": make("target"),
        "org/draft": make("draft", num_hidden_layers=1),
        "org/foreign": make("foreign", extra=["hello"]),
        "org/gated": make("gated"),
    }
    handler = type("Handler", (Hub,), {"repositories": repositories, "requested": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        client = start_client(folder, server.server_port)
        online = load_all(client)
        server.shutdown()
    offline = load_all(client)
    client.communicate(timeout=60)
    return online, offline, handler.requested


def start_client(folder, port):
    """A process of its own, since the hub's address is read when its client is imported."""
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", CLIENT], env={**os.environ, **settings}, text=True, **pipes)


def load_all(client):
    """The answers to CASES."""
    client.stdin.write(json.dumps(list(CASES.values())) + "\n")
    client.stdin.flush()
    return dict(zip(CASES, json.loads(client.stdout.readline()), strict=True))


def test_a_pair_from_the_hub_is_known_by_its_commit_and_then_needs_no_network(answers):
    online, offline, requested = answers
    assert online["good"] == [
        {
            "target": {"id": "org/target", "revision": None, "commit": COMMIT},
            "draft": {"id": "org/draft", "revision": None, "commit": COMMIT},
        },
        259,
    ]
    assert offline["good"] == online["good"]
    assert requested.count("config.json") == 3


def test_refusals_say_the_way_out_and_come_before_any_weight(answers):
    online, _, requested = answers
    assert online["gated"].startswith("org/gated is gated: accept the licence")
    assert "hf auth login" in online["gated"]
    assert online["unknown"].startswith("The hub knows no model org/nothing")
    assert online["branch"].startswith("org/target has no revision no-such-branch")
    assert "different tokenizers" in online["foreign"]
    assert all("model_pair.target.path=/folder" in online[name] for name in ("gated", "unknown", "branch"))
    assert requested.count("model.safetensors") == 2


def test_without_a_connection_the_refusal_is_clear(answers):
    offline = answers[1]
    assert offline["unknown"].startswith("org/nothing is not on this machine and the model hub cannot be reached")
    assert "accept the licence" in offline["gated"]
