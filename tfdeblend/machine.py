"""The memory of this machine."""

from __future__ import annotations

import os
from pathlib import Path

MEMORY_SHARE = 0.8  # of it, that a fit, or the workers of a local cluster together, may take


def machine_memory() -> float:
    """Measure the memory of this machine, in GB, or what a container is given of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    given = Path("/sys/fs/cgroup/memory.max")
    text = given.read_text().strip() if given.is_file() else ""
    return min(whole, int(text) / 1e9) if text.isdigit() else whole
