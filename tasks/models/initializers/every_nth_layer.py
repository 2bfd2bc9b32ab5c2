"""The student has some of the incoming model's layers, evenly spread from the first to the last."""

from typing import Annotated

from pydantic import Field

from tasks.models.depth import load_layers, spread_evenly
from tasks.models.initializer_context import InitializerContext, Student

NEEDS_DECODER = False


def initialize(
    context: InitializerContext, *, num_layers: Annotated[int, Field(gt=0)] | None = None
) -> Student:
    """Keep layers round(i (L - 1) / (num_layers - 1)); of 12 for 6: 0, 2, 4, 7, 9, 11.

    Args:
        num_layers: Of the student; half of the incoming model's, rounded up, where left out.

    Raises:
        ValueError: the incoming model has fewer layers, or stock code does not build the student.

    Reference: Sanh et al. 2019, arXiv 1910.01108, section 3: "one layer out of two"; which of
    them is in the paper's code, scripts/extract_distilbert.py.
    """
    return load_layers(context, num_layers, spread_evenly)
