"""The quantize stage on a tiny model, in this process; as a program, to be killed:

python -m tests.integration.quantize_run MODEL TEXT STORE SCRATCH BEGUN DIES_AT OPTIONS_JSON
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.storage import FileStore
from tasks.models.checkpoint import describe_model
from tasks.plugins import resolve_options
from tasks.quantize import quantization
from tasks.quantize.block_work import BlockWork
from tasks.quantize.calibration import Prefix
from tasks.records import ModelRef, TextRef
from tasks.stage_space import Executor
from tests.unit.stage_space import make_space

PREFIX = "stages/quantize/key"
OPTIONS = {
    "format_options": {},
    "mixed_precision": None,
    "num_windows": 8,
    "window": 32,
    "trust_remote_code": False,
}


@dataclass(frozen=True)
class Watched:
    """Quantizes a block as the stage does; notes who did, and dies once with a block in hand."""

    begun: Path
    """Gets a line per block, whoever quantizes it."""
    dies_at: int
    """Number of the block, of those quantized by all processes, that is lost; 0 for none."""

    def __call__(self, work: BlockWork, prefix: Prefix | None, index: int) -> bytes:
        done = QUANTIZE_BLOCK(work, prefix, index)
        with self.begun.open("a") as file:
            file.write(f"{index}\n")
        if len(self.begun.read_text().splitlines()) == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return done


QUANTIZE_BLOCK = quantization.quantize_block


def run_stage(
    source: Path,
    text: Path,
    store: FileStore,
    scratch: Path,
    method: str,
    executor: Executor | None = None,
    export_format: str = "compressed-tensors",
    dtype: str = "float32",
    **method_options: Any,
) -> ModelRef:
    """Run it with OPTIONS and these; the name of the scratch folder names the attempt."""
    space = make_space(store, scratch, prefix=PREFIX, attempt=scratch.name, executor=executor)
    chosen = resolve_options("method", method, method_options)
    own = {"method": method, "method_options": chosen, "format": export_format, "dtype": dtype}
    return quantization.quantize_model(
        space,
        OPTIONS | own,
        model=describe_model(source, str(source)),
        calibration=TextRef(uri=str(text), digest="", num_bytes=0),
    )


if __name__ == "__main__":
    source, text, store, scratch, begun, dies_at, options = sys.argv[1:]
    torch.set_num_threads(1)
    quantization.quantize_block = Watched(Path(begun), int(dies_at))
    run_stage(Path(source), Path(text), FileStore(store), Path(scratch), **json.loads(options))
