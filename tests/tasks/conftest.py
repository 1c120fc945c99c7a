import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REAL_FILE = Path(__file__).parents[3] / "shared" / "specbench" / "question.jsonl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Every test starts with an empty cache and no question file in the environment; returns the cache folder."""
    monkeypatch.delenv("SPECBENCH_PATH", raising=False)
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def real_file():
    if not REAL_FILE.exists():
        pytest.skip("Spec-Bench's question.jsonl is not in ../shared/specbench")
    return REAL_FILE


@pytest.fixture
def write_questions(tmp_path):
    """Writes rows (dicts, or raw lines) to a question file and returns its path."""

    def write(*rows):
        path = tmp_path / "mine.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def serve():
    """Serves bytes on the loopback interface; returns the address. `promised` is the length that the header claims."""
    servers = []

    def start(content: bytes, promised: int | None = None, status: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(promised or len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/question.jsonl"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
