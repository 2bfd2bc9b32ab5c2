"""Arrays of blocks on disk: one safetensors file, written as its parts come."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
"""By name, each [num_blocks, ...], as many blocks in all of them."""

DTYPES = {"int32": "I32", "float32": "F32", "uint8": "U8"}
"""The format's names, by numpy's."""


def write_arrays(parts: Iterable[Arrays], path: Path) -> int:
    """Join parts along their first dimension and write them; one part is in memory at a time.

    Returns:
        num_blocks.
    """
    shapes: dict[str, tuple[np.dtype[Any], list[int]]] = {}
    num_blocks = 0
    with ExitStack() as opened:
        files: dict[str, BinaryIO] = {}
        for part in parts:
            for name, array in part.items():
                if name not in files:
                    files[name] = opened.enter_context(piece(path, name).open("wb"))
                    shapes[name] = array.dtype, list(array.shape[1:])
                files[name].write(array.tobytes())
            num_blocks += len(next(iter(part.values())))
    # The widest first, so that each begins at a multiple of its own size.
    names = sorted(shapes, key=lambda name: -shapes[name][0].itemsize)
    with path.open("wb") as out:
        out.write(make_header({n: (shapes[n][0], [num_blocks, *shapes[n][1]]) for n in names}))
        for name in names:
            with piece(path, name).open("rb") as data:
                shutil.copyfileobj(data, out, 1 << 20)
            piece(path, name).unlink()
    return num_blocks


def piece(path: Path, name: str) -> Path:
    return path.with_suffix(f".{name}")


def make_header(arrays: Mapping[str, tuple[np.dtype[Any], list[int]]]) -> bytes:
    """Return what begins the file: the size of a JSON header, and the header, padded to 8 bytes.

    Reference: the format's own description, github.com/huggingface/safetensors, "Format".
    """
    header, begin = {}, 0
    for name, (dtype, shape) in arrays.items():
        end = begin + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype.name], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
