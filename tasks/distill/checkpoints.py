"""Training checkpoints in the store: each rank's DeepSpeed files, complete once a marker says so.

    checkpoints/<step>/<launch>/<rank>/...     what DeepSpeed saved; rank 0's with loss_curve.json
    checkpoints/<step>.json                    created last, create-only: names the files above

Each launch of the group has an id of its own, so ranks that outlive their driver for a moment
never mix their files with those of the next launch. DeepSpeed pickles its files; they are read
only where their digests are those that the marker names. ZeRO's files are of the ranks that wrote
them: another number of ranks converts them first (`resharding.py`).
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from tasks.digests import digest_file, list_files
from tasks.distill.resharding import convert, load_universal, shared_folder
from tasks.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infra.storage import Store

TAG = "state"
"""DeepSpeed's name for the folder that it writes."""
CURVE = "loss_curve.json"
NUM_KEPT = 2
"""Newest checkpoints that are kept, the best one besides."""


def upload_folder(store: Store, folder: Path, prefix: str) -> dict[str, str]:
    """Put a folder's files below `prefix`; return their sha256 by key."""
    files = {f"{prefix}/{path}": folder / path for path in list_files(folder)}
    for key, path in files.items():
        store.put_file(path, key)
    return {key: digest_file(path) for key, path in files.items()}


def download_files(store: Store, files: dict[str, str], prefix: str, folder: Path) -> None:
    """Fetch those files that lie below `prefix` into `folder`.

    Raises:
        CheckpointError: one is not what its digest says.
    """
    for key, digest in files.items():
        if key.startswith(f"{prefix}/"):
            path = folder / key.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(key, path)
            if digest_file(path) != digest:
                raise CheckpointError(
                    f"{store.uri}/{key} is not what was written",
                    "delete the .json beside its checkpoint's folder to go on from an older one",
                )


def save_checkpoint(
    engine: Any,
    store: Store,
    prefix: str,
    launch: str,
    curve: list[dict[str, Any]],
    every_steps: int,
) -> None:
    """Save the state after `len(curve)` steps; called on all ranks, and all take part.

    Args:
        prefix: The stage's folder in the store.
        launch: Id of this launch of the group, the same on all ranks.
        every_steps: Steps between checkpoints.
    """
    name = f"{prefix}/checkpoints/{len(curve):08d}"
    with tempfile.TemporaryDirectory(prefix="nightpress-") as folder:
        engine.save_checkpoint(folder, tag=TAG, save_latest=False)
        if dist.get_rank() == 0:
            (Path(folder) / TAG / CURVE).write_text(json.dumps(curve))
        shard = rank_folder(name, launch, dist.get_rank())
        uploaded = upload_folder(store, Path(folder) / TAG, shard)
    shards: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(shards, uploaded)  # all have arrived
    if dist.get_rank() == 0:
        files = {key: digest for shard in shards for key, digest in shard.items()}
        marker = {"launch": launch, "world_size": len(shards), "files": files}
        store.create(f"{name}.json", json.dumps(marker, indent=1).encode())
        delete_older(store, prefix, curve, every_steps)


def load_newest(engine: Any, store: Store, prefix: str) -> list[dict[str, Any]]:
    """Load the newest complete checkpoint, the same on all ranks; return its loss curve.

    It may be of more ranks or of fewer.

    The curve has an entry for each step done; it is empty where there is no checkpoint yet.
    """
    found = [newest_marker(store, prefix) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    if found[0] is None:
        return []
    name = found[0].removesuffix(".json")
    marker = json.loads(store.read(found[0]))
    # Without ZeRO every rank has the whole state, and rank 0's file is enough for any other.
    same_ranks = marker["world_size"] == dist.get_world_size() or not engine.zero_optimization()

    def fetch(ranks: Iterable[int], folder: Path) -> None:
        for rank in ranks:
            shard = rank_folder(name, marker["launch"], rank)
            download_files(store, marker["files"], shard, folder / TAG)

    with tempfile.TemporaryDirectory(prefix="nightpress-") as temporary:
        folder = own = Path(temporary)
        if same_ranks:
            fetch({0, dist.get_rank()}, folder)  # rank 0's has the weights, the own the optimiser
            engine.load_checkpoint(str(folder), tag=TAG)
        else:
            folder = shared_folder(own)
            if folder == own:
                fetch(range(marker["world_size"]), folder)
                convert(folder, TAG)
            dist.barrier()
            load_universal(engine, folder)
        curve: list[dict[str, Any]] = json.loads((folder / TAG / CURVE).read_text())
        dist.barrier()  # nobody removes what another still reads
    return curve


def rank_folder(name: str, launch: str, rank: int) -> str:
    return f"{name}/{launch}/{rank:05d}"


def newest_marker(store: Store, prefix: str) -> str | None:
    """Return the key of the newest complete checkpoint's marker."""
    return max(_markers(store, prefix), default=None)


def best_marker(
    store: Store, prefix: str, curve: list[dict[str, Any]], every_steps: int
) -> tuple[str, float] | None:
    """Return the key of the best checkpoint's marker, and its loss: the mean over the steps that
    were taken from there to the next one. The newest, from which none was, is not among them."""
    losses = {}
    for key in _markers(store, prefix):
        after = [point["loss"] for point in curve[steps_of(key) :][:every_steps]]
        if after and math.isfinite(sum(after)):
            losses[key] = sum(after) / len(after)
    return min(losses.items(), key=lambda item: (item[1], item[0]), default=None)


def steps_of(marker: str) -> int:
    """Return the steps after which a checkpoint was saved."""
    return int(marker.rpartition("/")[2].removesuffix(".json"))


def _markers(store: Store, prefix: str) -> list[str]:
    keys = store.list(f"{prefix}/checkpoints/")
    return [key for key in keys if re.fullmatch(r"\d{8}\.json", key.rpartition("/")[2])]


def delete_older(store: Store, prefix: str, curve: list[dict[str, Any]], every_steps: int) -> None:
    """Delete all checkpoints, complete or not, that are older than the newest NUM_KEPT; of them
    the best one stays."""
    newest = sorted(_markers(store, prefix))[-NUM_KEPT:]
    best = best_marker(store, prefix, curve, every_steps)
    delete_checkpoints(store, prefix, before=newest[0], spared=best[0] if best else None)


def delete_checkpoints(
    store: Store, prefix: str, before: str = "~", spared: str | None = None
) -> None:
    """Delete every key below `checkpoints/` that sorts before `before`; markers go first.

    Args:
        spared: Marker of a checkpoint that stays.
    """
    stays = (spared, f"{spared.removesuffix('.json')}/") if spared else ()
    keys = store.list(f"{prefix}/checkpoints/")
    older = [key for key in keys if key < before and not key.startswith(stays)]
    for key in sorted(older, key=lambda key: not key.endswith(".json")):
        store.delete(key)
