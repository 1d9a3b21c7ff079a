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
        device: where the losses are recorded and compared. Nothing here makes the host wait for it.
        world: the processes; each one records the losses of its share.

    Attributes:
        epoch: the epoch that was chosen last, from 0; -1 before the first.
        taking_part: bool [count], whether each picture is part of that epoch.
        visits: int64 [count], number of earlier epochs that each picture was part of.

    All tensors are on ``device``.
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
        self.taking_part = torch.zeros_like(self._noted, dtype=torch.bool)
        self.visits = torch.zeros_like(self._noted, dtype=torch.int64)
        self._losses = torch.zeros_like(self._noted)  # when each picture was last seen, before this epoch

    def tie_order(self, epoch: int) -> Tensor:
        """The random order in which ``epoch`` considers pictures of equal loss: int64 [count], on the CPU."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "selection", epoch))
        return torch.randperm(len(self._losses), generator=generator)

    def begin(self, epoch: int, ties: Tensor | None = None) -> Tensor:
        """Positions of the pictures of ``epoch`` (from 0): int64 [taken], ascending.

        Repeated calls for the same epoch return the same pictures. Epoch 0 after a later epoch begins a new
        training and forgets all losses.

        Args:
            epoch: the epoch, from 0.
            ties: :meth:`tie_order` of the epoch if it is on the device already.
        """
        if epoch != self.epoch:
            if epoch == 0:
                self._forget()
            self._losses = torch.where(self.taking_part, self._all_noted(), self._losses)
            self.visits += self.taking_part
            self._noted.zero_()
            order = send(self.tie_order(epoch), self._noted.device) if ties is None else ties
            skipped_first = self._losses.masked_fill(~self.taking_part, torch.inf)
            order = order[skipped_first[order].argsort(descending=True, stable=True)]
            self.taking_part = torch.zeros_like(self.taking_part).index_fill_(0, order[: self.taken], True)
            self.epoch = epoch
        # The positions that take part, in order. nonzero() would wait for a GPU to count them.
        return self.taking_part.byte().argsort(descending=True, stable=True)[: self.taken]

    def note(self, positions: Tensor, losses: Tensor) -> None:
        """Record the losses (float32 [B]) of pictures in this epoch; 0 for a picture that does not count."""
        self._noted.index_add_(0, send(positions, self._noted.device), losses.detach())

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a training; losses are summed over all processes."""
        return {
            "epoch": self.epoch,
            "taking_part": self.taking_part.cpu(),
            "visits": self.visits.cpu(),
            "losses": self._losses.cpu(),
            "noted": self._all_noted().cpu(),
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
        self.taking_part.copy_(state["taking_part"])
        self.visits.copy_(state["visits"])
        self._losses.copy_(state["losses"])
        self._noted.copy_(state["noted"] if self.world.is_first else torch.zeros_like(state["noted"]))

    def _all_noted(self) -> Tensor:
        """This epoch's losses of all processes, on the device."""
        if self.world.size == 1:
            return self._noted.clone()
        return send(self.world.sum(self._noted.cpu().clone()), self._noted.device)
