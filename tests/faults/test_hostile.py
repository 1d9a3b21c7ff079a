"""Untrusted files: crafted ones run nothing, damaged ones are named, and downloads from bad servers stop."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from helpers import Payload, noise, serve, write_class_folders, write_picture
from thumbnet.cli import main
from thumbnet.errors import DataError, RunError
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.sources import cifar, download
from thumbnet.sources.archives import unpack

# --- payloads --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its own data that can be resumed."""
    place = tmp_path_factory.mktemp("begun")
    data = write_class_folders(place / "data", ["train", "test"], per_class=4)
    out = place / "run"
    options = [
        "--recipe",
        "one-cycle",
        "--set",
        "model.name=resnet20",
        "--set",
        "model.width=0.5",
        "--epochs",
        "1",
    ]
    assert main(["train", str(data), *options, "--out", str(out)]) == 0
    for name in ("summary.json", "model.safetensors"):
        (out / name).unlink()
    return out


def as_zip(payload: Payload) -> bytes:
    """A checkpoint in PyTorch's format with the payload in the place of the tensors."""
    stream = io.BytesIO()
    torch.save({"recipe": "", "state": payload}, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    "form", [as_zip, pickle.dumps, lambda payload: pickle.dumps({"state": payload}, protocol=0)]
)
def test_a_crafted_checkpoint_runs_nothing(
    form: Any, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, trace = Path(shutil.copytree(begun, tmp_path / "run")), tmp_path / "trace"
    content = form(Payload(trace))
    (out / "checkpoint.pt").write_bytes(content)
    assert main(["train", "--resume", str(out)]) == 2
    assert "checkpoint.pt" in capsys.readouterr().err
    assert not trace.exists()
    if form is not as_zip:  # this shows that the payload works
        pickle.loads(content)  # noqa: S301
        assert trace.exists()


@pytest.mark.parametrize(
    "bomb",
    [
        b"r" + struct.pack("<I", 2**30) + b".",  # LONG_BINPUT: a memo with a billion entries
        b"\x8e" + struct.pack("<Q", 2**40) + b"x.",  # BINBYTES8
        b"\x95" + struct.pack("<Q", 2**60) + b".",  # FRAME
        b"(" * 10_000 + b"l" * 10_000 + b".",
        b"]" + b"2" * 1000 + b".",
    ],
)
def test_a_pickle_that_declares_huge_objects_takes_little_memory(bomb: bytes, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x04}" + bomb)
    before = psutil.Process().memory_info().rss
    with pytest.raises(DataError, match="data_batch_1"):
        cifar._read_python(tmp_path / "data_batch_1", 1)
    assert psutil.Process().memory_info().rss - before < 100 << 20


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_crafted_weights_run_nothing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace"
    write_picture(tmp_path / "pictures" / "a.png", noise(0))
    for content in (as_zip(Payload(trace)), pickle.dumps(Payload(trace))):
        for name in ("model.safetensors", "model.pt", "model.bin"):
            (tmp_path / name).write_bytes(content)
            assert main([command, str(tmp_path / name), str(tmp_path / "pictures")]) == 2
            assert name in capsys.readouterr().err
    assert not trace.exists()


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 100_000,
        b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"PICKLE","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"thumbnet":"{}"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\xff" * 64,
    ],
)
def test_weights_with_crafted_headers_are_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(RunError, match="safetensors"):
        read_weights(path)
    path.write_bytes(struct.pack("<Q", 2**63) + header)
    with pytest.raises(RunError, match="safetensors"):
        read_weights(path)


@pytest.mark.parametrize(
    "text",
    [
        "name = \"x\"\n[model]\nname = \"__import__('os').system('touch trace')\"\n",
        'extends = "/etc/passwd"\n',
        'extends = "../../../../etc/passwd"\n',
        "[training]\nepochs = " + "9" * 5000 + "\n",
        "a = " + "[" * 5000 + "]" * 5000 + "\n",
        "[training]\nepochs = nan\n",
        "[optimizer]\nlr = inf\n",
        'name = "\\u0000"\n\x00',
        "x" * 2_000_000,
        "[model]\nwidth = 1e308\n",
    ],
)
def test_a_crafted_recipe_runs_nothing(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.toml"
    path.write_text(text)
    assert main(["recipes", "show", str(path)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("thumbnet: ")
    assert "root:" not in errors  # nothing from a file that is not a recipe
    assert len(errors) < 2000
    assert not Path("trace").exists()


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "{a=" * 3000, "1979-05-27T07:32:00Z"])
def test_a_crafted_setting_is_refused(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "show", "fast", "--set", f"seed={value}"]) == 2
    assert "seed" in capsys.readouterr().err


def test_deeply_nested_lists_in_a_runs_files_are_refused(tiny_run: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    for name in ("run.json", "summary.json"):
        (run / name).write_text("[" * 100_000)
    with pytest.raises(RunError, match=r"run\.json"):
        _ = Run(run).settings
    with pytest.raises(RunError, match=r"summary\.json"):
        _ = Run(run).summary


def test_an_untrusted_run_runs_nothing(tiny_run: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    for name in ("run.json", "summary.json", "recipe.toml", "metrics.jsonl", "environment.json"):
        (run / name).write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    for arguments in (["evaluate", str(run)], ["train", "--resume", str(run)]):
        assert main(arguments) == 2
    assert not (tmp_path / "trace").exists()


# --- damage ----------------------------------------------------------------------------------------------


def flips(content: bytes, count: int) -> list[bytes]:
    """Copies of ``content`` with one bit flipped: in every third of the first bytes, and in ``count`` random ones."""
    draw = random.Random(0)
    places = [*range(0, 200, 3), *(draw.randrange(len(content)) for _ in range(count))]
    damaged = []
    for place in places:
        one = bytearray(content)
        one[place] ^= 1 << draw.randrange(8)
        damaged.append(bytes(one))
    return damaged


def test_every_flipped_bit_of_the_weights_is_noticed(tiny_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for damaged in flips(tiny_run.weights_path.read_bytes(), 150):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"model\.safetensors"):
            read_weights(path)


def test_a_flipped_bit_of_a_checkpoint_is_noticed_or_has_no_effect(tiny_run: Run, tmp_path: Path) -> None:
    whole = Run(tiny_run.path).load_checkpoint()
    assert whole is not None
    shutil.copy(tiny_run.path / "recipe.toml", tmp_path)
    noticed = 0
    content = (tiny_run.path / "checkpoint.pt").read_bytes()
    for damaged in flips(content, 150):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        try:
            read = Run(tmp_path).load_checkpoint()
        except RunError as error:
            noticed += 1
            assert "checkpoint.pt" in str(error)  # noqa: PT017
            continue
        assert read is not None  # the bit was in the padding
        for name, tensor in whole["state"]["model"].items():
            assert torch.equal(tensor, read["state"]["model"][name])
        assert read["state"]["step"] == whole["state"]["step"]
    assert noticed > 100


@pytest.mark.parametrize("part", range(0, 100, 7))
def test_truncated_files_are_noticed(part: int, tiny_run: Run, tmp_path: Path) -> None:
    shutil.copy(tiny_run.path / "recipe.toml", tmp_path)
    for name in ("checkpoint.pt", "model.safetensors"):
        content = (tiny_run.path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * part // 100])
    with pytest.raises(RunError, match=r"checkpoint\.pt"):
        Run(tmp_path).load_checkpoint()
    with pytest.raises(RunError, match=r"model\.safetensors"):
        read_weights(tmp_path / "model.safetensors")


# --- archives and downloads ------------------------------------------------------------------------------


def test_a_bomb_inside_an_archive_is_not_unpacked(tmp_path: Path) -> None:
    """An archive inside an archive is skipped like any other file, and never opened."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("zeros.png", bytes(50 << 20))
    root = write_class_folders(tmp_path / "data", ["train", "test"], per_class=3)
    (root / "train" / "red" / "bomb.zip").write_bytes(inner.getvalue())
    (root / "train" / "red" / "bomb.png").write_bytes(inner.getvalue())
    with tarfile.open(tmp_path / "outer.tar.gz", "w:gz") as tar:
        tar.add(root, ".")
    unpack(tmp_path / "outer.tar.gz", tmp_path / "cache")
    cache = tmp_path / "cache"
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) < 1 << 20
    assert main(["train", str(tmp_path / "outer.tar.gz"), "--data-dir", str(tmp_path / "cache")]) == 2


def test_a_bomb_with_very_many_members_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for number in range(300):
            zipped.writestr(f"{number}.png", bytes(1 << 20))
    with pytest.raises(DataError, match="bomb"):
        unpack(tmp_path / "many.zip", tmp_path / "cache")


def test_duplicate_members_are_unpacked_and_clashing_ones_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as zipped:
        zipped.writestr("a/b.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            zipped.writestr("a/b.png", b"2")
    unpack(tmp_path / "twice.zip", tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "clash.zip", "w") as zipped:
        zipped.writestr("a", b"1")
        zipped.writestr("a/b.png", b"2")
    with pytest.raises(DataError, match="clash"):
        unpack(tmp_path / "clash.zip", tmp_path / "cache")


def test_a_circular_redirect_is_an_error(tmp_path: Path) -> None:
    requests = 0

    def redirect(request: BaseHTTPRequestHandler) -> None:
        nonlocal requests
        requests += 1
        request.send_response(302)
        request.send_header("Location", "/again")
        request.send_header("Content-Length", "0")
        request.end_headers()

    with serve(redirect) as address, pytest.raises(DataError, match="redirect"):
        download.download(f"{address}/file", tmp_path / "file", "0" * 64)
    assert requests < 30
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,hello"])
def test_a_redirect_to_anything_but_the_web_is_refused(location: str, tmp_path: Path) -> None:
    def redirect(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    with serve(redirect) as address, pytest.raises(DataError, match="cannot download"):
        download.download(f"{address}/file", tmp_path / "file", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_an_untrusted_summary_that_is_not_an_object_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    (run / "summary.json").write_text(json.dumps([1, 2]))
    with pytest.raises(RunError, match=r"summary\.json"):
        _ = Run(run).summary
    assert os.listdir(run)
