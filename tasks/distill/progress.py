"""How far training is: written to the store by rank 0, read there by the driver.

The two may be on different machines; the store is what both reach.
"""

from __future__ import annotations

import contextvars
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    from infra.storage import Store
    from tasks.stage_space import StageSpace

log = logging.getLogger(__name__)

INTERVAL_S = 2.0


class ProgressWriter:
    """Writes `progress.json` from rank 0, at most every INTERVAL_S seconds."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        num_steps: int,
        step_tokens: int,
        ranks: list[dict[str, Any]],
    ) -> None:
        self.store = store
        self.prefix = prefix
        self.num_steps = num_steps
        self.step_tokens = step_tokens
        self.ranks = ranks
        """Host and process of every rank: which one to look at when the group hangs."""
        self.began = self.written = time.monotonic()
        self.first_step = 0

    @property
    def nodes(self) -> list[str]:
        return sorted({rank["host"] for rank in self.ranks})

    def begin(self, curve: list[dict[str, Any]]) -> None:
        """Start the clock, at the step that a checkpoint left off."""
        self.began = time.monotonic()
        self.first_step = len(curve)
        self._write(curve)

    def update(self, curve: list[dict[str, Any]]) -> None:
        if time.monotonic() - self.written >= INTERVAL_S:
            self._write(curve)

    def tokens_per_s(self, curve: list[dict[str, Any]]) -> float:
        """Speed since this launch began to train; checkpoints are included."""
        seconds = time.monotonic() - self.began
        return round((len(curve) - self.first_step) * self.step_tokens / seconds, 1)

    def _write(self, curve: list[dict[str, Any]]) -> None:
        if dist.get_rank() == 0:
            progress = {
                "step": len(curve),
                "num_steps": self.num_steps,
                "loss": curve[-1]["loss"] if curve else None,
                "terms": curve[-1]["terms"] if curve else {},
                "tokens_per_s": self.tokens_per_s(curve),
                "ranks": self.ranks,
            }
            self.store.write(f"{self.prefix}/progress.json", json.dumps(progress).encode())
        self.written = time.monotonic()


def read_progress(space: StageSpace) -> dict[str, Any] | None:
    """Return what rank 0 wrote last; None where there is nothing yet, or the store is away."""
    try:
        written: dict[str, Any] = json.loads(space.store.read(f"{space.prefix}/progress.json"))
    except OSError:
        return None
    return written


@contextmanager
def followed_progress(space: StageSpace, num_steps: int) -> Iterator[None]:
    """Pass the group's progress on to the stage's, while the driver waits for the group; say so
    when it was started again."""
    done = threading.Event()
    earlier = read_progress(space)  # of another command, which was stopped

    def follow() -> None:
        launch: dict[str, Any] | None = None
        while not done.wait(INTERVAL_S):
            if (progress := read_progress(space)) is None:
                continue
            if earlier is None or progress["ranks"] != earlier["ranks"]:
                if launch and progress["ranks"] != launch["ranks"]:
                    log.warning("%s", describe_launch(launch, progress))
                launch = progress
            space.progress(progress["step"], num_steps)

    context = contextvars.copy_context()  # who follows the stage may look for its run in there
    thread = threading.Thread(target=context.run, args=(follow,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def describe_launch(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say with whom a group goes on that was started again."""
    hosts = ", ".join(sorted({rank["host"] for rank in now["ranks"]}))
    return (
        f"training was started again, at step {now['step']} of {now['num_steps']}, with "
        f"{len(now['ranks'])} workers after {len(before['ranks'])}, on {hosts}"
    )
