"""The prune stage on a tiny model, in this process; as a program, to be killed:

python -m tests.integration.prune_run MODEL TEXT STORE SCRATCH OPTIONS_JSON
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.storage import FileStore, Store
from tasks.models.checkpoint import describe_model
from tasks.prune.pruning import prune
from tasks.prune_options import PruneOptions
from tasks.records import ModelRef, TextRef
from tasks.stage_space import Executor
from tests.unit.stage_space import make_space

PREFIX = "stages/prune/key"
OPTIONS = {
    "sparsity": {"ffn": 0.5, "kv_groups": 0.5},
    "num_submodels": 8,
    "windows_per_submodel": 2,
    "submodels_per_unit": 2,
}
NUM_UNITS = 1 + 4 + 2
"""Units of work with OPTIONS: the look, the sweep, the two candidates."""


@dataclass
class Pruned:
    record: ModelRef
    out: Path
    store: Store

    @property
    def evidence(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store.read(f"{PREFIX}/evidence.json"))
        return found


def run_stage(
    source: Path,
    text: Path,
    store: Store,
    scratch: Path,
    executor: Executor | None = None,
    alignment: int = 16,
    offload: str = "none",
    **options: Any,
) -> Pruned:
    """Run it with OPTIONS and these; the name of the scratch folder names the attempt."""
    space = make_space(store, scratch, prefix=PREFIX, attempt=scratch.name, executor=executor)
    stage_options = PruneOptions(**OPTIONS | options).model_dump() | {
        "seed": 0,
        "alignment": alignment,
        "num_windows": 12,
        "window": 32,
        "trust_remote_code": False,
        "offload": offload,
    }
    record = prune(
        space,
        stage_options,
        model=describe_model(source, str(source)),
        calibration=TextRef(uri=str(text), digest="", num_bytes=0),
    )
    return Pruned(record, space.out, space.store)


if __name__ == "__main__":
    source, text, store, scratch, options = sys.argv[1:]
    torch.set_num_threads(1)
    run_stage(Path(source), Path(text), FileStore(store), Path(scratch), **json.loads(options))
