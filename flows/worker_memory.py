"""What one worker of a stage holds at its peak, by arithmetic from config.json and the options.

On a GPU this is the card's memory, else the process's with its libraries. Counted are weights,
what a method sums up, activations kept for later, and logits: what grows with the model or with
the text. Files mapped into memory are not, where they may be dropped and read again
(`cluster.offload`, quantization): a measured resident set has them on top.
"""

from __future__ import annotations

import json
from typing import Any

from infra.storage import SCHEME, Store, localize
from tasks.distill_options import needs_a_teacher
from tasks.models.dimensions import Dimensions, read_dimensions
from tasks.plugins import plugin_constant
from tasks.recipe import Recipe
from tasks.records import ModelRef
from tasks.stage import Stage

LIBRARIES_BYTES = 580 * 10**6
"""Resident in a worker on a CPU that has run a tiny model once: measured, 577 MB."""
FLOAT = 4
DOUBLE = 8
TRAINING_BYTES = 16
"""Per parameter: weights, gradients and AdamW's two moments in float32, before ZeRO divides."""
BUCKET_ELEMENTS = 50_000_000
"""Gradients that are reduced at once."""
ACTIVATION_BYTES = 34
"""Per token, hidden dimension and layer with the backward pass, in 16 bits, but for attention's
own, which is computed again. Reference: Korthikanti et al. 2022, arXiv 2205.05198, equation 1."""
REPAIR_FLOATS = 3.5
"""Per token and width of a block that is repaired; measured (docs, "Memory")."""
REFINE_VECTORS = 14
"""As long as a feed-forward sublayer's kept weights."""
CRITERION_BYTES = 2**32
"""Most that the criterion `reconstruction` sums up at a time."""
LOSS_WINDOWS = 16
"""Calibration windows in one forward pass for the loss."""
LOGIT_COPIES = 3
"""The model's own, those of the scored tokens, and their log-softmax."""
CHUNK_LOGITS = 2**27
"""In training, most that a model's head makes at a time (kernels/chunked_kd)."""
SUBMODELS_PER_PASS, FIT_PER_SCORED = 3, 2
"""Sub-models side by side in the sweep; windows to repair on for each that scores."""
MEASURED_WINDOWS = 2
"""In one forward pass that measures what a width costs."""
SPEED_BATCH = 8
"""Windows in the batch whose speed is measured."""
FORWARD_LOGITS = 2**24
"""In one forward pass of a teacher that is stored, but for a single block that has more."""

SHARD_BYTES = 64 * 2**20
"""A shard of the corpus's rows as Python objects, with its tokens: 4,096 rows of 2 kB or so."""

HALF = ("bfloat16", "float16")


def estimate_peak(recipe: Recipe, stage: Stage, teacher: ModelRef, store: Store) -> int | None:
    """Return the bytes that one worker holds at the most; None where config.json does not tell.

    A model that is not there yet has the teacher's widths, and is stored in float32.
    """
    model = stage.inputs.get("model") or stage.inputs.get("student") or teacher
    size = measure(model, store)
    whole = measure(teacher, store)
    if size is None or whole is None:
        return None
    if model.uri == teacher.uri and model.digest != teacher.digest:
        size = size._replace(dtype="float32")
    options = stage.options
    if stage.name == "prune":
        held = prune_bytes(options, size, stage.execution["offload"] == "layers")
    elif stage.name == "quantize":
        held = quantize_bytes(options, size)
    elif stage.name == "distill":
        held = distill_bytes(options, size, whole, recipe.corpus.block_tokens)
    elif stage.name == "teacher_logits":
        held = teacher_logits_bytes(whole, recipe.corpus.block_tokens)
    elif stage.name in ("evaluate", "inspect"):
        held = evaluate_bytes(options, size)
    elif stage.name in ("source", "label") and "teacher" in stage.inputs:
        held = FLOAT * size.num_parameters  # the teacher writes or reads text
    else:
        held = SHARD_BYTES
    return held + (0 if recipe.cluster.gpus_per_worker else LIBRARIES_BYTES)


def measure(model: ModelRef, store: Store) -> Dimensions | None:
    if model.uri.startswith(SCHEME):
        data = store.read(f"{model.uri.removeprefix(SCHEME)}/config.json")
    else:
        data = (localize(store, model.uri) / "config.json").read_bytes()
    return read_dimensions(json.loads(data), model.num_parameters)


def prune_bytes(options: dict[str, Any], size: Dimensions, is_streamed: bool) -> int:
    """The model in float32 (its embeddings and one block where it is streamed), and the most of

    - the look: logits, the criterion's sums over tokens;
    - the sweep: the repair's activations for the sub-models side by side, their logits;
    - the cut: the new weights of all blocks, with the repair of one block, or with the smaller
      model and its logits.
    """
    window: int = options["window"]
    sums = 0
    if options["criterion"]["name"] == "reconstruction":
        grams = FLOAT * size.num_layers * (size.hidden**2 + size.ffn**2)
        sums = min(grams, CRITERION_BYTES)
    logits = LOSS_WINDOWS * window * size.vocabulary * LOGIT_COPIES * FLOAT
    kept = kept_fraction(options)
    smaller = round(FLOAT * size.num_parameters * kept)
    per_token = round(REPAIR_FLOATS * FLOAT * (size.ffn + 2 * size.hidden))
    scored: int = options["windows_per_submodel"] * window
    sweep = SUBMODELS_PER_PASS * scored * size.vocabulary * LOGIT_COPIES * FLOAT
    changed = fit = 0
    if options["repair"]:
        rows = FIT_PER_SCORED + SUBMODELS_PER_PASS * (FIT_PER_SCORED + 1)
        sweep += rows * scored * per_token
        changed = FLOAT * size.num_layers * size.block
        tokens: int = options["num_windows"] * window
        fit = 2 * tokens * per_token + repair_bytes(options, size, kept)
    if options["method"] == "criterion":
        sweep = 0
    model = FLOAT * (size.outside + size.block if is_streamed else size.num_parameters)
    return model + max(sums + logits, sweep, changed + max(fit, smaller + logits))


def repair_bytes(options: dict[str, Any], size: Dimensions, kept: float) -> int:
    """One block's normal equations, matrix and factor, and what refines its feed-forward part."""
    width = round(size.ffn * kept)
    equations = 2 * DOUBLE * ((size.hidden + 1) ** 2 + (width + 1) ** 2)
    refined = REFINE_VECTORS * 3 * size.hidden * width * FLOAT if options["refine"] else 0
    return equations + refined


def kept_fraction(options: dict[str, Any]) -> float:
    """Return how much of an FFN's width stays; all of it where only the run will tell."""
    sparsity = options["sparsity"]
    if sparsity is None:
        return 1.0
    return 1 - float(sparsity["ffn"] if isinstance(sparsity, dict) else sparsity)


def quantize_bytes(options: dict[str, Any], size: Dimensions) -> int:
    """One block's weights in float32, as they are read, and as codes before they are packed.

    A method that looks at text also holds embeddings and head, the block that computes, the text's
    stream before and after a block, the block's Hessians in float64, and of the largest input three
    matrices in float32 and what rounding keeps of its weight: what GPTQ needs. `layer_distill`
    trains one block, which takes 16 bytes for each of its weights on top.
    """
    block = FLOAT * size.block
    if not (
        plugin_constant("method", options["method"], "CALIBRATED") or options["mixed_precision"]
    ):
        return 3 * block
    widest = max(size.hidden, size.ffn)
    window: int = options["window"]
    num_windows: int = options["num_windows"]
    stream = num_windows * window * size.hidden * FLOAT
    inputs = 2 * size.hidden**2 + size.num_experts * (size.hidden**2 + size.ffn**2)
    hessians = DOUBLE * inputs
    rounding = FLOAT * (3 * widest**2 + 5 * size.hidden * size.ffn)
    held = FLOAT * size.outside + 2 * block + 2 * stream + hessians + rounding
    if options["mixed_precision"]:
        logits = MEASURED_WINDOWS * window * size.vocabulary
        held += 2 * LOGIT_COPIES * FLOAT * logits
    return held


def distill_bytes(
    options: dict[str, Any], size: Dimensions, teacher: Dimensions, block_tokens: int
) -> int:
    """The student with gradients and optimiser, the teacher where it is run, and of one
    micro-batch the student's activations and some tokens' logits."""
    bytes_each = 2 if options["dtype"] in HALF else FLOAT
    tokens: int = options["micro_batch_blocks"] * block_tokens
    student = TRAINING_BYTES * size.num_parameters + FLOAT * min(
        BUCKET_ELEMENTS, size.num_parameters
    )
    per_layer = ACTIVATION_BYTES * bytes_each // 2 * size.hidden
    logits = LOGIT_COPIES * FLOAT * min(tokens * size.vocabulary, CHUNK_LOGITS)
    held = student + tokens * size.num_layers * per_layer + logits
    looks_at_it = any(needs_a_teacher(loss["name"]) for loss in options["losses"])
    if looks_at_it and options["teacher"] == "online":
        held += bytes_each * teacher.num_parameters
    return held


def teacher_logits_bytes(teacher: Dimensions, block_tokens: int) -> int:
    """The teacher in the type that it is stored in, the logits of one forward pass, and of one
    block their log-softmax and its copies."""
    bytes_each = 2 if teacher.dtype in HALF else FLOAT
    block = block_tokens * teacher.vocabulary
    return bytes_each * (teacher.num_parameters + max(FORWARD_LOGITS, block)) + (
        LOGIT_COPIES * FLOAT * block
    )


def evaluate_bytes(options: dict[str, Any], size: Dimensions) -> int:
    """The model in the type that it is stored in, packed weights multiplied out; and of the batch
    whose speed is measured the logits and one block's activations."""
    bytes_each = 2 if size.dtype in HALF else FLOAT
    tokens: int = SPEED_BATCH * options["window"]
    in_flight = tokens * (size.vocabulary + 3 * size.ffn + 4 * size.hidden)
    return bytes_each * (size.num_parameters + in_flight)
