"""Write the gradient, loss and statistics of one batch to a file. test_many_processes.py runs it.

```sh
PYTHONPATH=tests torchrun --nproc-per-node 2 -m faults.gradients FILE MODEL PRECISION SYNC [RANK]
```

The process RANK has no kernels.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import torch

from helpers import coloured_data
from thumbnet.batches.prepare import prepare
from thumbnet.distributed import joined
from thumbnet.models import build_model
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.build import build_state
from thumbnet.training.state import TrainingState
from thumbnet.training.step import accumulate_gradients


def main() -> int:
    target, name, precision, synchronised, *without = sys.argv[1:]
    if os.environ.get("RANK", "0") in without:
        os.environ["THUMBNET_KERNELS"] = "0"
    recipe = load_recipe("fast", [
        f"model.name={name}", f"training.precision={precision.replace('64', '32')}", f"training.sync_batchnorm={synchronised}",
        "model.width=0.5", "training.batch_size=23", "training.label_smoothing=0.1", "data.image_size=32",
        "augment.cutout=3",
    ])  # fmt: skip
    with joined() as world:
        prepared = prepare(coloured_data(50), recipe, torch.device("cpu"), world=world)
        if precision == "fp64":
            torch.manual_seed(0)
            model = build_model(recipe.model, 3).double()
            state = TrainingState(model, recipe, len(prepared.train), torch.device("cpu"), world)
        else:
            state = build_state(recipe, prepared, "rgb", torch.device("cpu"), world)
        state.model.train()
        batch = next(iter(prepared.train.epoch(0)))
        if precision == "fp64":
            batch = replace(batch, images=batch.images.double())
        state.losses[0] = accumulate_gradients(state, batch)
        loss = state.all_losses()[0]
        if world.is_first:
            gradients = {key: p.grad for key, p in state.model.named_parameters() if p.grad is not None}
            torch.save(
                {"loss": loss, "gradients": gradients, "buffers": dict(state.model.named_buffers())}, target
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
