"""The end of a training: the student goes to the store."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tasks.distill.adapters import merge
from tasks.distill.checkpoints import delete_checkpoints, upload_folder
from tasks.distill.engine import restore_parameters
from tasks.distill.job import TrainingJob
from tasks.distill.loading import Models
from tasks.distill.progress import ProgressWriter
from tasks.models.checkpoint import save_model


def store_student(
    job: TrainingJob,
    models: Models,
    launch: str,
    curve: list[dict[str, Any]],
    progress: ProgressWriter,
) -> None:
    """Store the trained student and its loss curve from rank 0; called on all ranks.

    `trained.json` comes last, create-only. What only the training needed, such as a projection of
    hidden states, is left behind.
    """
    restore_parameters(models.student)
    if dist.get_rank() > 0:
        return
    student = merge(models.student, models.reload)
    with tempfile.TemporaryDirectory(prefix="nightpress-") as folder:
        save_model(student, job.localize(job.student_uri), Path(folder))
        files = upload_folder(job.store, Path(folder), f"{job.prefix}/student/{launch}")
    points = {"tokens_per_s": progress.tokens_per_s(curve), "points": curve}
    job.store.write(f"{job.prefix}/loss_curve.json", json.dumps(points).encode())
    last = curve[-max(1, len(curve) // 10) :]
    trained = {
        "folder": f"{job.prefix}/student/{launch}",
        "files": files,
        "nodes": progress.nodes,
        "initial_loss": curve[0]["loss"],
        "final_loss": sum(point["loss"] for point in last) / len(last),
        "facts": models.facts,
    }
    job.store.create(f"{job.prefix}/trained.json", json.dumps(trained, indent=1).encode())
    delete_checkpoints(job.store, job.prefix)
