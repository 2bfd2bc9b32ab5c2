"""A group of ranks that trains a few steps, profiled: NAME SCALE; rank 0 prints a JSON line.

What is profiled is the product's own training loop; the ranges around its parts are put there from
outside.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial, wraps
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import LlamaConfig, LlamaForCausalLM

from infra.storage import FileStore, localize
from tasks.distill import training
from tasks.distill.job import TrainingJob
from tasks.distill.student_loss import StudentLoss
from tests.benchmarks.distill.scale import FULL, SMOKE, Scale
from tests.benchmarks.prune.memory_models import HALF_B, MODELS
from tests.benchmarks.subjects import WINDOW, find_subjects
from tests.integration.distill_driver import make_options

LOSSES = [
    {"name": "forward_kl", "weight": 0.8, "options": {"temperature": 2.0}},
    {"name": "cross_entropy", "weight": 0.2, "options": {}},
]
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product_")
"""Starts of the names of a model's matrix products; attention's are fused into one call."""
COLLECTIVES = (
    "all_reduce",
    "reduce",
    "broadcast",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
)


class Case(NamedTuple):
    config: dict[str, Any] | None
    """Of random models; None: the benchmark's largest trained one."""
    ranks: int
    batch_blocks: int
    micro_batch_blocks: int


CASES = {
    "docs-lm, 1 rank": Case(None, 1, 16, 8),
    "docs-lm, 2 ranks": Case(None, 2, 16, 8),
    f"{HALF_B}, 1 rank": Case(MODELS[HALF_B].config, 1, 4, 4),
}


def main() -> None:
    name, scale_name = sys.argv[1:]
    scale = {s.name: s for s in (FULL, SMOKE)}[scale_name]
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        teacher, student, vocab = write_models(case, scale, place)
        write_corpus(place / "corpus", vocab, case.batch_blocks)
        arguments = (case, scale.throughput_steps, place, teacher, student)
        with get_context("spawn").Pool(case.ranks) as pool:
            calls = [pool.apply_async(run_rank, (r, *arguments)) for r in range(case.ranks)]
            measured = [call.get() for call in calls]
    print(json.dumps(measured[0]))


def write_models(case: Case, scale: Scale, place: Path) -> tuple[Path, Path, int]:
    """Write a random student of half the teacher's layers; return both and the vocabulary.

    The teacher is random, too, where the case says so: no time depends on what weights say.
    """
    if case.config is None:
        teacher = find_subjects()[-1].folder
        config = LlamaConfig.from_pretrained(teacher)
    else:
        teacher = place / "teacher"
        layers = {"num_hidden_layers": scale.throughput_layers}
        config = LlamaConfig(**case.config, **layers, tie_word_embeddings=True)
        LlamaForCausalLM(config).save_pretrained(teacher)
    config.num_hidden_layers //= 2
    LlamaForCausalLM(config).save_pretrained(place / "student")
    return teacher, place / "student", config.vocab_size


def write_corpus(folder: Path, vocab: int, num_blocks: int) -> None:
    folder.mkdir()
    shape = (num_blocks, WINDOW)
    ids = torch.randint(vocab, shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(shape, dtype=torch.bool)
    save_file({"ids": ids.int(), "loss_mask": mask}, folder / "blocks.safetensors")


def run_rank(
    rank: int, case: Case, num_steps: int, place: Path, teacher: Path, student: Path
) -> dict[str, float]:
    """Train; return the seconds of each part of the loop, products apart, on this rank."""
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/rendezvous", rank=rank, world_size=case.ranks
    )
    store = FileStore(f"file://{place}/store")
    job = TrainingJob(
        store=store,
        prefix="stages/distill/bench",
        localize=partial(localize, store),
        options=make_options(
            losses=LOSSES,
            batch_blocks=case.batch_blocks,
            micro_batch_blocks=case.micro_batch_blocks,
            checkpoint_steps=max(num_steps // 2, 1),
        )
        | {"world_size": case.ranks},
        teacher_uri=str(teacher),
        student_uri=str(student),
        corpus_uri=str(place / "corpus"),
        vocab_size=None,
        num_steps=num_steps,
    )
    with ExitStack() as stack:
        for target, attribute, label in (
            (StudentLoss, "over_chunks", "loss"),
            (StudentLoss, "over_whole_logits", "loss"),
            (training, "train_step", "step"),
            (training, "batch_rows", "data"),
            (training, "read_examples", "data"),
            (training, "save_checkpoint", "checkpoint"),
            (training, "store_student", "export"),
            *((dist, name, "communication") for name in COLLECTIVES),
        ):
            function = getattr(target, attribute)
            stack.enter_context(patch.object(target, attribute, labelled(function, label)))
        stack.enter_context(patch.object(training, "load_models", label_models))
        began: list[float] = []
        stack.enter_context(patch.object(training, "load_newest", start_clock(began)))
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            training.train(job)
            seconds = time.perf_counter() - began[0]
    measured = add_up(profiler) | {"seconds": seconds, "steps": float(num_steps)}
    dist.destroy_process_group()
    return measured


def labelled(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return function(*args, **kwargs)

    return run


load_models = training.load_models


def label_models(*args: Any) -> Any:
    """Load both models; what they do from then on is labelled."""
    models = load_models(*args)
    engine, online = models.engine, models.teacher
    engine.forward = labelled(engine.forward, "student forwards")
    engine.backward = labelled(engine.backward, "backwards")
    engine.step = labelled(engine.step, "optimizer")
    online.module.forward = labelled(online.module.forward, "teacher forwards")
    return models


def start_clock(began: list[float]) -> Callable[..., Any]:
    """Start where the loop begins: both models are there, and the first step is next."""
    load_newest = training.load_newest

    def load(*args: Any) -> Any:
        curve = load_newest(*args)
        began.append(time.perf_counter())
        return curve

    return load


LABELS = (
    "loss",
    "teacher forwards",
    "student forwards",
    "backwards",
    "optimizer",
    "communication",
    "data",
    "checkpoint",
    "export",
    "step",
)
"""The innermost around an operation is where its time is booked."""


def add_up(profiler: Any) -> dict[str, float]:
    """Return seconds by label; of those with matrix products also those of the products alone."""
    totals: Counter[str] = Counter()
    for event in profiler.events():
        around = event
        while around is not None and around.name not in LABELS:
            around = around.cpu_parent
        if around is None:
            continue
        seconds = event.self_cpu_time_total * 1e-6
        totals[around.name] += seconds
        if event.name.startswith(PRODUCTS):
            totals[f"{around.name}: products"] += seconds
    return dict(totals)


if __name__ == "__main__":
    main()
