"""The memory of this machine, and what this process has of it."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

MEMORY_SHARE = 0.8  # of it, that a fit, or the workers of a local cluster together, may take


def machine_memory() -> float:
    """Measure the memory of this machine, in GB, or what a container is given of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    given = Path("/sys/fs/cgroup/memory.max")
    text = given.read_text().strip() if given.is_file() else ""
    return min(whole, int(text) / 1e9) if text.isdigit() else whole


def release_memory() -> None:
    """Give the memory that nothing uses back to the machine, where the C library can do that."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
