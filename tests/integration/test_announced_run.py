"""A night that tells its team, signs what it publishes, and is cleaned up after."""

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pipeline import Workplace

pytestmark = pytest.mark.integration

SECRET = "planted-token"


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """URL of a chat server of this process, and what it was told."""
    told: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{SECRET}", told
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_night_is_announced_signed_and_cleaned_up_after(
    tmp_path: Path, tiny_llama: Path, text_file: Path, hook: tuple[str, list[dict[str, Any]]]
) -> None:
    url, told = hook
    private, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    for arguments in (
        ["genpkey", "-algorithm", "ed25519", "-out", str(private)],
        ["pkey", "-in", str(private), "-pubout", "-out", str(public)],
    ):
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
name: tiny
teacher: {{model: {tiny_llama}}}
calibration: {{text: {text_file}, num_windows: 8, window: 32}}
evaluation: {{text: {text_file}, window: 32}}
corpus:
  sources: [{{name: local_text, options: {{path: {text_file}}}}}]
  block_tokens: 32
exports:
  - {{name: int8, method: absmax, format: compressed-tensors, options: {{bits: 8}}}}
gate: {{teacher: {{max_nats_increase: 100.0}}}}
cluster: {{workers: 1}}
notify: [{{webhook_env: TEAM_HOOK, on: [failed, published]}}]
"""
    )
    place = Workplace(
        tmp_path / "place", {"TEAM_HOOK": url, "NIGHTPRESS_SIGNING_KEY": str(private)}
    )
    record = place.run_json("run", recipe)
    assert record["status"] == "done"
    (heard,) = told
    assert (heard["event"], heard["run_id"]) == ("published", record["run_id"])
    assert heard["exports"][0]["digest"] == record["exports"][0]["artifact"]["digest"]
    report = Path(heard["report_uri"].removeprefix("file://"))
    assert report.read_text().startswith("<!")

    assert "ed25519" in place.run_json("show", "tiny")["signature"]
    place.run("pull", "tiny", tmp_path / "model", "--verify-key", public)
    manifest = place.store.glob("artifacts/tiny/int8/*/manifest.json")
    path = next(manifest)
    path.write_text(path.read_text().replace('"nats_per_token": ', '"nats_per_token": 1'))
    place.run("pull", "tiny", tmp_path / "again", "--verify-key", public, expect=1)
    assert not (tmp_path / "again").exists()

    found = place.run_json("gc")
    assert (found["folders"], found["deleted"], found["num_kept_artifacts"]) == ([], False, 1)
    assert found["num_kept_stages"] == len({stage["key"] for stage in record["stages"]})
    assert "stages stay" in place.run("gc", "--delete")

    kept = b"".join(p.read_bytes() for p in place.folder.rglob("*") if p.is_file())
    assert SECRET.encode() not in kept
    secret_lines = private.read_bytes().splitlines()[1]
    assert secret_lines not in kept
