"""Models by hub id, against a real HTTP server on loopback that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_toolkit
from toolkit import hub
from toolkit.checkpoint import inspect
from toolkit.tasks.text_classification import TASK

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "some-org/two-layers"


@pytest.fixture(scope="module")
def endpoint(encoder: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub that has one model, with a pickle beside its safetensors: (address, paths asked for)."""
    files = {path.name: path.read_bytes() for path in encoder.iterdir()} | {"pytorch_model.bin": b"not to be fetched"}
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            asked.append(self.path)
            path = self.path.partition("?")[0]
            if path.startswith(f"/api/models/{MODEL}/tree/"):
                tree = [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in files.items()]
                self._answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            elif path.startswith(f"/api/models/{MODEL}"):
                siblings = [{"rfilename": name} for name in files]
                body = {"id": MODEL, "modelId": MODEL, "sha": COMMIT, "siblings": siblings, "tags": []}
                self._answer(200, json.dumps(body).encode(), Content_Type="application/json")
            elif path.startswith(f"/{MODEL}/resolve/") and path.rpartition("/")[2] in files:
                body = files[path.rpartition("/")[2]]
                etag = f'"{hashlib.sha256(body).hexdigest()}"'
                self._answer(200, body, X_Repo_Commit=COMMIT, ETag=etag)
            else:
                self._answer(404, b"", X_Error_Code="RepoNotFound")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_hub_id_is_fetched_once_without_its_pickle(
    endpoint: tuple[str, list[str]], encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, asked = endpoint
    monkeypatch.setenv("HF_ENDPOINT", address)
    folder = hub.fetch(MODEL, tmp_path)
    assert inspect(folder, TASK).sha256 == inspect(encoder, TASK).sha256
    assert not any("pytorch_model.bin" in path for path in asked)
    count = len(asked)
    assert hub.fetch(MODEL, tmp_path) == folder
    assert len(asked) == count


def test_unknown_model_is_bad_input(endpoint: tuple[str, list[str]], reviews: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "convert", "some-org/no-such-model", "--data", reviews, "--cache-dir", tmp_path / "cache",
        "-o", tmp_path / "out",
        environ={"HF_ENDPOINT": endpoint[0]},
    )  # fmt: skip
    assert done.returncode == 2
    assert "no public model 'some-org/no-such-model'" in done.stderr
    assert not (tmp_path / "cache" / "hub" / "some-org--no-such-model").exists()


def test_no_network_is_one_clear_line(reviews: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "convert", MODEL, "--data", reviews, "--cache-dir", tmp_path / "cache", "-o", tmp_path / "out",
        environ={"HF_ENDPOINT": "http://127.0.0.1:9"},
    )  # fmt: skip
    assert done.returncode == 3
    assert "could not be fetched" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_an_id_without_a_local_path_goes_to_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert hub.is_id("some-org/name")
    assert not hub.is_id("models/typo")
    assert not hub.is_id("./some-org/name")
    assert not hub.is_id("name")
    assert not hub.is_id("a/b/c")
