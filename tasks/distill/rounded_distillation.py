"""The distill stage of an export: the student is trained through the export's own rounding."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.distill.distillation import distill
from tasks.distill.rounding import round_in_forward
from tasks.quantize.decoder_blocks import check_layout, find_layout
from tasks.records import CorpusRef, ModelRef, TeacherLogitsRef

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace


def distill_rounded(
    space: StageSpace,
    options: dict[str, Any],
    *,
    teacher: ModelRef,
    student: ModelRef,
    corpus: CorpusRef,
    teacher_logits: TeacherLogitsRef | None = None,
) -> ModelRef:
    """Distill as `distill` does, through the rounding that `options["rounding"]` describes.

    The trained latent weights are written to `space.out`, unrounded.

    Raises:
        ValueError: the rounding does not fit the student's shape; and what `distill` raises.
        CheckpointError: the student's checkpoint is not what its config says.
    """
    source, rounding = space.local(student.uri), options["rounding"]
    layout = find_layout(source, options["trust_remote_code"])
    check_layout(source, layout, rounding["method"], rounding["options"].get("group_size"))
    return distill(
        space,
        options,
        teacher=teacher,
        student=student,
        corpus=corpus,
        teacher_logits=teacher_logits,
        prepare=partial(round_in_forward, rounding),
    )
