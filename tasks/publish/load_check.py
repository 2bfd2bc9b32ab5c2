"""The load gate: before anything is published, plain transformers must load it and agree."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.models.folder import PACKED_ABOUT
from tasks.publish.loader_process import LoaderProcess
from tasks.records import ModelRef, Record

TOLERANCE = 0.01
"""Relative difference in nats/token; casts to bfloat16 stay an order of magnitude below."""


LOGIT_TOLERANCE = 0.05
"""Largest difference of a logit, relative to the largest logit; in bfloat16 and on another device
it stays some roundings of 0.4%."""


class Probe(Record):
    """A few held-out windows, or rows, and what the model in memory made of them."""

    ids: list[list[int]]
    """[num_windows, window]; every token but a window's first is scored. Of any other head than a
    causal language model's: one row each, without padding."""
    nats_per_token: float | None = None
    """None where `logits` are held against each other in its place."""
    token_type_ids: tuple[list[int], ...] = ()
    """As `ids`; empty where the model takes none."""
    logits: tuple[list[float], ...] = ()
    """Of each row: of a classifier [num_labels], of a question-answering model the start logits,
    then the end logits [2 T], of a masked language model [T V]."""


class LoadEvidence(Record):
    """What a fresh process found when it loaded the artifact."""

    architecture: str
    nats_per_token: float | None = None
    """None where logits were held against each other in its place."""
    reference_nats_per_token: float | None = None
    """Of the model in memory, on the same windows."""
    logit_error: float | None = None
    """Largest difference from the logits of the model in memory, relative to the largest."""
    num_windows: int
    versions: dict[str, str]
    loader: str = "transformers"
    """What loaded it; `nightpress` where the layout is our own."""


def check_loads(
    folder: Path,
    model: ModelRef,
    probe: Probe,
    trust_remote_code: bool = False,
    loader: LoaderProcess | None = None,
) -> LoadEvidence:
    """Load a folder with plain `from_pretrained` in a process of its own, or with nightpress's
    loader where the layout is its own.

    Args:
        trust_remote_code: Run the Python files that come with it, as the recipe says.
        loader: The process; None is one for this model alone.

    Raises:
        CheckpointError: it does not load, weights are missing or left over, the parameters are
            not as many as the record says, or the loss, or the logits, are not those of the model
            in memory.
    """
    with nullcontext(loader) if loader else LoaderProcess() as process:
        try:
            found = process.ask(
                folder=str(folder.resolve()),
                ids=probe.ids,
                token_type_ids=probe.token_type_ids,
                trust_remote_code=trust_remote_code,
            )
        except CheckpointError as error:
            reader = "nightpress" if (folder / PACKED_ABOUT).is_file() else "plain transformers"
            raise CheckpointError(f"load gate: {reader} cannot load it: {error}") from None
    for kind in ("missing", "unexpected", "mismatched"):
        if found[kind]:
            names = ", ".join(found[kind][:3])
            raise CheckpointError(
                f"load gate: {len(found[kind])} {kind} weights, {names}; the model that "
                "transformers builds from config.json is not the one that was saved"
            )
    if not found["quantized"] and found["num_parameters"] != model.num_parameters:
        raise CheckpointError(
            f"load gate: expected {model.num_parameters:,} parameters, the loaded model has "
            f"{found['num_parameters']:,}"
        )
    if (found["vocabulary"] or 0) > found["embedding_rows"]:
        raise CheckpointError(
            f"load gate: the tokenizer has {found['vocabulary']:,} tokens, the model embeds "
            f"{found['embedding_rows']:,}"
        )
    return LoadEvidence(
        architecture=found["architecture"],
        **compare_logits(found, probe) if probe.logits else compare_nats(found, probe),
        num_windows=len(probe.ids),
        versions=found["versions"],
        loader=found["loader"],
    )


def compare_nats(found: dict[str, Any], probe: Probe) -> dict[str, float]:
    """Return what the evidence says of the loss. Raises: CheckpointError: it is another."""
    nats, expected = found["nats_per_token"], probe.nats_per_token
    assert expected is not None
    if not abs(nats - expected) <= TOLERANCE * expected:
        raise CheckpointError(
            f"load gate: expected {expected:.4f} nats/token as in memory, the loaded model gives "
            f"{nats:.4f} on the same {len(probe.ids)} windows"
        )
    return {"nats_per_token": nats, "reference_nats_per_token": expected}


def compare_logits(found: dict[str, Any], probe: Probe) -> dict[str, float]:
    """Return what the evidence says of the logits. Raises: CheckpointError: they are others."""
    pairs = [
        pair
        for row, expected in zip(found["logits"], probe.logits, strict=True)
        for pair in zip(row, expected, strict=True)
    ]
    largest = max(abs(expected) for _, expected in pairs)
    error = max(abs(logit - expected) for logit, expected in pairs) / (largest or 1.0)
    if not error <= LOGIT_TOLERANCE:
        raise CheckpointError(
            f"load gate: expected the logits of the model in memory, up to {largest:.4g}, the "
            f"loaded model's differ by {error:.1%} of that on the same {len(probe.ids)} rows"
        )
    return {"logit_error": error}
