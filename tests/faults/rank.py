"""Run `thumbnet` as one process of a training with a fault of its own. test_many_processes.py runs it.

```sh
PYTHONPATH=tests torchrun --nproc-per-node 2 -m faults.rank train DATA-{rank} --out RUN
```

``{rank}`` in an argument becomes this process's number. With ``THUMBNET_TEST_KILL=FILE``, the first process kills itself
while it writes its third checkpoint, and leaves FILE so that it does so only once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from thumbnet import __main__ as thumbnet


def kill_in_third_checkpoint(killed: Path) -> None:
    """From now on, the third sync of a checkpoint leaves half of it, makes ``killed``, and kills this process."""
    sync, synced = os.fsync, 0

    def fsync(fd: Any) -> None:
        nonlocal synced
        synced += "checkpoint.pt" in os.readlink(f"/proc/self/fd/{fd}")
        if synced == 3:
            os.truncate(fd, os.fstat(fd).st_size // 2)
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        sync(fd)

    os.fsync = fsync


def main() -> int:
    """Run the command, and return its exit status."""
    rank, killed = os.environ["RANK"], os.environ.get("THUMBNET_TEST_KILL")
    if killed and rank == "0" and not Path(killed).exists():
        kill_in_third_checkpoint(Path(killed))
    sys.argv[1:] = [word.replace("{rank}", rank) for word in sys.argv[1:]]
    return thumbnet.main()


if __name__ == "__main__":
    sys.exit(main())
