"""Run the real command in its own process, with a state folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

NIGHTPRESS = Path(sys.executable).with_name("nightpress")
TIMEOUT_S = 420


@dataclass
class Workplace:
    """Where commands run: a state folder, and what their environment has besides."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)
    timeout_s: float = TIMEOUT_S
    """After which a command is ended, and the test fails."""
    enter: tuple[str, ...] = ()
    """What a command begins with that runs it elsewhere, as in another network namespace."""

    @property
    def store(self) -> Path:
        return self.folder / "state" / "store"

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTPRESS", "RAY"))}
        home = {"HOME": str(self.folder), "NIGHTPRESS_HOME": str(self.folder / "state")}
        return kept | home | {"OMP_NUM_THREADS": "1"} | self.extra

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [*self.enter, str(NIGHTPRESS), *map(str, arguments)],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, expect: int = 0) -> str:
        """Run a command to its end; return its stdout."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=self.timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.communicate()
            raise
        assert process.returncode == expect, f"exit {process.returncode}\n{out}\n{err}"
        return out

    def run_json(self, *arguments: str | Path, expect: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run(*arguments, "--json", expect=expect))
        assert document["schema_version"] == 1
        return document

    def kill_when(
        self, reached: Callable[[], bool], *arguments: str | Path
    ) -> list[psutil.Process]:
        """Start a command and kill -9 it as soon as something is so; return its children.

        Fails where the command ended before.
        """
        process = self.start(*arguments)
        deadline = time.monotonic() + TIMEOUT_S
        while not reached():
            assert process.poll() is None, f"ended too soon\n{process.communicate()}"
            assert time.monotonic() < deadline, "never got there"
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        return family


def check_no_orphans(family: list[psutil.Process]) -> None:
    """Fail where a process outlives the killed one; Ray's agents take a minute to notice."""
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive, f"orphans: {[p.cmdline() for p in alive if p.is_running()]}"


def artifact_digests(record: dict[str, Any]) -> dict[str, str]:
    """Digest by export of a run's JSON record."""
    return {e["export"]: e["artifact"]["digest"] for e in record["exports"]}
