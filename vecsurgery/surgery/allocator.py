"""One setting of the C allocator that keeps peak memory the same however many layers a model has."""

import ctypes
import os
import sys

_MMAP_THRESHOLD = -3
"""glibc's number for M_MMAP_THRESHOLD."""
THRESHOLD = 1 << 23
"""Bytes from which memory goes back to the system at once: 8 MiB."""


def return_large_blocks() -> bool:
    """Have glibc map blocks of 8 MiB and more one by one, so that a freed one leaves the process at once.

    glibc raises this limit to 32 MiB by itself as blocks are freed; tensors below it then share heaps, which
    fragment: measured, 3 to 10 MB more for every layer that passed, none with a fixed limit, in the same time.
    The setting holds for the whole process. A limit that the user gave (MALLOC_MMAP_THRESHOLD_) stays.

    Returns whether it was set: False elsewhere than under glibc.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, THRESHOLD) == 1
