"""The models that are pruned, their text, and the shapes that every method has to reach."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
WINDOW = 256


class Subject(NamedTuple):
    name: str
    folder: Path
    training: Path
    calibration: Path
    heldout: Path
    alignment: int
    shapes: dict[int, dict[str, int]]
    """Units kept in each layer, by kind, under the sparsity aimed at in percent."""

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        return config

    def num_units(self) -> dict[str, int]:
        config = self.config
        return {"kv_groups": config["num_key_value_heads"], "ffn": config["intermediate_size"]}

    def sparsity(self, percent: int) -> dict[str, float]:
        """Return the fraction removed by kind, as a recipe asks for it."""
        kept = self.shapes[percent]
        return {kind: 1 - kept[kind] / number for kind, number in self.num_units().items()}


def find_subjects() -> list[Subject]:
    """Return the models under $NIGHTPRESS_BENCH_DATA, or the demo's teacher where it is not set.

    Raises:
        FileNotFoundError: the folder lacks a file of those expected.
    """
    data = os.environ.get("NIGHTPRESS_BENCH_DATA")
    if data is None:
        print("NIGHTPRESS_BENCH_DATA is not set: all figures are of the demo's own teacher")
        text = ROOT / "configs/demo/text"
        subjects = [
            Subject(
                name="demo teacher",
                folder=ROOT / "configs/demo/teacher",
                training=text / "train.jsonl",
                calibration=text / "calibration.jsonl",
                heldout=text / "heldout.jsonl",
                alignment=32,
                shapes={50: {"kv_groups": 2, "ffn": 192}},
            )
        ]
    else:
        subjects = list_trained(Path(data))
    for subject in subjects:
        for path in (subject.folder, subject.calibration, subject.heldout):
            if not path.exists():
                raise FileNotFoundError(
                    f"{path}: the benchmark's data is not there; set NIGHTPRESS_BENCH_DATA to a "
                    "folder with models/ and data/text/, or unset it and run `make demo` once"
                )
    return subjects


def list_trained(data: Path) -> list[Subject]:
    text = data / "data/text"
    return [
        Subject(
            name="stories260K",
            folder=data / "models/stories260K",
            training=text / "tinystories/train.jsonl",
            calibration=text / "tinystories/train.jsonl",
            heldout=text / "tinystories/valid.jsonl",
            alignment=4,
            shapes={
                30: {"kv_groups": 3, "ffn": 116},
                50: {"kv_groups": 3, "ffn": 76},
                70: {"kv_groups": 2, "ffn": 40},
            },
        ),
        Subject(
            name="docs-lm",
            folder=data / "models/docs-lm",
            training=text / "docs/train.jsonl",
            calibration=text / "docs/calibration.jsonl",
            heldout=text / "docs/valid.jsonl",
            alignment=32,
            shapes={50: {"kv_groups": 2, "ffn": 224}},
        ),
    ]
