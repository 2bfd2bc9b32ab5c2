"""A wall clock that jumps when the file that JUMPING_CLOCK names says by how many seconds.

For every Python process that has this folder on its PYTHONPATH, in `time.time()`: by it leases are
renewed and judged, and gc tells how old things are. Clocks that measure durations do not jump, as
they do not on a real machine.
"""

import os
import time
from pathlib import Path

FILE = Path(os.environ["JUMPING_CLOCK"])
real_time = time.time


def wrong_time() -> float:
    try:
        return real_time() + float(FILE.read_text())
    except (FileNotFoundError, ValueError):  # not yet, or being written
        return real_time()


time.time = wrong_time
