"""Secrets are planted wherever a night finds one, and looked for everywhere else afterwards."""

import base64
import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from infra.storage import S3Store
from tests.conformance.moto_server import running_moto
from tests.integration.pipeline import Workplace
from tests.integration.swift_server import Swift

pytestmark = pytest.mark.integration

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED0ACCESS00",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+secret/0123456789abcdefghijk",
    "AWS_SESSION_TOKEN": "planted-session-token",
    "HF_TOKEN": "hf_plantedhuggingfacetoken",
    "NIGHTPRESS_ENDPOINT_KEY": "sk-planted-endpoint-key",
    "PREFECT_API_KEY": "pnu_plantedprefectkey",
    "RAY_AUTH_TOKEN": "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
}
HOOK_PATH = "planted-webhook-path"


@dataclass
class Listener:
    """Chat and completion endpoint in one; it refuses every key and repeats it, as some do."""

    url: str = ""
    heard: list[bytes] = field(default_factory=list)


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.heard.append(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers.get("Authorization", "")
            self.send_response(204 if HOOK_PATH in self.path else 401, f"no {key}")
            if HOOK_PATH not in self.path:
                self.send_header("WWW-Authenticate", f"wrong key: {key}")
            self.end_headers()
            if HOOK_PATH not in self.path:
                self.wfile.write(f'{{"error": "Incorrect API key provided: {key}"}}'.encode())

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def sessions() -> Iterator[Path]:
    """Where Ray keeps its sessions: a short path, for the sake of its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="np-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def place(tmp_path: Path, listener: Listener, sessions: Path) -> Iterator[Workplace]:
    """A workplace with every secret, and an S3 server that takes any key."""
    key = tmp_path / "keys" / "key.pem"
    key.parent.mkdir()
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    with running_moto() as bucket:
        extra = (
            bucket
            | PLANTED
            | {
                "NIGHTPRESS_STORE": "s3://planted/team",
                "NIGHTPRESS_SIGNING_KEY": str(key),
                "NIGHTPRESS_ENDPOINT": f"{listener.url}/v1",
                "TEAM_HOOK": f"{listener.url}/{HOOK_PATH}",
                "RAY_AUTH_MODE": "token",
                "RAY_TMPDIR": str(sessions),
            }
        )
        with pytest.MonkeyPatch.context() as patch:
            for name, value in extra.items():
                patch.setenv(name, value)
            S3Store("s3://planted").fs.call_s3("create_bucket", Bucket="planted")
            yield Workplace(tmp_path / "place", extra)


def write_recipe(folder: Path, tiny_llama: Path, text_file: Path, source: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
name: tiny
teacher: {{model: {tiny_llama}}}
task: {{instruction: Write a plain sentence., examples: [{{text: a, output: b}}]}}
calibration: {{text: {text_file}, num_windows: 8, window: 32}}
evaluation: {{text: {text_file}, window: 32}}
corpus:
  sources: [{source}]
  generator: {{name: endpoint, options: {{model: m, retries: 0}}}}
  block_tokens: 32
steps:
  - distill: {{losses: [{{name: forward_kl}}], num_tokens: 512, batch_blocks: 8}}
exports:
  - {{name: int8, method: absmax, format: compressed-tensors, options: {{bits: 8}}}}
cluster: {{workers: 1}}
notify: [{{webhook_env: TEAM_HOOK, on: [failed, refused, published]}}]
"""
    )
    return path


class Port(NamedTuple):
    process: str
    """Its name, cut short by Linux."""
    address: str
    number: int


@dataclass
class Watched:
    """How a command ended, and which ports its processes held open meanwhile."""

    code: int
    said: str
    ports: set[Port]


def run_watched(place: Workplace, *arguments: str | Path) -> Watched:
    process = place.start(*arguments)
    ports: set[Port] = set()
    output: list[str] = []
    reader = threading.Thread(target=lambda: output.extend(process.communicate()))
    reader.start()
    while reader.is_alive():
        ports |= set(open_ports(process.pid))
        time.sleep(0.3)
    return Watched(process.returncode, "".join(output), ports)


def open_ports(pid: int) -> Iterator[Port]:
    """Yield where a process and its descendants wait for connections."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    # Linux shows IPv4 addresses of sockets that know both as those of IPv6.
                    address = connection.laddr.ip.removeprefix("::ffff:")
                    yield Port(process.name(), address, connection.laddr.port)
        except psutil.Error:
            continue


def look_everywhere(place: Workplace, said: str, heard: list[bytes], sessions: Path) -> None:
    """Fail where a planted secret is in anything that was written, printed or sent."""
    key = Path(place.extra["NIGHTPRESS_SIGNING_KEY"]).read_bytes().splitlines()[1]
    secrets = {name: value.encode() for name, value in PLANTED.items()}
    secrets |= {"TEAM_HOOK": HOOK_PATH.encode(), "NIGHTPRESS_SIGNING_KEY": key}
    secrets |= {f"{name} in base64": base64.b64encode(value) for name, value in secrets.items()}
    store = S3Store(place.extra["NIGHTPRESS_STORE"], place.folder / "cache")
    texts = {"stdout and stderr": said.encode(), "messages": b"\n".join(heard)}
    texts |= {key: store.read(key) for key in store.list("")}
    files = [p for root in (place.folder, sessions) for p in root.rglob("*")]
    texts |= {str(p): p.read_bytes() for p in files if p.is_file() and not p.is_symlink()}
    found = {
        (name, where)
        for where, data in texts.items()
        for name, value in secrets.items()
        if value in data
    }
    assert not found
    assert any("session_" in where for where in texts), "Ray has kept its sessions elsewhere"
    (database,) = [path for path in files if path.name == "prefect.db"]
    with sqlite3.connect(database) as opened:
        assert opened.execute("select count(*) from flow_run").fetchone()[0] >= 1


def test_a_night_that_ends_well_tells_no_secret_and_opens_no_door(
    place: Workplace, listener: Listener, sessions: Path, tiny_llama: Path, text_file: Path
) -> None:
    source = f"{{name: local_text, options: {{path: {text_file}}}}}"
    recipe = write_recipe(place.folder.parent, tiny_llama, text_file, source)
    ended = run_watched(place, "--debug", "run", recipe)
    assert ended.code == 0, ended.said
    assert b'"published"' in b"".join(listener.heard)
    look_everywhere(place, ended.said, listener.heard, sessions)
    assert ended.ports
    outside = [port for port in ended.ports if not ip_address(port.address).is_loopback]
    # Rank 0 of a training group keeps PyTorch's TCPStore, which cannot be told where to listen.
    trains = ("ray::RayTrainWo", "ray::execute")  # as Ray names the worker of a rank
    assert all(port.process.startswith(trains) for port in outside), outside


def test_a_night_that_an_endpoint_refuses_repeats_no_key(
    place: Workplace, listener: Listener, sessions: Path, tiny_llama: Path, text_file: Path
) -> None:
    source = "{name: self_instruct, options: {num_rows: 4}}"
    recipe = write_recipe(place.folder.parent, tiny_llama, text_file, source)
    ended = run_watched(place, "--debug", "run", recipe)
    assert ended.code == 1, ended.said
    assert "answered 401" in ended.said
    assert b'"failed"' in b"".join(listener.heard)
    look_everywhere(place, ended.said, listener.heard, sessions)


def test_a_wrong_key_of_the_bucket_is_not_repeated(
    swift: Swift, tmp_path: Path, tiny_llama: Path, text_file: Path
) -> None:
    planted = {"AWS_SECRET_ACCESS_KEY": PLANTED["AWS_SECRET_ACCESS_KEY"]}
    extra = swift.environment | planted | {"NIGHTPRESS_STORE": "s3://planted/team"}
    place = Workplace(tmp_path / "place", extra)
    source = f"{{name: local_text, options: {{path: {text_file}}}}}"
    recipe = write_recipe(tmp_path, tiny_llama, text_file, source)
    for command in (["run", recipe], ["doctor", recipe], ["list"], ["pull", "tiny", "model"]):
        process = place.start("--debug", *command)
        out, err = process.communicate(timeout=place.timeout_s)
        assert process.returncode in (1, 2), out + err
        assert PLANTED["AWS_SECRET_ACCESS_KEY"] not in out + err
    files = [path for path in place.folder.rglob("*") if path.is_file()]
    assert not any(PLANTED["AWS_SECRET_ACCESS_KEY"].encode() in p.read_bytes() for p in files)
    assert os.environ.get("AWS_SECRET_ACCESS_KEY") != PLANTED["AWS_SECRET_ACCESS_KEY"]
