from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers import Payload
from thumbnet.errors import RunError
from thumbnet.runs.any_weights import NESTED, read_any_weights
from thumbnet.runs.folder import Run

TENSORS = {"b.weight": torch.ones(2, 3), "a.weight": torch.zeros(4)}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("key", ["", *NESTED])
def test_a_state_dict_is_found_below_the_usual_keys(key: str, tmp_path: Path) -> None:
    content = {"epoch": 3, key: TENSORS, "optimizer": {"state": {}}} if key else TENSORS
    path = saved(tmp_path / "any.pth", content)
    found = read_any_weights(path)
    assert list(found.tensors) == ["b.weight", "a.weight"]
    assert torch.equal(found.tensors["b.weight"], torch.ones(2, 3))
    assert found.info is None
    assert found.in_order
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_format_counts_and_not_the_ending(tmp_path: Path) -> None:
    old = saved(tmp_path / "old.bin", TENSORS, _use_new_zipfile_serialization=False)
    assert read_any_weights(old).tensors.keys() == TENSORS.keys()
    save_file(TENSORS, tmp_path / "misnamed.pth")
    found = read_any_weights(tmp_path / "misnamed.pth")
    assert found.tensors.keys() == TENSORS.keys()
    assert not found.in_order


@pytest.mark.parametrize("length", [640, 19280])  # these bytes begin a pickle and a zip archive
def test_a_header_of_any_length_is_that_of_safetensors(length: int, tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + header + b"\0" * 4)
    assert read_any_weights(tmp_path / "x.safetensors").tensors["a"].tolist() == [0.0]


def test_thumbnets_own_file_keeps_its_description(tiny_run: Run) -> None:
    found = read_any_weights(tiny_run.weights_path)
    assert found.info is not None
    assert found.info.class_names == ("red", "green", "blue")


def test_a_damaged_file_of_thumbnet_is_not_taken_for_a_strangers(tiny_run: Run, tmp_path: Path) -> None:
    content = bytearray(tiny_run.weights_path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        read_any_weights(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", ["payload", "module", "inside"])
def test_nothing_in_a_pickle_is_run(content: str, tmp_path: Path) -> None:
    payload = Payload(tmp_path / "gotcha")
    made: Any = {"payload": payload, "module": nn.Linear(2, 2), "inside": {"model": TENSORS, "args": payload}}
    path = saved(tmp_path / "bad.pt", made[content])
    with pytest.raises(RunError, match=r"more in it than tensors \(.*torch\.save\(model\.state_dict\(\)"):
        read_any_weights(path)
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(made[content], protocol=2))
    with pytest.raises(RunError, match="more in it than tensors"):
        read_any_weights(tmp_path / "bare.pkl")
    assert not (tmp_path / "gotcha").exists()


def test_what_has_no_weights_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    (tmp_path / "cut.pt").write_bytes(saved(tmp_path / "whole.pt", TENSORS).read_bytes()[:-200])
    (tmp_path / "text.pt").write_text("hello")
    cases = {
        tmp_path / "script.pt": "is a TorchScript program",
        saved(tmp_path / "list.pt", [1, 2]): "holds a list, not tensors with names",
        saved(tmp_path / "other.pt", {"epoch": 3, "weights": {"a": 1}}): "It holds: epoch, weights",
        tmp_path / "cut.pt": "cannot read .* as weights",
        tmp_path / "text.pt": "cannot read .* as weights",
        tmp_path / "missing.pt": "No such file",
    }
    for path, words in cases.items():
        with pytest.raises(RunError, match=words):
            read_any_weights(path)
