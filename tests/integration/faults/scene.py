"""A night that something happens to: what it runs on, who watches it, and how it has to end."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.integration.faults.channel_reader import ChannelReader
from tests.integration.pipeline import Workplace, artifact_digests

MARK = "NIGHT_MARK"
"""A variable that every process of a night inherits, whoever becomes its parent."""
REACHED_S = ENDS_S = 600
ORPHANS_S = 120
"""Ray's agents take a minute to notice that their driver is gone."""
SEEN_S = 60
"""In which a reader of a busy machine has looked once more."""


@dataclass(frozen=True)
class Undisturbed:
    """A recipe, and what a night of it comes to where nothing happens."""

    recipe: Path
    yesterday: Path
    """A store in which the channel serves an older model, and nothing else is."""
    ages: dict[str, dict[str, int]]
    """By export: yesterday's digest and tonight's, in this order."""
    digests: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Ending:
    code: int
    out: str
    err: str
    seconds: float
    """Since the command's start."""
    at: float
    """time.monotonic() then."""


@dataclass
class Scene:
    place: Workplace
    undisturbed: Undisturbed
    reader: ChannelReader
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = 0.0

    def start(self, *more: str) -> subprocess.Popen[str]:
        self.place.extra[MARK] = self.mark
        self.began = time.monotonic()
        return self.place.start("run", self.undisturbed.recipe, "--json", *more)

    def end(self, process: subprocess.Popen[str]) -> Ending:
        try:
            out, err = process.communicate(timeout=ENDS_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"the night does not end\n{err}") from None
        now = time.monotonic()
        return Ending(process.returncode, out, err, now - self.began, now)

    def run(self, *more: str) -> Ending:
        return self.end(self.start(*more))

    def check(self, ending: Ending) -> dict[str, Any]:
        """Hold the end of a night, disturbed or run again, against the undisturbed one's."""
        assert ending.code == 0, ending.err
        record: dict[str, Any] = json.loads(ending.out)
        assert record["status"] in ("done", "unchanged")
        assert artifact_digests(record) == self.undisturbed.digests
        return record

    def go_on(self) -> tuple[dict[str, Any], float]:
        """Run the same command again; return its record and seconds. Fails on other digests."""
        ending = self.run()
        return self.check(ending), ending.seconds

    def go_on_from(self, *stored: str) -> float:
        """Go on as `go_on` does. Fails where a stage that was stored is computed again."""
        record, seconds = self.go_on()
        outcomes = {stage["title"]: stage["outcome"] for stage in record["stages"]}
        assert {outcomes[title] for title in stored} == {"cached"}, outcomes
        return seconds

    def close(self) -> None:
        """Fail where a process is left, or the reader has ever seen a wrong model."""
        self.check_no_orphans()
        deadline = time.monotonic() + SEEN_S
        while self.reader.newest != self.undisturbed.digests and time.monotonic() < deadline:
            time.sleep(0.1)
        self.reader.stop()
        self.reader.check()
        assert self.reader.newest == self.undisturbed.digests, "tonight's models were not seen"

    def processes(self) -> Iterator[psutil.Process]:
        """All that this scene's nights have started and that lives."""
        wanted = f"{MARK}={self.mark}".encode()
        for process in psutil.process_iter():
            try:
                if wanted in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                    yield process
            except (OSError, psutil.Error):
                continue

    def kill(self, name: str) -> None:
        """kill -9 of the processes whose command line has these words. Fails where none has."""
        found = [p for p in self.processes() if name in " ".join(command_line(p))]
        assert found, f"no {name} among {[command_line(p) for p in self.processes()]}"
        for process in found:
            process.send_signal(signal.SIGKILL)

    def check_no_orphans(self) -> float:
        """Return after how many seconds nothing of the night was left. Fails where it stays."""
        began = time.monotonic()
        while left := list(self.processes()):
            waited = time.monotonic() - began
            assert waited < ORPHANS_S, f"orphans: {[command_line(p) for p in left]}"
            time.sleep(0.5)
        return time.monotonic() - began

    def has(self, pattern: str) -> bool:
        """Whether the store, a folder, has such a path."""
        return any(self.place.store.glob(pattern))


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_for(reached: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Return as soon as something is so. Fails where the command ends before."""
    deadline = time.monotonic() + REACHED_S
    while not reached():
        assert process.poll() is None, f"ended too soon\n{process.communicate()}"
        assert time.monotonic() < deadline, "never got there"
        time.sleep(0.02)


def what_is_said(ending: Ending, place: Path) -> str:
    """What the command itself said, without what differs from run to run and how to go on."""
    said, ours = [], False
    for line in ending.err.splitlines():
        ours = line.startswith("nightpress: ") or (ours and line.startswith("  "))
        if ours and "what is stored is kept" not in line:
            said.append(line.removeprefix("nightpress: ").strip())
    text = " ".join(said).replace(str(place), "...")
    text = re.sub(r"127\.0\.0\.1:\d+", "HOST", text)
    text = re.sub(r"\b[0-9a-f]{32,}\b|\b\d{8}T\d{6}Z-[0-9a-f]{6}\b", "...", text)
    return re.sub(r"since \S+, on [^\s;]+", "since ..., on ...", text) or "nothing"
