"""The quickstart with a fraction of its text and steps, run by the real command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.subjects import ROOT

QUICKSTART = ROOT / "configs/quickstart.yaml"
NIGHTPRESS = Path(sys.executable).with_name("nightpress")
SHORT = {
    "calibration.num_windows": 16,
    "corpus.sources.0.options.num_tokens": 4096,
    "steps.0.prune.num_submodels": 8,
    "steps.0.prune.windows_per_submodel": 2,
    "steps.1.distill.num_tokens": 16384,
    "gate.teacher": {"max_nats_increase": 100.0},
}
"""What of the quickstart is made smaller; its stages are all there."""
TEXTS = {"corpus.sources.1.options.path": "train.jsonl", "evaluation.text": "heldout.jsonl"}
"""Of which the first rows are taken."""
NUM_ROWS = 40


class Timed(NamedTuple):
    wall_s: float
    document: dict[str, Any]

    @property
    def stages_s(self) -> float:
        """Seconds inside the stages that were computed."""
        stages = self.document["stages"]
        return float(sum(s["seconds"] for s in stages if s["outcome"] == "computed"))


def run_night(state: Path, **changed: Any) -> Timed:
    return command(state, "run", QUICKSTART, **changed)


def command(state: Path, name: str, *arguments: str | Path, **changed: Any) -> Timed:
    """Run a command on the short quickstart to its end.

    Args:
        changed: Keys of the recipe, with `__` for a dot.

    Raises:
        RuntimeError: it failed.
    """
    changes = {key.replace("__", "."): value for key, value in changed.items()}
    settings = SHORT | shorten_texts(state.parent) | changes
    overrides = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    return timed(state, NIGHTPRESS, name, *arguments, *overrides, "--json")


def shorten_texts(folder: Path) -> dict[str, str]:
    """Write the first rows of the demo's texts into a folder; return their paths by key."""
    for name in TEXTS.values():
        with (ROOT / "configs/demo/text" / name).open(encoding="utf-8") as file:
            (folder / name).write_text("".join(islice(file, NUM_ROWS)), encoding="utf-8")
    return {key: str(folder / name) for key, name in TEXTS.items()}


def timed(state: Path, *command: str | Path, **environment: str) -> Timed:
    """Run a program, with a state folder, to its end; its stdout is JSON, or nothing."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTPRESS", "RAY"))}
    home = {"NIGHTPRESS_HOME": str(state), "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=kept | home | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    wall_s = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return Timed(wall_s, json.loads(done.stdout) if done.stdout.startswith("{") else {})


def median_and_spread(values: list[float], digits: int = 1) -> str:
    middle = sorted(values)[len(values) // 2]
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
