"""Targets of the fuzzers: the files of runs, searches and reviews, weights and exported models."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from contextlib import suppress

import numpy as np
import torch

from faults.fuzz_parts import SCRATCH, Target, folder_of, joined, npy_file, split
from thumbnet.classifiers.onnx_classifier import INPUT, METADATA, OUTPUT, OnnxClassifier
from thumbnet.data.corrections import corrections_csv, newest, parse_corrections
from thumbnet.data.rendering import Preprocessing
from thumbnet.errors import DataError, RecipeError, RunError, ThumbnetError
from thumbnet.models import build_model
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import ModelSettings
from thumbnet.reviewing.scores import _Store
from thumbnet.runs.any_weights import read_any_weights
from thumbnet.runs.folder import Run
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.training.tracker import remembered
from thumbnet.training.transfer import begin_from
from thumbnet.tuning.study import JOURNAL, Study, best_of

MODEL = ModelSettings("resnet20", 0.07)
INFO = WeightsInfo(
    MODEL, ("cat", "dog"), Preprocessing((16, 16), "pad", (0.5,) * 3, (0.2,) * 3), "fp32", "digits", "ab"
)
SUMMARY = {
    "split": "test", "accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "tta": "none", "epochs": 2,
    "seconds_total": 1.5, "kept_by": "last", "warnings": ["one"], "temperature": 1.0,
    "repeats": {"lines": ["two"]}, "labels": {"sha256": "00", "relabelled": 1},
}  # fmt: skip


def _run(files: dict[str, bytes]) -> Run:
    recipe = Recipe().to_toml().encode()
    return Run(folder_of({"recipe.toml": recipe, "run.json": b"{}", **files}))


def summary(data: bytes) -> object:
    try:
        return _run({"summary.json": data}).summary
    except RunError:
        return None


def metrics(data: bytes) -> object:
    """The metrics of a run: charts and tables compute with all values."""
    try:
        rows = _run({"metrics.jsonl": data}).metrics
    except RunError:
        return None
    for row in rows:
        assert type(row["epoch"]) is int
        for key in ("loss", "lr", "test_loss", "test_accuracy"):
            assert row.get(key) is None or not math.isnan(100 * row[key]), row
    return rows


def corrections(data: bytes) -> object:
    """A file of corrections; what was read is written and read again."""
    try:
        found = parse_corrections(data, "labels.csv")
    except DataError:
        return None
    assert parse_corrections(corrections_csv(found), "labels.csv") == newest(found) == found
    return found


def journal(data: bytes) -> object:
    """The journal of a search for settings."""
    folder = folder_of({JOURNAL: data})
    try:
        records = Study(folder, (), 0).records()
    except RunError:
        return None
    if any(one.state == "complete" for one in records):
        best_of(records)
    return records


def _journal_seeds() -> list[bytes]:
    study = Study(folder_of({}), (), 0)
    for value in (0.5, 0.75):
        suggestion = study.ask()
        suggestion.report(1, value)
        suggestion.complete(value, [0.3, 0.5], seconds=1.0, elapsed=2.0, predicted=1.0)
    hopeless = study.ask()
    hopeless.report(1, 0.1)
    hopeless.stop(seconds=1.0, elapsed=3.0, predicted=1.0)
    study.ask().fail("diverged", seconds=1.0, elapsed=4.0, predicted=1.0)
    return [(SCRATCH / "data" / JOURNAL).read_bytes()]


def described(data: bytes) -> object:
    """The description of weights, which reads itself again."""
    try:
        found = WeightsInfo.from_json(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError, RecipeError):
        return None
    assert WeightsInfo.from_json(found.to_json()) == found
    return found


def scores(data: bytes) -> object:
    """Kept scores of a review: a ``.npz``, raw or (flag 1) from headers and values."""
    flags, parts = split(data, 4)
    content = data[1:]
    if flags & 1:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as zipped:
            zipped.writestr("key.npy", npy_file(*parts[:2]))
            zipped.writestr("probabilities.npy", npy_file(*parts[2:]))
        content = buffer.getvalue()
    found = _Store(folder_of({"network.npz": content}), "key").load(0)
    assert found is None or (found.dtype == np.float32 and found.ndim == 2)
    return found


def _score_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    np.savez(buffer, key=np.array("key"), probabilities=np.ones((2, 3), np.float32))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    key = b"{'descr': '<U3', 'fortran_order': False, 'shape': (), }"
    values = np.ones((2, 3), np.float32).tobytes()
    return [joined(0, buffer.getvalue()), joined(1, key, np.array("key").tobytes(), header, values)]


def tracked(data: bytes) -> object:
    return remembered(folder_of({"tracker.json": data}) / "tracker.json")


# --- weights ----------------------------------------------------------------------------------------------

_NETWORK: list[torch.nn.Module] = []


def _network() -> torch.nn.Module:
    if not _NETWORK:
        _NETWORK.append(build_model(MODEL, 2))
    return _NETWORK[0]


def any_weights(data: bytes) -> object:
    """Weights of any program, up to their place in a network.

    Flags: 1 is a zip archive around a pickle and the values of its tensors, 2 a safetensors file around its
    header, 4 a bare pickle; else the raw file.
    """
    flags, (first, second) = split(data, 2)
    content, name = data[1:], "weights.pt"
    if flags & 1:
        buffer = io.BytesIO()
        with zipfile.ZipFile(
            buffer, "w", zipfile.ZIP_DEFLATED if flags & 8 else zipfile.ZIP_STORED
        ) as zipped:
            for member, inside in (("data.pkl", first), ("version", b"3\n"), ("byteorder", b"little")):
                zipped.writestr(f"archive/{member}", inside)
            sizes = (24, 8, len(second) % 1000)
            for number, size in enumerate(sizes):
                zipped.writestr(f"archive/data/{number}", second[:size].ljust(size, b"\0"))
        content = buffer.getvalue()
    elif flags & 2:
        content, name = struct.pack("<Q", len(first)) + first + second, "weights.safetensors"
    path = folder_of({name: content}) / name
    try:
        found = read_any_weights(path)
    except RunError:
        return None
    with suppress(RunError):
        begin_from(_network(), MODEL, str(path), ("cat", "dog"))
    return found


def _weight_seeds() -> list[bytes]:
    from safetensors.torch import save

    state = {"conv.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}
    found = []
    for content in (state, {"model": state, "epoch": 3}):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with zipfile.ZipFile(buffer) as zipped:
            pickled = next(zipped.read(n) for n in zipped.namelist() if n.endswith("data.pkl"))
        found += [joined(flags, pickled, bytes(24)) for flags in (1, 9)] + [joined(0, buffer.getvalue())]
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    raw = save(state)
    size = struct.unpack_from("<Q", raw)[0]
    return [*found, joined(4, buffer.getvalue()), joined(2, raw[8 : 8 + size], raw[8 + size :])]


_PICKLE_WORDS = (
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"ctorch\nHalfStorage\n", b"ctorch\nbfloat16\n",
    b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch._utils\n_rebuild_qtensor\n", b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nSize\n", b"K\0", b"\x86", b"\x85", b"}", b")", b"(", b"t", b"R", b"Q",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"J\0\0\0\x7f", b"0", b"2", b"\x94", b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n",
    b'"F64"', b'"BOOL"', b'"shape":[0]', b'"__metadata__":{"thumbnet":"{}"}',
)  # fmt: skip


def checkpoint(data: bytes) -> object:
    """A checkpoint: a zip archive with right checksums around a pickle and the values of its tensors."""
    _, (pickled, values) = split(data, 2)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for member, inside in (("data.pkl", pickled), ("version", b"3\n"), ("data/0", values)):
            zipped.writestr(f"archive/{member}", inside)
    try:
        return _run({"checkpoint.pt": buffer.getvalue()}).load_checkpoint()
    except RunError:
        return None


def _checkpoint_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    torch.save({"recipe": Recipe().to_toml(), "epoch": 1, "model": {"weight": torch.zeros(4)}}, buffer)
    with zipfile.ZipFile(buffer) as zipped:
        pickled = next(zipped.read(n) for n in zipped.namelist() if n.endswith("data.pkl"))
    return [joined(0, pickled, bytes(16))]


# --- exported models --------------------------------------------------------------------------------------


def onnx_model(data: bytes) -> object:
    """An exported model: its description, and its graph. It is also tried on a picture."""
    import onnx

    _, (text, graph) = split(data, 2)
    end = onnx.ModelProto()
    # Two protocol buffers, one after the other, are one.
    end.metadata_props.append(
        onnx.StringStringEntryProto(key=METADATA, value=text.decode("utf-8", "replace"))
    )
    path = folder_of({"model.onnx": graph + end.SerializeToString()}) / "model.onnx"
    try:
        found = OnnxClassifier(path, threads=1)
        return found.predict_pixels(np.zeros((1, 16, 16, 3), np.uint8))
    except ThumbnetError:
        return None


def _onnx_seeds() -> list[bytes]:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    axes = numpy_helper.from_array(np.array([1, 2]), "axes")
    nodes = [
        helper.make_node("Cast", [INPUT], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], [OUTPUT]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", 16, 16, 3])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 2])],
        [weight, axes],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return [joined(0, INFO.to_json().encode(), model.SerializeToString())]


_JSON_WORDS = (
    b"null", b"[]", b"{}", b"1e999", b"NaN", b"-1", b'"a"', b"[[[[", b"true", b"1.5", b"9" * 20, b"\\ud800", b"\\u0000",
    b'"epoch": 1', b'"test_accuracy": ', b'"loss": ', b"\n", b"\xe2\x80\xa8",
)  # fmt: skip
_ROW = {
    "epoch": 1,
    "loss": 1.0,
    "train_accuracy": 0.5,
    "test_loss": 0.9,
    "test_accuracy": 0.5,
    "lr": 0.1,
}
_SUMMARY = json.dumps(SUMMARY).encode()
_CORRECTIONS = b"picture,label,split,was,decision\n./=a.png,dog,train,cat,relabel\nb.png,'=x,test,'=x,confirm\nc.png,,train,dog,drop\n"
TARGETS = {
    "summary": Target(summary, lambda: [_SUMMARY], _JSON_WORDS),
    "metrics": Target(
        metrics,
        lambda: [json.dumps(_ROW).encode() + b"\n" + json.dumps(_ROW | {"epoch": 2}).encode()],
        _JSON_WORDS,
    ),
    "corrections": Target(
        corrections,
        lambda: [_CORRECTIONS, _CORRECTIONS.replace(b",", b";")],
        (
            b",",
            b'"',
            b"\n",
            b"\r",
            b"./",
            b"'",
            b"=",
            b"@",
            b"\xff",
            b"relabel",
            b"confirm",
            b"unsure",
            b"test",
            b"\t",
        ),
    ),
    "journal": Target(journal, _journal_seeds, _JSON_WORDS),
    "described": Target(described, lambda: [INFO.to_json().encode()], _JSON_WORDS),
    "scores": Target(scores, _score_seeds, (b"'<f8'", b"(3,)", b"()", b"-1", b"'|O'", b"True")),
    "tracked": Target(tracked, lambda: [b'{"id": "abc-1"}'], _JSON_WORDS),
    "any_weights": Target(any_weights, _weight_seeds, _PICKLE_WORDS),
    "checkpoint_parts": Target(checkpoint, _checkpoint_seeds, _PICKLE_WORDS),
    "onnx": Target(onnx_model, _onnx_seeds, _JSON_WORDS),
}
