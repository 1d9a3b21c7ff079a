"""Of two processes, each in turn takes so many seconds to load the data. test_many_processes.py runs it.

```sh
PYTHONPATH=tests THUMBNET_TIMEOUT=4 torchrun --nproc-per-node 2 -m faults.slow_data 7
```
"""

from __future__ import annotations

import sys
import time

from thumbnet.distributed import joined


def main() -> int:
    seconds = float(sys.argv[1])
    with joined() as world:
        for slow in range(2):
            with world.one_per_machine_first():
                time.sleep(seconds * (world.local_rank == slow))
            assert world.from_first(slow) == slow
    return 0


if __name__ == "__main__":
    sys.exit(main())
