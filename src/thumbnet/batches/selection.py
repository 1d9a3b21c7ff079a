"""Which pictures take part in an epoch, where ``data.skip_easy`` lets those rest that are learnt already.

What a picture that the network is sure of would change is little, and costs as much as any other. So each
epoch leaves out those whose loss was least when they were last seen; whoever rests takes part in the next
epoch, so that no loss is older than that. No forward pass is spent on choosing. The idea is that of selective
backpropagation (Jiang et al. 2019, https://arxiv.org/abs/1910.00762) and of InfoBatch (Qin et al. 2023,
https://arxiv.org/abs/2303.04947), without weighting. What it gained is in docs/notebook/selection.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thumbnet.distributed import ALONE, World
from thumbnet.hardware import send
from thumbnet.seeds import derive_seed


class Selection:
    """Chooses, and remembers what it takes to choose: its ``state_dict`` belongs into a checkpoint.

    Args:
        count: training pictures.
        taken: how many of them an epoch takes. With less than half, which ``drop_last`` can make of few
            pictures, chance decides which of those that rested have to wait for another epoch.
        seed: decides between equals, as all are before the first epoch.
        device: where losses are noted.
        world: whose processes each note the losses of their share.

    Attributes:
        epoch: the one that was chosen for last, from 0; -1 before.
        taking_part: bool [count], in that epoch.
        visits: int64 [count], epochs before that one in which each picture took part.
    """

    def __init__(
        self,
        count: int,
        taken: int,
        seed: int,
        device: torch.device | str = "cpu",
        world: World = ALONE,
    ) -> None:
        self.taken, self.seed, self.world = taken, seed, world
        self._noted = torch.zeros(count, device=device)  # losses of this epoch, by this process
        self._forget()

    def _forget(self) -> None:
        self.epoch = -1
        self.taking_part = torch.zeros(len(self._noted), dtype=torch.bool)
        self.visits = torch.zeros(len(self._noted), dtype=torch.int64)
        self._losses = torch.zeros(len(self._noted))  # of each picture's last epoch before this one

    def begin(self, epoch: int) -> Tensor:
        """Positions of the pictures of ``epoch`` (from 0), int64 [taken], rising; asked again, the same.

        Epoch 0 after another begins a new training: nothing is known of any picture.
        """
        if epoch != self.epoch:
            if epoch == 0:
                self._forget()
            self._losses = torch.where(self.taking_part, self._all_noted(), self._losses)
            self.visits += self.taking_part
            self._noted.zero_()
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "selection", epoch))
            order = torch.randperm(len(self._losses), generator=generator)
            rested_first = self._losses.masked_fill(~self.taking_part, torch.inf)
            order = order[rested_first[order].argsort(descending=True, stable=True)]
            self.taking_part = torch.zeros_like(self.taking_part)
            self.taking_part[order[: self.taken]] = True
            self.epoch = epoch
        return self.taking_part.nonzero().flatten()

    def note(self, positions: Tensor, losses: Tensor) -> None:
        """The losses (float32 [B]) of pictures in this epoch; 0 for one that does not count."""
        self._noted.index_add_(0, send(positions, self._noted.device), losses.detach())

    def state_dict(self) -> dict[str, Any]:
        """All that changes, over all processes."""
        return {
            "epoch": self.epoch,
            "taking_part": self.taking_part,
            "visits": self.visits,
            "losses": self._losses,
            "noted": self._all_noted(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            KeyError, ValueError: it is of other pictures.
        """
        count, taken = len(state["losses"]), int(state["taking_part"].sum())
        if count != len(self._losses) or taken not in (0, self.taken):
            raise ValueError("the number of training pictures has changed")
        self.epoch = state["epoch"]
        self.taking_part, self.visits = state["taking_part"].clone(), state["visits"].clone()
        self._losses = state["losses"].clone()
        self._noted.copy_(state["noted"] if self.world.is_first else torch.zeros_like(state["noted"]))

    def _all_noted(self) -> Tensor:
        return self.world.sum(self._noted.cpu().clone())
