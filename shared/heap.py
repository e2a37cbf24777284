"""Memory that this process has freed, and will need again."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 128 * 2**20
_LARGE_BYTES = 32 * 2**20


def keep_freed_memory() -> None:
    """Have malloc give back to the kernel only what is beyond 128 MiB, or was allocated in pieces of 32 MiB and more.

    Each batch's tickets are as many megabytes as the last one's. Given back and asked for again they come as pages that
    the kernel has to fill with zeros, which takes longer than all else that is done with a ticket. glibc comes to such
    limits by itself where large pieces are freed; here they do not depend on it. Where there is another libc, nothing
    changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
