"""Choose the pictures of each epoch: ``data.skip_easy`` skips those that are already learned.

A picture that the network classifies with confidence changes little, but costs as much as any other. So each
epoch skips the pictures whose loss was lowest when they were last seen. A skipped picture is kept in the next
epoch, so only losses of the previous epoch are compared. Choosing costs no forward pass. The idea comes from
selective backpropagation (Jiang et al. 2019, https://arxiv.org/abs/1910.00762) and InfoBatch (Qin et al.
2023, https://arxiv.org/abs/2303.04947), but without weighting. docs/notebook/selection.md says what it
gained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thumbnet.distributed import ALONE, World
from thumbnet.hardware import send
from thumbnet.seeds import derive_seed


class Selection:
    """Chooses the pictures of each epoch by their last losses. Its ``state_dict`` belongs in the checkpoint.

    Args:
        count: number of training pictures.
        taken: pictures per epoch. Below half of ``count`` (possible with ``drop_last`` and few pictures), not
            all skipped pictures can return in the next epoch; which ones do is random.
        seed: breaks ties between equal losses. Before the first epoch, all losses are equal.
        device: where the losses are recorded.
        world: the processes; each one records the losses of its share.

    Attributes:
        epoch: the epoch that was chosen last, from 0; -1 before the first.
        taking_part: bool [count], whether each picture is part of that epoch.
        visits: int64 [count], number of earlier epochs that each picture was part of.
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
        self._noted = torch.zeros(count, device=device)  # this process's losses of this epoch
        self._forget()

    def _forget(self) -> None:
        self.epoch = -1
        self.taking_part = torch.zeros(len(self._noted), dtype=torch.bool)
        self.visits = torch.zeros(len(self._noted), dtype=torch.int64)
        self._losses = torch.zeros(len(self._noted))  # when each picture was last seen, before this epoch

    def begin(self, epoch: int) -> Tensor:
        """Positions of the pictures of ``epoch`` (from 0): int64 [taken], ascending.

        Repeated calls for the same epoch return the same pictures. Epoch 0 after a later epoch begins a new
        training and forgets all losses.
        """
        if epoch != self.epoch:
            if epoch == 0:
                self._forget()
            self._losses = torch.where(self.taking_part, self._all_noted(), self._losses)
            self.visits += self.taking_part
            self._noted.zero_()
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "selection", epoch))
            order = torch.randperm(len(self._losses), generator=generator)
            skipped_first = self._losses.masked_fill(~self.taking_part, torch.inf)
            order = order[skipped_first[order].argsort(descending=True, stable=True)]
            self.taking_part = torch.zeros_like(self.taking_part)
            self.taking_part[order[: self.taken]] = True
            self.epoch = epoch
        return self.taking_part.nonzero().flatten()

    def note(self, positions: Tensor, losses: Tensor) -> None:
        """Record the losses (float32 [B]) of pictures in this epoch; 0 for a picture that does not count."""
        self._noted.index_add_(0, send(positions, self._noted.device), losses.detach())

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a training; losses are summed over all processes."""
        return {
            "epoch": self.epoch,
            "taking_part": self.taking_part,
            "visits": self.visits,
            "losses": self._losses,
            "noted": self._all_noted(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            KeyError, ValueError: the state belongs to other data.
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
