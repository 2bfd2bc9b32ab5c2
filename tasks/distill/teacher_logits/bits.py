"""Streams of bits in bytes: fields of any width, and numbers in unary. Bit i is bit i % 8 of byte
i // 8, the least significant first.

M is the number of fields or numbers.
"""

import numpy as np
from numpy.typing import NDArray

MAX_WIDTH = 25
"""Bits of the widest field: wherever it begins in a byte, it ends within four."""
WINDOW = range(4)
"""Bytes that a field may touch."""


def pack_fields(values_M: NDArray[np.int64], widths_M: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Write each value in as many bits as its width says, one behind the other."""
    assert widths_M.max(initial=0) <= MAX_WIDTH
    ends_M = np.cumsum(widths_M)
    starts_M = ends_M - widths_M
    num_bytes = (int(ends_M[-1]) + 7) // 8 if len(ends_M) else 0
    shifted_M = values_M << (starts_M & 7)
    stream = np.zeros(num_bytes + len(WINDOW))
    for byte in WINDOW:  # fields share bytes but no bit, so that a sum is their union
        part_M = shifted_M >> 8 * byte & 255
        stream += np.bincount((starts_M >> 3) + byte, part_M, len(stream))
    return stream[:num_bytes].astype(np.uint8)


def unpack_fields(stream: NDArray[np.uint8], widths_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the values that `pack_fields` wrote."""
    starts_M = np.cumsum(widths_M) - widths_M
    padded = np.pad(stream, (0, len(WINDOW))).astype(np.int64)
    window_M = np.zeros_like(starts_M)
    for byte in WINDOW:
        window_M |= padded[(starts_M >> 3) + byte] << 8 * byte
    values_M: NDArray[np.int64] = window_M >> (starts_M & 7) & (1 << widths_M) - 1
    return values_M


def pack_unary(numbers_M: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Write each number as so many zeros and a one."""
    ones_M = np.cumsum(numbers_M + 1) - 1
    stream = np.zeros(int(ones_M[-1]) + 1 if len(ones_M) else 0, dtype=np.uint8)
    stream[ones_M] = 1
    return np.packbits(stream, bitorder="little")


def unpack_unary(stream: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the numbers that `pack_unary` wrote."""
    ones_M = np.flatnonzero(np.unpackbits(stream, bitorder="little"))
    return np.diff(ones_M, prepend=-1) - 1
