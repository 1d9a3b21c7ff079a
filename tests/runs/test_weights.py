"""Weights files are found, read, verified, and fetched from the Hub."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers import coloured_data
from thumbnet import __version__
from thumbnet.classifiers.load import load_run
from thumbnet.errors import MissingExtraError, RunError
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs import weights as weights_module
from thumbnet.runs.any_weights import read_any_weights
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import (
    fetch_weights,
    find_weights,
    hub_reason,
    import_hub,
    read_weights,
    weights_digest,
    write_weights,
)
from thumbnet.training.train import resume


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has names that are not UTF-8")
def test_weights_are_read_from_a_folder_whose_name_is_not_utf8(tiny_run: Run, tmp_path: Path) -> None:
    place = tmp_path / os.fsdecode(b"r\xff") / "model.safetensors"
    place.parent.mkdir()
    place.write_bytes(tiny_run.weights_path.read_bytes())
    assert read_weights(place)[0].keys() == read_weights(tiny_run.weights_path)[0].keys()
    assert read_any_weights(place).info == read_weights(tiny_run.weights_path)[1]
    place.write_bytes(b"nonsense")
    with pytest.raises(RunError, match=r"cannot read .*r\\udcff/model.safetensors as weights"):
        read_weights(place)


def test_a_weights_file_has_everything_needed_to_use_it(tiny_run: Run, tmp_path: Path) -> None:
    lonely = tmp_path / "model.safetensors"
    lonely.write_bytes(tiny_run.weights_path.read_bytes())
    predictor = load_run(lonely)
    info = predictor.info
    assert info.class_names == ("red", "green", "blue")
    assert info.preprocessing.size == (16, 16)
    assert info.preprocessing.fit == "crop"
    assert info.thumbnet == __version__
    assert info.fingerprint == coloured_data().fingerprint()
    data = coloured_data()
    assert predictor.evaluate(data, "test").accuracy == tiny_run.summary["accuracy"]


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:9] + bytes([content[9] ^ 0x10]) + content[10:]


@pytest.mark.parametrize("damage", [truncated, flipped, lambda _: b"", lambda _: b"x" * 100])
def test_damaged_weights_give_a_clear_error(damage: Any, tiny_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(damage(tiny_run.weights_path.read_bytes()))
    with pytest.raises(RunError, match=r"model\.safetensors"):
        load_run(path)


def test_weights_of_another_program_give_a_clear_error(tiny_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(RunError, match="not written by thumbnet"):
        read_weights(path)
    for text in ("not json", "[]", "{}", '{"format": 99, "thumbnet": "9.0"}', '{"format": 1}'):
        save_file({"x": torch.zeros(3)}, path, metadata={"thumbnet": text})
        with pytest.raises(RunError, match="cannot read the description"):
            read_weights(path)
    _, info = read_weights(tiny_run.weights_path)
    save_file({"x": torch.zeros(3)}, path, metadata={"thumbnet": info.to_json()})
    with pytest.raises(RunError, match="do not fit"):
        load_run(path)


def test_weights_are_found_by_the_path_of_the_run_or_the_file(tiny_run: Run) -> None:
    assert find_weights(tiny_run.path) == tiny_run.weights_path
    assert find_weights(str(tiny_run.weights_path)) == tiny_run.weights_path


@pytest.mark.parametrize("name", ["nowhere", "nowhere.safetensors", "empty"])
def test_the_error_for_missing_weights_names_the_path(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=name):
        find_weights(tmp_path / name)


def test_reading_what_was_written_gives_the_same_tensors_and_description(
    tiny_run: Run, tmp_path: Path
) -> None:
    tensors, info = read_weights(tiny_run.weights_path)
    write_weights(tmp_path / "copy.safetensors", tensors, info)
    again, same = read_weights(tmp_path / "copy.safetensors")
    assert same == info
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_the_same_weights_give_the_same_file(tiny_run: Run, tmp_path: Path) -> None:
    tensors, info = read_weights(tiny_run.weights_path)
    write_weights(tmp_path / "copy.safetensors", dict(reversed(tensors.items())), info)
    assert (tmp_path / "copy.safetensors").read_bytes() == tiny_run.weights_path.read_bytes()


def test_tensors_that_share_memory_are_written_under_each_of_their_names(
    tiny_run: Run, tmp_path: Path
) -> None:
    _, info = read_weights(tiny_run.weights_path)
    fc = nn.Linear(8, 3)
    other = replace(info, model=ModelSettings("mypackage.nets:Net"))
    write_weights(tmp_path / "model.safetensors", nn.ModuleDict({"fc": fc, "head": fc}).state_dict(), other)
    tensors, _ = read_weights(tmp_path / "model.safetensors")
    assert tensors.keys() == {"fc.weight", "fc.bias", "head.weight", "head.bias"}
    for name in ("weight", "bias"):
        assert torch.equal(tensors[f"fc.{name}"], tensors[f"head.{name}"])
        assert torch.equal(tensors[f"fc.{name}"], fc.get_parameter(name))


def test_a_changed_weight_is_found_by_the_digest(tiny_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = bytearray(tiny_run.weights_path.read_bytes())
    content[-1] ^= 1  # the last byte of the last tensor
    path.write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        read_weights(path)


def test_damaged_weights_of_a_run_are_restored_by_a_resume(tiny_run: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    content = run.weights_path.read_bytes()
    for damage in (truncated(content), content[:-1] + bytes([content[-1] ^ 1])):
        run.weights_path.write_bytes(damage)
        with pytest.raises(
            RunError, match="is damaged. The run's checkpoint can restore it: remove"
        ) as caught:
            read_weights(run.weights_path)
        assert f"train --resume {run.path}" in str(caught.value)
    run.weights_path.unlink()
    resume(run.path, data=coloured_data(), device="cpu")
    tensors, info = read_weights(run.weights_path)
    assert info == read_weights(tiny_run.weights_path)[1]
    assert all(torch.equal(tensors[name], one) for name, one in load_file(tiny_run.weights_path).items())
    (run.path / "checkpoint.pt").unlink()
    run.weights_path.write_bytes(truncated(content))
    with pytest.raises(RunError, match="expected a run's folder"):
        read_weights(run.weights_path)


def test_a_changed_description_is_found_by_the_digest(tiny_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors, _ = read_weights(tiny_run.weights_path)
    with safe_open(tiny_run.weights_path, framework="pt") as file:
        values = json.loads(file.metadata()["thumbnet"])
    values["class_names"] = values["class_names"][::-1]
    save_file(tensors, path, metadata={"thumbnet": json.dumps(values)})
    with pytest.raises(RunError, match="is damaged"):
        read_weights(path)
    del values["digest"]  # as in files of older versions
    save_file(tensors, path, metadata={"thumbnet": json.dumps(values)})
    assert read_weights(path)[1].class_names == tuple(values["class_names"])


def test_the_digest_covers_names_shapes_types_and_values() -> None:
    plain = {"a": torch.zeros(4), "b": torch.ones(2)}
    others = [
        {"a": torch.ones(2), "b": torch.zeros(4)},
        {"a": torch.zeros(2, 2), "b": torch.ones(2)},
        {"a": torch.zeros(4, dtype=torch.int32), "b": torch.ones(2)},
        {"a": torch.zeros(4), "b": torch.tensor([1.0, 2.0])},
    ]
    digests = [weights_digest(one, {}) for one in (plain, *others)] + [weights_digest(plain, {"x": 1})]
    assert len(set(digests)) == len(digests)
    assert weights_digest(dict(reversed(plain.items())), {}) == digests[0]


def hub_that(answer: Any, asked: list[Any]) -> Any:
    def download(name: str, file: str, revision: str | None = None) -> str:
        asked.append((name, file, revision))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    return SimpleNamespace(hf_hub_download=download)


def test_a_hub_address_may_name_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(weights_module, "import_hub", lambda: hub_that("/cache/model.safetensors", asked))
    assert fetch_weights("hf:me/cats") == find_weights("hf:me/cats@v2") == Path("/cache/model.safetensors")
    assert asked == [("me/cats", "model.safetensors", None), ("me/cats", "model.safetensors", "v2")]


def test_the_error_for_a_failed_download_names_the_address_and_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = ValueError("\n  Repository Not Found\nmore lines")
    monkeypatch.setattr(weights_module, "import_hub", lambda: hub_that(refusal, []))
    with pytest.raises(RunError) as error:
        fetch_weights("hf:me/cats")
    assert str(error.value) == "cannot fetch hf:me/cats: Repository Not Found"


def test_the_error_for_a_refused_login_says_how_to_log_in() -> None:
    class Refused(Exception):
        response = SimpleNamespace(status_code=401)

    class LocalTokenNotFoundError(Exception):
        pass

    for error in (Refused("long page"), LocalTokenNotFoundError()):
        assert "hf auth login" in hub_reason(error)
    assert hub_reason(KeyError()) == "KeyError"
    assert "\x1b" not in hub_reason(ValueError("\x1b[31mred"))


def test_the_error_for_a_missing_hub_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match="hub"):
        import_hub()


def filter_of(tensors: dict[str, Tensor]) -> str:
    """The name of a convolution's weights."""
    return next(name for name, tensor in tensors.items() if tensor.ndim == 4)


def with_value(value: float) -> Any:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[filter_of(tensors)].view(-1)[7] = value

    return change


def as_int8(tensors: dict[str, Tensor]) -> None:
    tensors.update({name: tensor.to(torch.int8) for name, tensor in tensors.items()})


def without_one(tensors: dict[str, Tensor]) -> None:
    del tensors[filter_of(tensors)]


def with_another(tensors: dict[str, Tensor]) -> None:
    tensors["\x1b[2J\nx"] = torch.zeros(3)


def with_another_type(tensors: dict[str, Tensor]) -> None:
    tensors["a\nb"] = torch.zeros(3, dtype=torch.int8)


def of_another_shape(tensors: dict[str, Tensor]) -> None:
    tensors[filter_of(tensors)] = torch.zeros(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value(float("nan")), "has the value nan"), (with_value(float("-inf")), "has the value -inf"),
        (as_int8, "int8: expected torch.float32"), (without_one, "the weights have no such tensor"),
        (with_another, r"\\x1b\[2J\\nx: the network has no such tensor"),
        (with_another_type, r"a\\nb holds torch.int8"), (of_another_shape, r"\[1, 2, 3, 4\]"),
    ],
)  # fmt: skip
def test_wrong_tensors_are_refused_by_name(change: Any, message: str, tiny_run: Run, tmp_path: Path) -> None:
    tensors, info = read_weights(tiny_run.weights_path)
    change(tensors)
    write_weights(tmp_path / "model.safetensors", tensors, info)
    with pytest.raises(RunError, match=message):
        load_run(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": tuple(f"class {number}" for number in range(50_000))}, "names 50,000 classes"),
        ({"model": ModelSettings("resnet34", 8)}, "do not fit the network"),
    ],
)
def test_a_description_that_asks_for_a_huge_network_takes_no_memory(
    changes: dict[str, Any], message: str, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, info = read_weights(tiny_run.weights_path)
    write_weights(tmp_path / "model.safetensors", tensors, replace(info, **changes))
    built = []
    monkeypatch.setattr(nn.Parameter, "__init__", lambda self, *_, **__: built.append(self.device.type))
    with pytest.raises(RunError, match=message):
        load_run(tmp_path / "model.safetensors")
    assert set(built) <= {"meta"}
    assert built or "classes" in message


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file"), "there is no file"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot read .*: Permission denied"),
        (None, "cannot read .*: the system did not open it at first"),
    ],
)
def test_a_file_that_cannot_be_opened_is_not_called_missing(
    error: OSError | None, told: str, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_opened(*_: object, **__: object) -> None:
        raise FileNotFoundError("No such file or directory")

    def refuse(*_: object) -> IO[bytes]:
        if error is not None:
            raise error
        return io.BytesIO()

    monkeypatch.setattr("safetensors.safe_open", not_opened)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=told):
        read_weights(tiny_run.weights_path)
