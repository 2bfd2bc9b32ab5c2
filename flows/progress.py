"""What a person sees while a night runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

LINE_INTERVAL_S = 10.0


class Reporter(Protocol):
    def begin(self, title: str) -> None: ...

    def update(self, done: int, total: int) -> None: ...

    def end(self, title: str, outcome: str, seconds: float) -> None: ...

    def close(self) -> None: ...


def make_reporter() -> Reporter:
    """Return bars where stderr is a terminal, else lines. Results alone go to stdout."""
    console = Console(stderr=True)
    return BarReporter(console) if console.is_terminal else LineReporter()


class BarReporter:
    def __init__(self, console: Console) -> None:
        self.bars = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self.bars.start()
        self.task = self.bars.add_task("starting", total=None)

    def begin(self, title: str) -> None:
        self.bars.reset(self.task, description=title, total=None)

    def update(self, done: int, total: int) -> None:
        self.bars.update(self.task, completed=done, total=total)

    def end(self, title: str, outcome: str, seconds: float) -> None:
        spent = f"{seconds:8.1f} s" if outcome == "computed" else " " * 10
        self.bars.console.print(f"{title:<28} {outcome:<9}{spent}", highlight=False)

    def close(self) -> None:
        self.bars.stop()


class LineReporter:
    def __init__(self) -> None:
        self.title = ""
        self.last = 0.0

    def _print(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)

    def begin(self, title: str) -> None:
        self.title, self.last = title, time.monotonic()

    def update(self, done: int, total: int) -> None:
        if time.monotonic() - self.last >= LINE_INTERVAL_S:
            self.last = time.monotonic()
            self._print(f"{self.title}: {done}/{total}")

    def end(self, title: str, outcome: str, seconds: float) -> None:
        spent = f" in {seconds:.1f} s" if outcome == "computed" else ""
        self._print(f"{title}: {outcome}{spent}")

    def close(self) -> None:
        pass


class SilentReporter:
    def begin(self, title: str) -> None: ...

    def update(self, done: int, total: int) -> None: ...

    def end(self, title: str, outcome: str, seconds: float) -> None: ...

    def close(self) -> None: ...
