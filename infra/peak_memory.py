"""The most memory that this process has held, where it computes."""

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

KIB = 1024


def reset_peak() -> None:
    """Let the peak begin anew, from what is held now.

    What has been freed goes back to the system first: glibc keeps hundreds of megabytes after a
    stage, which would count as the next one's. Where the kernel does not let a peak begin anew,
    that of the process's whole life goes on.
    """
    gc.collect()
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if (cuda := _cuda()) is not None:
        for index in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(index)


def read_peak() -> int:
    """Return bytes since `reset_peak`: on GPUs what tensors took, summed over the cards; else the
    resident set, which holds libraries and mapped files as well."""
    if (cuda := _cuda()) is not None:
        return sum(cuda.max_memory_allocated(index) for index in range(cuda.device_count()))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def _cuda() -> Any:
    """Return `torch.cuda` where it is in use; nothing is imported for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None
