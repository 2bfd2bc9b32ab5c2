"""The quantize stage: block after block through a method, then all of it into a format."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.corpus.text import calibration_windows
from tasks.models.checkpoint import describe_model, load_tokenizer
from tasks.models.folder import copy_companions
from tasks.models.quantized_tensor import QuantizedTensor, from_bytes, to_bytes
from tasks.plugins import load_plugin, plugin_constant
from tasks.quantize.block import Block, Quantized
from tasks.quantize.block_work import BlockWork, Part, read_block
from tasks.quantize.calibration import Prefix, advance, enter_model, put_weights
from tasks.quantize.checkpoint_tensors import stored_bytes
from tasks.quantize.decoder_blocks import check_layout, find_layout
from tasks.quantize.mixed_precision import choose_widths
from tasks.quantize.pairing import check_source
from tasks.records import ModelRef, TextRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

GROUP = "layers"


def quantize_model(
    space: StageSpace, options: dict[str, Any], *, model: ModelRef, calibration: TextRef
) -> ModelRef:
    """Quantize the linear weights of a decoder's blocks and write the model in the export's format.

    A unit of work is one decoder block. With a method that needs calibration each block sees the
    blocks before it quantized, so one worker takes them in order; a worker that begins in the
    middle first puts the stored blocks in place.

    Raises:
        ValueError: the options do not fit the model's shape; a weight overflows the dtype.
        CheckpointError: the checkpoint is not what its config says.
        CorpusError: the calibration text is too short.
    """
    source = space.local(model.uri)
    check_source(options["format"], source)
    layout = find_layout(source, options["trust_remote_code"])
    check_layout(source, layout, options["method"], options["method_options"].get("group_size"))
    dtype = getattr(torch, options["dtype"])
    work = BlockWork(
        localize=space.localizer,
        model_uri=model.uri,
        method=options["method"],
        parts=[[Part(tuple(block), options["method_options"])] for block in layout.blocks],
        dtype=dtype,
        store=space.store,
        units=f"{space.prefix}/units/{GROUP}",
    )
    is_calibrated = plugin_constant("method", options["method"], "CALIBRATED")
    needs_text = is_calibrated or options["mixed_precision"]
    ids = read_windows(space.local(calibration.uri), source, options) if needs_text else None
    trusted = options["trust_remote_code"]
    enter = partial(enter_model, space.localizer, model.uri, trust_remote_code=trusted)
    about_widths: dict[str, str | int | float] = {}
    if ids is not None and options["mixed_precision"]:
        inside = {name for block in layout.blocks for name in block}
        rest = stored_bytes(source, dtype, without=inside)
        parts, about_widths = choose_widths(space, work, enter, layout.blocks, ids, rest, options)
        work = replace(work, parts=parts)
    results = space.compute_units(
        partial(quantize_block, work),
        list(range(len(layout.blocks))),
        partial(enter, ids) if is_calibrated else no_state,
        group=GROUP,
        num_workers=1 if is_calibrated else None,
    )
    tensors = {name: tensor for data in results for name, tensor in from_bytes(data).items()}
    kept = [name for block in layout.blocks for name in block if name not in tensors]
    unquantized = layout.others + [name.removesuffix(".weight") for name in kept]
    write = load_plugin("format", options["format"])
    facts = write(source, space.out, tensors, unquantized, dtype, **options["format_options"])
    copy_companions(source, space.out)
    facts |= summarize(list(tensors.values())) | about_widths
    return describe_model(space.out, space.output_uri(), model.num_parameters, **facts)


def read_windows(text: Path, source: Path, options: dict[str, Any]) -> torch.Tensor:
    """Return the calibration tokens, [num_windows, window]."""
    return calibration_windows(
        text, load_tokenizer(source), options["num_windows"], options["window"]
    )


def no_state() -> None:
    return None


def quantize_block(work: BlockWork, prefix: Prefix | None, index: int) -> bytes:
    """Return one block's quantized weights as bytes; without a prefix, from the weights alone."""
    if prefix is not None:
        while prefix.next_block < index:
            stored = work.store.read(f"{work.units}/{prefix.next_block:06d}")
            advance(prefix, from_bytes(stored))
    weights = read_block(work, index, "cpu" if prefix is None else prefix.model.device)
    quantize = load_plugin("method", work.method)
    done: Quantized = {}
    for names, options in work.parts[index]:
        own = {name: weights[name] for name in names}
        part = quantize(Block(own, work.dtype, prefix), **options)
        if prefix is not None:  # what comes later in the block sees it quantized
            put_weights(prefix, part)
        done |= part
    return to_bytes(done)


def summarize(tensors: list[QuantizedTensor]) -> dict[str, float]:
    """Return the mean of each fact over the weights that have it, and the largest damping."""
    facts: dict[str, float] = {}
    for name in sorted({name for tensor in tensors for name in tensor.facts}):
        values = [tensor.facts[name] for tensor in tensors if name in tensor.facts]
        if name == "damping":
            facts["max_damping"] = max(values)
        else:
            facts[f"mean_{name}"] = sum(values) / len(values)
    return facts
