"""What a command in a fork meets: limits, permissions, impatience. Hooks of :class:`faults.fork_server.Job`."""

from __future__ import annotations

import ctypes
import resource

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, see capset(2)
_ABOVE_PERMISSIONS = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, see linux/capability.h


def limit_files(most: int) -> None:
    """Let no file grow beyond ``most`` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def limit_memory(most: int) -> None:
    """Let this process take at most ``most`` bytes of memory more than it has."""
    import psutil

    limit = psutil.Process().memory_info().vms + most
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def respect_permissions() -> None:
    """Make permissions apply to this process even if root runs it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION, 0)  # 0 is this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: capabilities 0 to 31, then 32 to 63
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    for one in range(3):
        sets[one] &= ~_ABOVE_PERMISSIONS
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def wait_for_locks(seconds: float) -> None:
    """Resume only if the run's former processes end within so many seconds, not within 10."""
    from thumbnet.training import call

    call.ENDING = seconds
