"""The process in which models are loaded as a stranger would load them, asked from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tasks.errors import CheckpointError

PROGRAM = Path(__file__).with_name("fresh_process.py")
TIMEOUT_S = 1800


class LoaderProcess:
    """Runs `fresh_process.py`, which imports transformers once for all models that it is asked for.

    It is started by the first question, or before, so that who asks need not wait for its imports.
    Where it died, or had to import nightpress, the next question starts another one.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None
        """What it writes to stderr, in a file that has no name."""

    def __enter__(self) -> LoaderProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> subprocess.Popen[str]:
        """Start the process, unless it runs; return it without waiting."""
        if self._process and self._process.poll() is None:
            return self._process
        self.close()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        return self._process

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the answer to a request, both as fresh_process.py says.

        Raises:
            CheckpointError: there is none, within TIMEOUT_S; the message is the last line that the
                process wrote, or the signal that ended it.
        """
        process = self.start()
        assert process.stdin and process.stdout and self._errors
        late = threading.Timer(TIMEOUT_S, process.kill)
        late.start()
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            in_time = not late.finished.is_set()
            late.cancel()
        if answer.endswith("\n"):
            found: dict[str, Any] = json.loads(answer)
            if found["loader"] == "nightpress":
                self.close()
            return found
        status = process.wait()
        if not in_time:
            raise CheckpointError(f"not within {TIMEOUT_S} s")
        if status < 0:  # what it wrote last is not why
            raise CheckpointError(f"its process was ended by {signal.Signals(-status).name}")
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines() or [f"exit status {status}"]
        raise CheckpointError(lines[-1])

    def close(self) -> None:
        """End the process; a later question starts another one."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._errors:
            self._errors.close()
            self._errors = None
