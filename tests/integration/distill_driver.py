"""A distillation as its own process, to be killed:

python -m tests.integration.distill_driver STORE_URI TEACHER STUDENT CORPUS
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from infra.ray_cluster import RayExecutor
from infra.storage import open_store
from tasks.distill_options import DistillOptions
from tasks.models.checkpoint import describe_model
from tasks.records import CorpusRef, ModelRef
from tasks.stage_space import StageSpace

PREFIX = "stages/distill/key"
LOSSES = [
    {"name": "cross_entropy", "options": {}, "weight": 0.5},
    {"name": "forward_kl", "options": {"temperature": 2.0}, "weight": 0.5},
]


def make_options(**overrides: Any) -> dict[str, Any]:
    """Twenty-four steps of 64 blocks of 64 tokens on two workers, with a checkpoint every four."""
    options: dict[str, Any] = {
        "losses": LOSSES,
        "num_tokens": 24 * 64 * 64,
        "batch_blocks": 64,
        "micro_batch_blocks": 16,
        "learning_rate": 3e-3,
        "weight_decay": 0.01,
        "checkpoint_steps": 4,
    }
    more = {"seed": 0, "world_size": 2, "threads": 1, "trust_remote_code": False, "device": "cpu"}
    return DistillOptions(**(options | overrides)).model_dump() | more


def run_distill(
    executor: RayExecutor,
    store_uri: str,
    teacher: Path,
    student: Path,
    corpus: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **overrides: Any,
) -> tuple[ModelRef, StageSpace]:
    """Run the stage; return its record and the space that holds its output."""
    from tasks.distill.distillation import distill

    num_blocks, block_tokens = load_file(corpus / "blocks.safetensors")["ids"].shape
    space = StageSpace(
        store=open_store(store_uri),
        executor=executor,
        prefix=PREFIX,
        attempt="attempt",
        scratch=Path(tempfile.mkdtemp()),
        progress=progress,
    )
    record = distill(
        space,
        make_options(**overrides),
        teacher=describe_model(teacher, str(teacher)),
        student=describe_model(student, str(student)),
        corpus=CorpusRef(
            uri=str(corpus),
            digest="",
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            num_documents=1,
            dropped={},
            sources={},
        ),
    )
    return record, space


if __name__ == "__main__":
    store_uri, *folders = sys.argv[1:]
    executor = RayExecutor("local", 2, 0, 1, Path(tempfile.mkdtemp()))
    run_distill(executor, store_uri, *map(Path, folders))
