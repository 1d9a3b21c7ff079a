"""Train, and write this process's network at the end. test_many_processes.py runs it.

```sh
PYTHONPATH=tests torchrun --nproc-per-node 2 -m faults.final_network DATA RUN FOLDER SETTING ...
```
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from thumbnet.batches.prepare import Prepared
from thumbnet.runs.folder import Run
from thumbnet.training.listener import Listener
from thumbnet.training.state import TrainingState
from thumbnet.training.train import train


class Keeper(Listener):
    """Keeps the state, which the training changes in place."""

    state: TrainingState

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        self.state = state


def main() -> int:
    data, out, folder, *settings = sys.argv[1:]
    keeper = Keeper()
    train(data, "one-cycle", overrides=settings, out=out, device="cpu", listener=keeper)
    target = Path(folder) / f"{os.environ['RANK']}.pt"
    torch.save(keeper.state.evaluated_model.state_dict(), target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
