"""What would make an export fail hours later, found from the teacher's folder alone."""

from __future__ import annotations

from pathlib import Path

from tasks.models.folder import load_config
from tasks.quantize.decoder_blocks import check_shapes, find_layout
from tasks.quantize.pairing import check_source
from tasks.recipe import Export, Recipe


def check_export(folder: Path, recipe: Recipe, export: Export) -> None:
    """Hold an export against the teacher, from whose family no step departs, and the calibration.

    Where there is a prune step it aligns the widths that it may cut, so the hidden size alone is
    held against the group size.

    Raises:
        ValueError: the export would fail.
    """
    check_source(export.format, folder)
    mixed, num_windows = export.mixed_precision, recipe.calibration.num_windows
    if mixed and mixed.num_windows >= num_windows:
        raise ValueError(
            f"mixed_precision: num_windows is {mixed.num_windows}, calibration.num_windows "
            f"{num_windows}; widths are measured on other windows than the method is fitted to: "
            f"ask for at most {num_windows - 1}"
        )
    layout = find_layout(folder, recipe.teacher.trust_remote_code)
    prunes = any(step.prune for step in recipe.steps)
    check_shapes(layout, export.method, None if prunes else export.options.get("group_size"))
    width = load_config(folder).get("hidden_size")
    if width and width % export.group_size:
        raise ValueError(f"group_size must divide hidden_size {width}, got {export.group_size}")
