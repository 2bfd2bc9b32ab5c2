"""Floating-point operations of a stage, by arithmetic from its options and records."""

from __future__ import annotations

from typing import Any

from tasks.stage import Stage

HALF = ("bfloat16", "float16")
ALL_OTHERS = ""
"""In place of the groups of units that are not named: their work grows together."""


def count_operations(stage: Stage) -> dict[str, float]:
    """Count 2 for each parameter and token forwards, 6 with the backward pass, by group of units.

    Empty for a stage that runs no model, or whose text is not there yet to be counted.

    Reference: Kaplan et al. 2020, arXiv 2001.08361, section 2.1.
    """
    options: dict[str, Any] = stage.options
    inputs = stage.inputs
    calibration_tokens = options.get("num_windows", 0) * options.get("window", 0)
    if stage.name in ("source", "label"):
        sampled: int = options["options"].get("num_tokens", 0)
        if "teacher" not in inputs or not sampled:
            return {}
        operations = 2 * inputs["teacher"].num_parameters * sampled
    elif stage.name == "prune":
        sweep = options["num_submodels"] * options["windows_per_submodel"] * options["window"]
        sweep *= 4 if options["repair"] else 1  # repaired on twice as many windows
        others = 4 * calibration_tokens
        if options["budget"]:  # four kinds at four levels, on all windows with the repair's
            others += 16 * calibration_tokens
        if options["shape"] != "uniform":  # about 30 layers of two sublayers at two widths
            others += 120 * calibration_tokens
        per_token = 2.0 * inputs["model"].num_parameters
        return {"sweep": per_token * sweep, ALL_OTHERS: per_token * others}
    elif stage.name == "teacher_logits":
        num_blocks = getattr(inputs["corpus"], "num_blocks", None)
        if num_blocks is None:
            return {}
        num_tokens = num_blocks * inputs["corpus"].block_tokens
        operations = 2 * inputs["teacher"].num_parameters * num_tokens
    elif stage.name == "distill":
        is_run = options["teacher"] == "online"
        per_token = 6 * inputs["student"].num_parameters
        per_token += 2 * inputs["teacher"].num_parameters * is_run
        operations = per_token * options["num_tokens"]
    elif stage.name == "quantize":
        operations = 4 * inputs["model"].num_parameters * calibration_tokens
    elif stage.name == "evaluate":
        operations = 2 * inputs["model"].num_parameters * inputs["text"].num_bytes // 4
    elif stage.name == "inspect":  # a window at the most of each of 14 documents
        operations = 2 * inputs["model"].num_parameters * 14 * options["window"]
    else:
        return {}
    return {ALL_OTHERS: float(operations)}


def computes_in_half(stage: Stage) -> bool:
    """Tell whether most of a stage's matrix products are in 16 bits."""
    return stage.name == "distill" and stage.options["dtype"] in HALF
