"""A run's network in a format for somewhere else, and the proof that it is still the same network.

Every graph takes pixels uint8 [B, height, width, 3], at the size that the metadata states, any B from 1, and
gives logits float32 [B, classes]: normalisation is inside. Resizing is not: the metadata names ``size`` and
``fit``, and :class:`thumbnet.data.images.Preprocessing` does it, as in training. Only ``onnx-any-size`` does
that too: it takes one picture of any size, see :mod:`thumbnet.publish.onnx_resize`.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thumbnet.classifiers.base import Classifier, Count, SplitLogits
from thumbnet.classifiers.onnx_classifier import INPUT, METADATA, OUTPUT, OnnxClassifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.images import Preprocessing
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.errors import DataError, MissingExtraError, RunError, ThumbnetError
from thumbnet.evaluation import log_softmax
from thumbnet.files import write_file
from thumbnet.models.registry import find_builder, is_built_in
from thumbnet.publish.onnx_resize import with_any_size
from thumbnet.runs.weights import find_weights, read_weights
from thumbnet.runs.weights_info import WeightsInfo

SUFFIXES = {
    "onnx": ".onnx",
    "onnx-any-size": ".any-size.onnx",
    "onnx-int8": ".int8.onnx",
    "torch-export": ".pt2",
    "safetensors": ".safetensors",
}
CALIBRATION_PICTURES = 1000
CHECKED_PICTURES = 10_000
RANDOM_PICTURES = 256  # that stand in where there are no others
TOLERANCE = 1e-3  # of a probability; float32 sums in another order differ by far less
TOLERANCE_ANY_SIZE = 0.02  # where the graph resizes, pixels may differ by one level; 0.004 was measured


@dataclass(frozen=True)
class ExportCheck:
    """The export against the run, which computes in float32 here, on the same pictures.

    Attributes:
        pictures: how many.
        largest_difference: of a class' probability on any picture.
        same_class: share of the pictures on which both name the same class.
        accuracy_run, accuracy_export: of each, with the test-time augmentation ``tta``.
        accuracy_plain: of the export without it: what its graph gives by itself.
        tta: the one by which the run was measured.
    """

    pictures: int
    largest_difference: float
    same_class: float
    accuracy_run: float
    accuracy_export: float
    accuracy_plain: float
    tta: str


class Deployed(nn.Module):
    """A network that takes pixels as they are: uint8 [B, height, width, 3] → logits float32 [B, classes].

    The logits are divided by ``temperature``: their softmax gives the calibrated probabilities.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        for name in ("mean", "std"):
            values = 255 * torch.tensor(getattr(preprocessing, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits: Tensor = self.model(x)
        return logits if self.temperature == 1.0 else logits / self.temperature


class _Exported(Classifier):
    """A ``.pt2`` at work, to be checked."""

    any_size = False

    def __init__(self, path: Path, info: WeightsInfo) -> None:
        super().__init__(info)
        self._module = torch.export.load(path).module()

    def logits(self, pixels: np.ndarray, *, tta: str | None = None) -> np.ndarray:
        views = self.info.tta if tta is None else tta
        return self._with_views(pixels, self._run(pixels), views)  # type: ignore[misc]

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = self._module(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
        return found

    _with_views = OnnxClassifier._with_views
    _logits_of = OnnxClassifier._logits_of  # by `_run`, batch by batch


def export(
    run: str | Path, kind: str, out: str | Path, data: Data | None = None, *, count: Count | None = None
) -> None:
    """Write the network of ``run`` to ``out``, whole or not at all.

    Args:
        run: a run's folder or a ``model.safetensors``.
        kind: ``onnx``; ``onnx-any-size``, which resizes in the graph; ``onnx-int8``, quantised with pictures
            of ``data``'s training split; ``torch-export`` (a ``.pt2`` for :func:`torch.export.load`);
            ``safetensors`` (the weights and their description).
        out: a file.
        data: what the network was trained on; only ``onnx-int8`` looks at it, and needs it.
        count: progress of the calibration.

    Raises:
        RunError: there is no such run, or the file cannot be written.
        DataError: ``onnx-int8`` without training pictures.
        MissingExtraError: a library for this format is not installed.
    """
    path = find_weights(run)
    weights, info = read_weights(path)
    find_builder(info.model.name)  # the check after the export needs it, too
    if kind == "safetensors":
        write_file(Path(out), path.read_bytes())
        return
    predictor = Predictor(weights, replace(info, precision="fp32"), "cpu")
    contiguous = predictor.model.to(memory_format=torch.contiguous_format)
    network = Deployed(contiguous, info.preprocessing, info.temperature).eval()
    example = torch.zeros(2, *info.preprocessing.size, 3, dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch", min=1, max=65536)}
    if kind == "torch-export":
        with _naming(info.model.name):
            program = torch.export.export(network, (example,), dynamic_shapes=(batch,))
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"thumbnet.json": info.to_json()})
        write_file(Path(out), buffer.getvalue())
        return
    model = _onnx_model(network, example, info, any_size=kind == "onnx-any-size")
    if kind == "onnx-int8":
        model = _quantised(model, data, info, count)
    write_file(Path(out), model.SerializeToString())


def random_pictures(run: str | Path) -> Data:
    """Pictures of random pixels as a run's network takes them, to check an export where there are no others.

    Raises:
        RunError: there is no such run.
    """
    _, info = read_weights(find_weights(run))
    shape = (RANDOM_PICTURES, *info.preprocessing.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    split = ArraySplit(images, np.zeros(RANDOM_PICTURES, np.int64), "random")
    return Data("random pixels", "made to check an export", info.class_names, {"train": split})


def check_export(
    run: str | Path, out: str | Path, data: Data, split: str, *, count: Count | None = None
) -> ExportCheck:
    """Compare an export with its run on up to ``CHECKED_PICTURES`` of a split, evenly chosen.

    Raises:
        RunError: either cannot be read.
    """
    weights, info = read_weights(find_weights(run))
    chosen = _evenly(data.splits[split], CHECKED_PICTURES)
    some = replace(data, splits={"train": chosen})  # a data set has a split of that name

    def ask(classifier: Classifier) -> SplitLogits:
        return classifier.classify_split(some, "train", on_bad_image="skip", on_decode=count)

    first = ask(Predictor(weights, replace(info, precision="fp32"), "cpu"))
    second = ask(_open(Path(out), info))
    probabilities = [np.exp(log_softmax(one.logits)) for one in (first, second)]
    named = [one.logits.argmax(axis=1) for one in (first, second)]
    return ExportCheck(
        pictures=len(first.labels),
        largest_difference=float(np.abs(probabilities[0] - probabilities[1]).max()),
        same_class=float((named[0] == named[1]).mean()),
        accuracy_run=float((named[0] == first.labels).mean()),
        accuracy_export=float((named[1] == second.labels).mean()),
        accuracy_plain=float((second.plain.argmax(axis=1) == second.labels).mean()),
        tta=second.tta,
    )


def _open(path: Path, info: WeightsInfo) -> Classifier:
    if path.suffix == ".onnx":
        return OnnxClassifier(path)
    if path.suffix == ".pt2":
        return _Exported(path, info)
    weights, description = read_weights(path)
    return Predictor(weights, replace(description, precision="fp32"), "cpu")


def _evenly(split: Split, most: int) -> Split:
    if len(split) <= most:
        return split
    return split.subset(np.linspace(0, len(split) - 1, most).round().astype(np.int64))


def _onnx_model(network: nn.Module, example: Tensor, info: WeightsInfo, any_size: bool) -> Any:
    """The graph, an ``onnx.ModelProto``, with its description."""
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter is built on it
    except ImportError:
        raise MissingExtraError("writing ONNX", "export") from None
    with _naming(info.model.name), _quiet():
        program = torch.onnx.export(
            network, (example,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},), verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # where in our source each came from is nobody's business
        del node.metadata_props[:]
        node.doc_string = ""
    model.producer_name, model.producer_version = "thumbnet", info.thumbnet
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA: info.to_json()})
    if any_size:
        model = with_any_size(model, info.preprocessing, INPUT)
    onnx.checker.check_model(model)
    return model


def _quantised(model: Any, data: Data | None, info: WeightsInfo, count: Count | None) -> Any:
    """Static quantisation of the convolutions and the linear layer, to 8 bits.

    Weights a scale each channel; activations by what training pictures show, evenly chosen.
    """
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        raise MissingExtraError("writing ONNX", "export") from None
    import onnx

    if data is None:
        raise DataError("quantisation is calibrated with training pictures: name them, --data DATA")
    if "train" not in data.splits:
        raise DataError(f"{data.source} has no training pictures to calibrate the quantisation with")
    pre = info.preprocessing
    split = _evenly(data.splits["train"], CALIBRATION_PICTURES)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(split), 50):
            indices = range(start, min(start + 50, len(split)))
            yield {INPUT: np.stack([pre.pixels(split.load(i)) for i in indices])}
            if count:
                count(indices.stop, len(split))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = batches()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, ready, small = (str(Path(folder) / name) for name in ("plain.onnx", "ready.onnx", "int8.onnx"))
        onnx.save(model, plain)
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantization.quantize_static(
            ready, small, Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},
        )  # fmt: skip
        quantised = onnx.load(small)
    del quantised.metadata_props[:]
    onnx.helper.set_model_props(quantised, {METADATA: json.dumps(json.loads(info.to_json()))})
    return quantised


@contextmanager
def _naming(network: str) -> Iterator[None]:
    """Say which network cannot be exported, where PyTorch's exporter gives up on a network of the user's own.

    Raises:
        RunError: it gives up.
    """
    try:
        yield
    except Exception as error:
        if is_built_in(network) or isinstance(error, MemoryError | ThumbnetError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RunError(
            f"PyTorch cannot export the network {network}: {lines[0] if lines else type(error).__name__}\n"
            "Its forward must not choose by the values of tensors, and must take any number of pictures"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' advice to their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
