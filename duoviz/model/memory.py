"""What the C library does with freed memory: keep it, where the next step takes blocks of the same sizes."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4


@lru_cache
def keep_freed(*, large: bool = False) -> None:
    """Let the C library keep what is freed, for the whole process; only glibc has the setting.

    Blocks that go back to the system are mapped and cleared again each time: a fifth of a search, which takes and frees some MB
    layer after layer, and a quarter to a third of a training step, whose logits have some 100 MB.

    Args:
        large: blocks above 32 MB too: the process may then hold more than it uses.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(*((MMAP_MAX, 0) if large else (MMAP_THRESHOLD, 2**25)))  # more than 2**25 not every version takes
        mallopt(TRIM_THRESHOLD, 2**30)
