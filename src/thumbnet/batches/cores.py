"""How many CPU cores this process may use, and the threads to start for them. Imports no torch.

A container with ``--cpus 2`` shows its processes all cores of the host. The kernel stops a process that has
used up its quota, so a library that starts one thread per visible core becomes slower than with two threads.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath

from thumbnet.errors import ThumbnetError

CGROUPS = Path("/sys/fs/cgroup")  # where Linux mounts cgroup v2
MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """The number of cores that this process may use, 1 or more.

    It is the smaller of the process's affinity and its control group's CPU quota (cgroup v2), rounded up.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def library_threads() -> int:
    """The number of threads to ask of a library that would otherwise start one per core of the computer.

    It is 0, which leaves the choice to the library, if this process may use all cores: the library knows
    which of them share hardware.
    """
    cores = usable_cores()
    return cores if cores < (os.cpu_count() or 1) else 0


def quota_threads() -> int:
    """The most threads on which PyTorch should compute because of a CPU quota; 0 leaves the choice to it.

    PyTorch respects the affinity, but no quota. If ``OMP_NUM_THREADS`` is set, the user has chosen.
    """
    quota = cpu_quota()
    return 0 if quota is None or "OMP_NUM_THREADS" in os.environ else math.ceil(quota)


def within_quota() -> AbstractContextManager[None]:
    """In this block, PyTorch computes on no more threads than a CPU quota has cores."""
    from thumbnet.hardware import at_most_threads  # imports torch

    most = quota_threads()
    return at_most_threads(most) if most else nullcontext()


def check_threads(threads: int) -> None:
    """Check a number of threads that a user chose; 0 is the default.

    Raises:
        ThumbnetError: it is not a whole number from 0.
    """
    if not isinstance(threads, int) or threads < 0:
        raise ThumbnetError(f"threads: expected a whole number from 1, or 0 for the default, got {threads!r}")


def cpu_quota(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> float | None:
    """The CPU quota of this process in cores, such as 1.5; None if there is none, or no cgroup v2.

    The smallest quota counts: those of the process's own group and of all groups above it.

    Args:
        membership: the file that names the process's groups.
        cgroups: where the groups are mounted.
    """
    try:
        lines = membership.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return None
    # A group outside of the container's namespace is shown as /../other. It is not mounted here.
    inside = PurePosixPath(own) if ".." not in PurePosixPath(own).parts else PurePosixPath()
    quotas = [_quota_in(cgroups / group / "cpu.max") for group in (inside, *inside.parents)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_in(file: Path) -> float | None:
    """The quota in a ``cpu.max``: microseconds of CPU time and of real time, or ``max`` for no quota."""
    try:
        quota, period = file.read_text("ascii", "replace").split()
        cores = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return None
    return cores if cores > 0 else None
