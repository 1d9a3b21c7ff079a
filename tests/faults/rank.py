"""Run `thumbnet` as one process of a training with a fault of its own. test_many_processes.py runs it by torchrun.

```sh
torchrun --nproc-per-node 2 rank.py train DATA-{rank} --out RUN
```

``{rank}`` in an argument becomes this process's number. With ``THUMBNET_TEST_KILL=FILE``, the first process kills itself
while it writes its third checkpoint, and leaves FILE so that it does so only once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from thumbnet.__main__ import main

rank = os.environ["RANK"]
killed = os.environ.get("THUMBNET_TEST_KILL")
synced = 0
sync = os.fsync


def kill_in_checkpoint(file: int) -> None:
    """Sync ``file``; the third time that it is a checkpoint, leave half of it and kill this process."""
    global synced
    synced += "checkpoint.pt" in os.readlink(f"/proc/self/fd/{file}")
    if synced == 3:
        os.truncate(file, os.fstat(file).st_size // 2)
        Path(str(killed)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    sync(file)


if killed and rank == "0" and not Path(killed).exists():
    os.fsync = kill_in_checkpoint
sys.argv[1:] = [word.replace("{rank}", rank) for word in sys.argv[1:]]
sys.exit(main())
