"""The student is the incoming model's first layers, under the same final norm and head."""

from typing import Annotated

import numpy as np
from pydantic import Field

from tasks.models.depth import load_layers
from tasks.models.initializer_context import InitializerContext, Student

NEEDS_DECODER = False


def initialize(
    context: InitializerContext, *, num_layers: Annotated[int, Field(gt=0)] | None = None
) -> Student:
    """Keep layers 0 .. num_layers - 1.

    Args:
        num_layers: Of the student; half of the incoming model's, rounded up, where left out.

    Raises:
        ValueError: the incoming model has fewer layers, or stock code does not build the student.
    """
    return load_layers(context, num_layers, lambda number, whole: np.arange(number))
