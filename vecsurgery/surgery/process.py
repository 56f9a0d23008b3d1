"""Settings of the process that a run needs: how memory is taken and given back, and who computes on which core."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_MMAP_THRESHOLD = -3
"""glibc's number for M_MMAP_THRESHOLD."""
_TRIM_THRESHOLD = -1
"""glibc's number for M_TRIM_THRESHOLD."""
THRESHOLD = 1 << 23
"""Bytes from which memory goes back to the system at once: 8 MiB."""
KEPT = 1 << 25
"""Bytes of freed small blocks that stay with the process, to be used again: 32 MiB."""
_HELPERS = 3
"""Threads beside the one that computes: two hash what is read and written, one writes."""


def use_memory_well() -> None:
    """Make both settings; to be called before torch computes anything, which is when it looks for the second."""
    bound_freed_memory()
    use_large_pages()


def use_large_pages() -> None:
    """Have torch ask Linux for pages of 2 MiB where it takes that much memory and more.

    A large tensor that is made and freed costs as many page faults as it has pages, many with pages of 4 KiB. A setting
    that the user gave stays.
    """
    if sys.platform.startswith("linux"):
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def bound_freed_memory() -> bool:
    """Have glibc map blocks of 8 MiB and more one by one, and keep up to 32 MiB of smaller ones that were freed.

    glibc raises the first limit to 32 MiB by itself as blocks are freed; tensors below it then share heaps, which
    fragment: measured, 3 to 10 MB more for every layer that passed, none with a fixed limit, in the same time. A fixed
    limit leaves the second one at 128 KiB, so that every piece of a tensor would be taken from the system anew, page by
    page, which takes longer than to compute it.

    The settings hold for the whole process. Limits that the user gave (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_)
    stay. Returns whether the first was set: False elsewhere than under glibc.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        mallopt(_TRIM_THRESHOLD, KEPT)
    return bool(mallopt(_MMAP_THRESHOLD, THRESHOLD) == 1)


@contextmanager
def nothing_collected() -> Iterator[None]:
    """While open, the garbage collector does not run: importing large packages makes few cycles, all of which stay."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@contextmanager
def modules_uncollected() -> Iterator[None]:
    """While open, the garbage collector passes over every object that there is already.

    Those are above all the imported modules', which it would look through again and again while a run makes thousands
    of small objects. Where somebody froze objects before, nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def room_for_helpers(wanted: bool = True) -> Iterator[None]:
    """While open, torch computes with fewer threads, so that those that hash and write have cores of their own.

    For work that is bound by memory: there a thread more that waits for the others costs them more than it gives.
    """
    import torch

    threads = torch.get_num_threads()
    fewer = max(1, threads - _HELPERS)
    if not wanted or fewer == threads:
        yield
        return
    torch.set_num_threads(fewer)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
