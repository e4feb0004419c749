"""Memory: kept for the next pass, measured, and where it ends, said so that the reader knows which key to lower."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from tasks.errors import EnvironmentRefused
from tasks.stage import Settings

_REFUSALS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


@contextmanager
def memory_errors(stage: str, config: Settings) -> Iterator[None]:
    """Turn what torch raises where memory ends into advice. Raises EnvironmentRefused; other errors pass."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and not any(words in str(error).lower() for words in _REFUSALS):
            raise
        section = getattr(config, stage)
        key = f"{stage}.tokens_at_once"
        if stage == "policy" and section.method in ("dpo", "rejection"):
            section, key = getattr(section, section.method), f"policy.{section.method}.tokens_at_once"
        raise EnvironmentRefused(
            f"{stage}: out of memory ({str(error).splitlines()[0][:200]}).",
            f"Lower {key} (now {section.tokens_at_once}): the result stays the same. Or set compute.gradient_checkpointing=true, "
            "adapter.rank, compute.precision=bf16, or a smaller max_tokens. It goes on from the last checkpoint.",
        ) from error


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""
_NEVER = -1
_MADV_HUGEPAGE = 14
"""Of mman.h."""
_HUGE_PAGE = 2**21
_HEAP = 2**32
"""Bytes of addresses: memory is taken as it is used."""
_RESET_PEAK = "5"
"""For /proc/self/clear_refs: see proc_pid_clear_refs(5)."""


def _glibc() -> ctypes.CDLL | None:
    """The C library where it is GNU's: others have none of the calls below."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free instead of handing it back to the system, which clears every page of it again.

    And have the heap made of huge pages, where the system gives them to those who ask. Activations come and go with every
    pass: a seventh of a small model's time was page faults, and a tenth of the rest looking up addresses.
    """
    if libc := _glibc():
        libc.mallopt(_M_MMAP_THRESHOLD, _NEVER)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        # The heap is grown once and told, because glibc's own switch (glibc.malloc.hugetlb) is read before Python starts
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.free.argtypes = [ctypes.c_void_p]
        heap = libc.malloc(_HEAP)  # None where the system does not promise so much
        if heap:
            libc.madvise(heap - heap % -_HUGE_PAGE, _HEAP - _HUGE_PAGE, _MADV_HUGEPAGE)
            libc.free(heap)


def forget_peak() -> None:
    """From now on `peak_bytes` is of what comes: what nobody uses any more goes back to the system first."""
    gc.collect()
    if libc := _glibc():
        libc.malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """The most memory that was in use since `forget_peak`: the GPU's, if there is one, else this process's; 0 where none says."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "VmHWM":
                return int(value.split()[0]) * 1024
    return 0
