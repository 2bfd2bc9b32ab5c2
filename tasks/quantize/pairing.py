"""Which method goes with which format and runtime, as their files say; answered without torch."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.plugins import load_plugin, plugin_constant, plugin_names

Integers = Sequence[Mapping[str, Sequence[Any]]] | None
"""Which integer codes are taken: one of these sets of allowed options; None for all. An option that
the method does not have counts as None."""

VLLM_INTEGERS: Integers = (
    {
        "bits": (4, 8, None),
        "group_size": (32, 64, 128, None),
        "symmetric": (True, None),
        "dtype": ("float16", "bfloat16"),
    },
    {
        "bits": (4,),
        "group_size": (32, 64, 128, None),
        "symmetric": (False,),
        "dtype": ("float16", "bfloat16"),
    },
)
"""What vLLM's kernels for 4 and 8 bits take; zero points with 4 bits alone."""


def check_pair(method: str, export_format: str) -> None:
    """Make sure that a format can hold what a method makes.

    Raises:
        ValueError: it cannot; the message names the formats that can.
    """
    made = plugin_constant("method", method, "ENCODINGS")
    holders = [
        name.replace("_", "-")
        for name in plugin_names("format")
        if set(made) <= set(plugin_constant("format", name, "HOLDS"))
    ]
    if export_format.replace("_", "-") not in holders:
        raise ValueError(
            f"format {export_format} cannot hold what method {method} makes "
            f"({', '.join(made)}); choose from {holders}"
        )


def check_codes(
    method: str, options: Mapping[str, Any], export_format: str, runtime: str | None
) -> None:
    """Make sure that a format holds a method's integer codes and that a runtime reads the format.

    Args:
        options: The method's, and the export's `dtype` and `mixed_precision`.
        runtime: None where any that reads the format will do.

    Raises:
        ValueError: it does not.
    """
    readers = plugin_constant("format", export_format, "RUNTIMES")
    if runtime is not None and runtime not in readers:
        able = [
            name.replace("_", "-")
            for name in plugin_names("format")
            if runtime in plugin_constant("format", name, "RUNTIMES")
        ]
        raise ValueError(
            f"runtime {runtime} cannot read format {export_format}; choose from {able}"
        )
    if "integer" not in plugin_constant("method", method, "ENCODINGS"):
        return
    check_integers(
        f"format {export_format}", plugin_constant("format", export_format, "INTEGERS"), options
    )
    if runtime == "vllm" and export_format != "safetensors":  # there they are multiplied out
        check_integers("runtime vllm", VLLM_INTEGERS, options)


def check_integers(reader: str, taken: Integers, options: Mapping[str, Any]) -> None:
    """Hold options against what a reader takes; it tells what the nearest of its sets asks for."""
    if taken is None:
        return
    misses = [
        {name: allowed for name, allowed in asked.items() if options.get(name) not in allowed}
        for asked in taken
    ]
    nearest = min(misses, key=len)
    if nearest:
        wanted = "; ".join(f"{name}: {show(allowed)}" for name, allowed in nearest.items())
        got = ", ".join(f"{name}: {show([options.get(name)])}" for name in nearest)
        raise ValueError(f"{reader} takes integer codes with {wanted}; got {got}")


def show(values: Sequence[Any]) -> str:
    words = ["null" if value is None else str(value).lower() for value in values]
    return " or ".join(words)


def check_source(export_format: str, source: Path) -> None:
    """Let a format refuse a model before its weights are quantized; most formats take any.

    Raises:
        ValueError: the format cannot express the model.
    """
    module = sys.modules[load_plugin("format", export_format).__module__]
    if hasattr(module, "check"):
        module.check(source)
