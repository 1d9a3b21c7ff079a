from __future__ import annotations

import torch

from simulated_device import CUDA, gpu_tensor, simulated_gpu
from thumbnet.batches.upload import pack, send_together, unpack

# The lengths of the first three are no multiples of eight bytes, as the types behind them need.
TENSORS = [
    torch.tensor([True, False, True]),
    torch.tensor([[1, 2], [3, 4], [5, 6]]).T,
    torch.tensor([0.25, -1.5, 7.0]),
    torch.tensor([], dtype=torch.int64),
    torch.tensor([1 << 40]),
]


def test_packed_tensors_come_out_as_they_went_in() -> None:
    for before, after in zip(TENSORS, unpack(pack(TENSORS), TENSORS), strict=True):
        assert after.dtype == before.dtype
        assert torch.equal(after, before)


def test_tensors_are_sent_together_in_one_copy_that_does_not_wait() -> None:
    with simulated_gpu() as log:
        there = gpu_tensor(torch.ones(2))
        sent = send_together([*TENSORS, there], CUDA)
        assert [copy.blocking for copy in log.copies] == [False]
        assert sent[-1] is there
        for before, after in zip(TENSORS, sent, strict=False):
            assert after.device == CUDA
            assert torch.equal(after.cpu(), before)


def test_nothing_is_copied_if_all_are_on_the_device() -> None:
    sent = send_together(TENSORS, torch.device("cpu"))
    assert all(after is before for before, after in zip(TENSORS, sent, strict=True))
    with simulated_gpu() as log:
        there = [gpu_tensor(torch.ones(2))]
        assert send_together(there, CUDA)[0] is there[0]
        assert not log.copies
