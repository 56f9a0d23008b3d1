"""The allocator's setting: taken where glibc is, left alone where the user chose."""

import pytest

from vecsurgery.surgery import allocator


def test_glibc_takes_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    calls = []

    class Library:
        @staticmethod
        def mallopt(option: int, value: int) -> int:
            calls.append((option, value))
            return 1

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _name: Library)
    assert allocator.return_large_blocks()
    assert calls == [(-3, allocator.THRESHOLD)]


def test_a_limit_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert not allocator.return_large_blocks()


@pytest.mark.parametrize("platform", ["darwin", "win32", "linux"])
def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    monkeypatch.setattr(allocator.sys, "platform", platform)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _name: object())
    assert not allocator.return_large_blocks()
