"""Prefect's API for one run, where it is not needed after all."""

import time
from pathlib import Path

import psutil

from infra.prefect_server import starting_server


def test_a_server_that_nobody_waited_for_is_ended_at_once(tmp_path: Path) -> None:
    others = {child.pid for child in psutil.Process().children()}
    with starting_server(tmp_path) as (url, _):
        assert url.startswith("http://127.0.0.1:")
        (server,) = (p for p in psutil.Process().children() if p.pid not in others)
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert not server.is_running()
