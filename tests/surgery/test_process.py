"""Settings of the process: the allocator's where glibc is and the user chose none, and threads left for helpers."""

import gc

import pytest
import torch

from vecsurgery.surgery import process


@pytest.mark.parametrize("given", [(), ("MALLOC_TRIM_THRESHOLD_",)])
def test_glibc_takes_the_limits_that_the_user_did_not_give(
    monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    for name in given:
        monkeypatch.setenv(name, "1000000")
    monkeypatch.setattr(process.sys, "platform", "linux")
    calls = []

    class Library:
        @staticmethod
        def mallopt(option: int, value: int) -> int:
            calls.append((option, value))
            return 1

    monkeypatch.setattr(process.ctypes, "CDLL", lambda _name: Library)
    assert process.bound_freed_memory()
    assert calls == [*([] if given else [(-1, process.KEPT)]), (-3, process.THRESHOLD)]


def test_a_limit_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert not process.bound_freed_memory()


@pytest.mark.parametrize("platform", ["darwin", "win32", "linux"])
def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(process.sys, "platform", platform)
    monkeypatch.setattr(process.ctypes, "CDLL", lambda _name: object())
    assert not process.bound_freed_memory()


@pytest.mark.parametrize(
    ("platform", "given", "expected"), [("linux", None, "1"), ("linux", "0", "0"), ("darwin", None, None)]
)
def test_large_pages_are_asked_for_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, platform: str, given: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(process.os, "environ", {} if given is None else {"THP_MEM_ALLOC_ENABLE": given})
    monkeypatch.setattr(process.sys, "platform", platform)
    process.use_large_pages()
    assert process.os.environ.get("THP_MEM_ALLOC_ENABLE") == expected


@pytest.mark.parametrize(("threads", "fewer"), [(1, 1), (2, 1), (4, 1), (16, 13)])
def test_cores_are_left_for_the_helpers_and_given_back(threads: int, fewer: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with process.room_for_helpers():
            assert torch.get_num_threads() == fewer
        assert torch.get_num_threads() == threads
        with process.room_for_helpers(wanted=False):
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_objects_are_passed_over_and_looked_at_again() -> None:
    assert gc.get_freeze_count() == 0
    with process.modules_uncollected():
        assert gc.get_freeze_count() > 1000
        with process.modules_uncollected():
            assert gc.get_freeze_count() > 1000
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0
