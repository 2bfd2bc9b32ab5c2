"""Other libraries' progress bars, kept off the terminal."""

from __future__ import annotations

from functools import cache, wraps
from typing import Any


@cache
def hide_progress_bars() -> None:
    """Let no tqdm of whatever library draw a bar in this process any more.

    compressed-tensors, which draws in a model's first forward pass, too, and transformers' reader
    of GGUF take the class itself and heed no setting.
    """
    from tqdm import std

    original = std.tqdm.__init__

    @wraps(original)
    def begin(bar: Any, *args: Any, **kwargs: Any) -> None:
        original(bar, *args, **kwargs | {"disable": True})

    std.tqdm.__init__ = begin
