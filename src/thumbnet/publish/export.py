"""Export a run's network to another format, and check that it still computes the same.

Every exported graph takes pixels, uint8 [B, height, width, 3] with any B from 1, and returns logits,
float32 [B, classes]. Normalisation is part of the graph. Resizing is not: the metadata holds ``size`` and
``fit``, and :class:`~thumbnet.data.rendering.Preprocessing` resizes accordingly, as in training. The
exception is ``onnx-any-size``: its graph also resizes, and takes one picture of any size, see
:mod:`thumbnet.publish.onnx_resize`.
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

from thumbnet.batches.decoding import readable
from thumbnet.classifiers.base import Classifier, SplitLogits
from thumbnet.classifiers.labels import labels_above, log_probabilities
from thumbnet.classifiers.onnx_classifier import INPUT, METADATA, OUTPUT, OnnxClassifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.splits import ArraySplit, Data, Progress, Split
from thumbnet.errors import (
    DataError,
    RunError,
    ThumbnetError,
    is_out_of_memory,
    memory_guard,
    needs_extra,
)
from thumbnet.files import file_digest, read_whole, write_file
from thumbnet.models.registry import find_builder, is_built_in
from thumbnet.multilabel import average_precisions, sigmoid
from thumbnet.publish.onnx_resize import with_any_size
from thumbnet.publish.web_runtime import load_runtime
from thumbnet.publish.webpage import HALF, check_web, described_in, model_in, open_network, web_page
from thumbnet.runs.provenance import batch_size_of, recipe_of, with_provenance
from thumbnet.runs.weights import find_weights, read_weights
from thumbnet.runs.weights_info import WeightsInfo

SUFFIXES = {
    "onnx": ".onnx",
    "onnx-any-size": ".any-size.onnx",
    "onnx-int8": ".int8.onnx",
    "torch-export": ".pt2",
    "safetensors": ".safetensors",
    "web": ".html",
}
CALIBRATION_PICTURES = 1000
CHECKED_PICTURES = 10_000
RANDOM_PICTURES = 256  # used when there are no real pictures
OTHERS = "Close other programs that use much memory"
TOLERANCE = 1e-3  # in a probability; summing float32 in another order changes far less
TOLERANCE_HALF = 0.02  # for weights stored in 16 bits; we measured up to 0.001
TOLERANCE_ANY_SIZE = 0.02  # resizing in the graph may change pixels by one level; we measured up to 0.004
LOST_IN_8_BITS = 0.05  # of the accuracy (or mAP); we measured 0.0005


@dataclass(frozen=True)
class ExportCheck:
    """How an export compares with its run on the same pictures. The run computes in float32 here.

    Attributes:
        pictures: the number of pictures.
        largest_difference: the largest difference in the probability of a class, over all pictures.
        largest_plain: the same without test-time augmentation, which is what the graph alone gives. With
            ``adaptive``, rounding may decide whether a picture is looked at in one view or in several.
        same_class: the share of pictures for which both predict the same class, or the same labels.
        accuracy_run, accuracy_export: the accuracies with the test-time augmentation ``tta``, 0 to 1.
        accuracy_plain: the export's accuracy without it, which is what the graph alone achieves.
        tta: the test-time augmentation with which the run was measured.
        measure: what the accuracies are: ``accuracy``, or ``mAP`` for several labels per picture.
    """

    pictures: int
    largest_difference: float
    largest_plain: float
    same_class: float
    accuracy_run: float
    accuracy_export: float
    accuracy_plain: float
    tta: str
    measure: str = "accuracy"


class Deployed(nn.Module):
    """A network with its normalisation: pixels, uint8 [B, height, width, 3], to logits, float32 [B, classes].

    The logits are divided by ``temperature``, so their softmax (or sigmoid, for several labels) gives
    calibrated probabilities.
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
        """Compute the logits; see the class."""
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits: Tensor = self.model(x)
        return logits if self.temperature == 1.0 else logits / self.temperature


class _Exported(Classifier):
    """A classifier that runs a ``.pt2`` file, for the check."""

    def __init__(self, path: Path, info: WeightsInfo) -> None:
        super().__init__(info)
        try:
            content = io.BytesIO(read_whole(path))
        except OSError as error:
            raise RunError(f"cannot read {path} back: {error.strerror or error}") from None
        try:
            with _quiet():
                self._module = torch.export.load(content).module()
        except Exception as error:  # it raises almost anything on a damaged file
            if is_out_of_memory(error):
                raise
            raise RunError(f"cannot read {path} back: the file is damaged. Export it again") from None

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = self._module(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
        return found


@memory_guard("cpu", "exporting the network", OTHERS)
def export(
    run: str | Path, kind: str, out: str | Path, data: Data | None = None, *, progress: Progress | None = None
) -> None:
    """Write the network of ``run`` to the file ``out`` atomically.

    Args:
        run: a run's folder or a ``model.safetensors``.
        kind: ``onnx``; ``onnx-any-size``, which resizes in the graph; ``onnx-int8``, quantised with pictures
            of ``data``'s training split; ``torch-export`` (a ``.pt2`` for :func:`torch.export.load`);
            ``safetensors`` (the weights and their description); ``web``, a page that classifies pictures in
            a browser, see :mod:`thumbnet.publish.webpage`.
        out: the file to write.
        data: the training data; required by ``onnx-int8``, which leaves out pictures that cannot be read;
            ignored by the other kinds.
        progress: called with the number of calibration pictures done and their total.

    Raises:
        RunError: the run does not exist, PyTorch cannot export the network, the file cannot be written, or
            the network is too large for ``web``.
        DataError: ``onnx-int8`` without training pictures that can be read, or ``web`` cannot download its
            runtime.
        ModelCodeError: the network is the user's own, and its import path was not named.
        NetworkError: the user's own network cannot be imported.
        MissingExtraError: a library for this format is not installed.
        OutOfMemoryError: the network or its graph does not fit into memory.
    """
    path = find_weights(run)
    weights, info = read_weights(path)
    find_builder(info.model.name)  # fail before the export, not after it, if the network's code is missing
    if kind == "safetensors":
        try:
            content = read_whole(path)
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror or error}") from None
        write_file(Path(out), content)
        return
    if kind == "web":
        check_web(info)
    calibration = _calibration_pictures(data) if kind == "onnx-int8" else None
    info = replace(with_provenance(info, run), exported=kind)
    if kind == "onnx-int8":  # the accuracy is that of the network before it is quantised
        info = replace(info, accuracy=None, accuracy_split="", accuracy_pictures=None)
    predictor = Predictor(weights, replace(info, precision="fp32"), "cpu")
    contiguous = predictor.model.to(memory_format=torch.contiguous_format)
    network = Deployed(contiguous, info.preprocessing, info.temperature).eval()
    example = torch.zeros(2, *info.preprocessing.size, 3, dtype=torch.uint8)
    batch = {0: torch.export.Dim("batch", min=1, max=65536)}
    if kind == "torch-export":
        with _naming(info.model.name):
            program = torch.export.export(network, (example,), dynamic_shapes=(batch,))
        for node in program.graph.nodes:  # remove the file paths and line numbers of our source
            node.meta.pop("stack_trace", None)
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={"thumbnet.json": info.to_json()})
        write_file(Path(out), buffer.getvalue())
        return
    model = _onnx_model(network, example, info, any_size=kind == "onnx-any-size")
    if calibration is not None:
        model = _quantised(model, calibration, info, progress)
    if kind == "web":
        write_file(Path(out), web_page(model, info, file_digest(path), load_runtime()))
        return
    write_file(Path(out), model.SerializeToString())


def random_pictures(info: WeightsInfo) -> Data:
    """Make pictures of random pixels in a network's size, to check an export without real pictures."""
    shape = (RANDOM_PICTURES, *info.preprocessing.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    split: Split = ArraySplit(images, np.zeros(RANDOM_PICTURES, np.int64), "random")
    if info.multilabel:
        split = MultiLabelSplit(split, np.zeros((RANDOM_PICTURES, len(info.class_names)), dtype=bool))
    return Data("random pixels", "made to check an export", info.class_names, {"train": split})


@memory_guard("cpu", "checking the export", OTHERS)
def check_export(
    run: str | Path, out: str | Path, data: Data, split: str, *, progress: Progress | None = None
) -> ExportCheck:
    """Compare an export with its run on up to ``CHECKED_PICTURES`` pictures, spread evenly over a split.

    Raises:
        RunError: the run or the export cannot be read.
        OutOfMemoryError: the run, the export or a batch does not fit into memory.
    """
    weights, info = read_weights(find_weights(run))
    chosen = _evenly(data.splits[split], CHECKED_PICTURES)
    batch_size = batch_size_of(recipe_of(run))

    def ask(classifier: Classifier) -> SplitLogits:
        return classifier.classify_split(
            chosen, data.class_names, batch_size=batch_size, on_bad_image="skip", progress=progress
        )

    first = ask(Predictor(weights, replace(info, precision="fp32"), "cpu"))
    second = ask(_open(Path(out), info))
    if info.multilabel:
        return _check_labels(info, first, second)
    predicted = [one.logits.argmax(axis=1) for one in (first, second)]
    return ExportCheck(
        pictures=len(first.labels),
        largest_difference=_difference(info, first.logits, second.logits),
        largest_plain=_difference(info, first.plain, second.plain),
        same_class=float((predicted[0] == predicted[1]).mean()),
        accuracy_run=float((predicted[0] == first.labels).mean()),
        accuracy_export=float((predicted[1] == second.labels).mean()),
        accuracy_plain=float((second.plain.argmax(axis=1) == second.labels).mean()),
        tta=second.tta,
    )


def _difference(info: WeightsInfo, first: np.ndarray, second: np.ndarray) -> float:
    """The largest difference in a probability between two arrays of logits."""
    found = np.exp(log_probabilities(first, info)) - np.exp(log_probabilities(second, info))
    return float(np.abs(found).max())


def _check_labels(info: WeightsInfo, first: SplitLogits, second: SplitLogits) -> ExportCheck:
    """The comparison for a network that gives several labels."""
    given = [labels_above(sigmoid(one.logits), info) for one in (first, second)]
    truth = first.labels.astype(bool)

    def mean_precision(logits: np.ndarray) -> float:
        found = average_precisions(logits, truth)
        return float(np.nanmean(found)) if truth.any() else 0.0

    return ExportCheck(
        pictures=len(truth),
        largest_difference=_difference(info, first.logits, second.logits),
        largest_plain=_difference(info, first.plain, second.plain),
        same_class=float((given[0] == given[1]).all(axis=1).mean()),
        accuracy_run=mean_precision(first.logits),
        accuracy_export=mean_precision(second.logits),
        accuracy_plain=mean_precision(second.plain),
        tta=second.tta,
        measure="mAP",
    )


def _open(path: Path, info: WeightsInfo) -> Classifier:
    if path.suffix == ".onnx":
        return OnnxClassifier(path)
    if path.suffix == ".pt2":
        return _Exported(path, info)
    if path.suffix == ".html":
        return open_network(model_in(_page(path)))
    weights, description = read_weights(path)
    return Predictor(weights, replace(description, precision="fp32"), "cpu")


def tolerance(kind: str, half: bool) -> float:
    """How much a probability may differ from the run's, in one view, for an export to be used.

    Args:
        kind: the format, as in :func:`export`. In 8 bits a probability may change by any amount; see
            :func:`loses_accuracy`.
        half: whether it stores its weights in 16 bits.
    """
    if kind == "onnx-int8":
        return 1.0
    if kind == "onnx-any-size":
        return TOLERANCE_ANY_SIZE
    return TOLERANCE_HALF if half else TOLERANCE


def loses_accuracy(check: ExportCheck) -> bool:
    """Whether an export loses more of the run's accuracy than 8 bits may cost.

    That is the test of a network in 8 bits. Two pictures may always get another answer, because a small split
    has no finer measure.
    """
    lost = round((check.accuracy_run - check.accuracy_export) * check.pictures)
    return lost > max(LOST_IN_8_BITS * check.pictures, 2)


def has_half_weights(out: str | Path) -> bool:
    """Whether an export of the format ``web`` stores its weights in 16 bits.

    Raises:
        RunError: the page cannot be read.
    """
    return described_in(_page(Path(out)))["weights"] == HALF


def _page(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from None


def _evenly(split: Split, most: int) -> Split:
    if len(split) <= most:
        return split
    return split.subset(np.linspace(0, len(split) - 1, most).round().astype(np.int64))


def _onnx_model(network: nn.Module, example: Tensor, info: WeightsInfo, any_size: bool) -> Any:
    """Build the graph, an ``onnx.ModelProto``, with the network's description in its metadata."""
    with needs_extra("writing ONNX", "export"):
        import onnx
        import onnxscript  # noqa: F401  torch's exporter imports it
    with _naming(info.model.name), _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:  # remove the file paths and line numbers of our source
        del node.metadata_props[:]
        node.doc_string = ""
    model.producer_name, model.producer_version = "thumbnet", info.thumbnet
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA: info.to_json()})
    if any_size:
        model = with_any_size(model, info.preprocessing, INPUT)
    onnx.checker.check_model(model)
    return model


def _calibration_pictures(data: Data | None) -> Split:
    """The training pictures on which a network in 8 bits is calibrated, without those that cannot be read.

    Raises:
        DataError: there are none.
    """
    if data is None:
        raise DataError("onnx-int8 is calibrated on training pictures: name them with --data DATA")
    split, _ = readable(_evenly(data.splits["train"], CALIBRATION_PICTURES))
    if len(split) == 0:
        raise DataError(
            f"onnx-int8 is calibrated on training pictures, and none of {data.source} can be read"
        )
    return split


def _quantised(model: Any, split: Split, info: WeightsInfo, progress: Progress | None) -> Any:
    """Quantise the convolutions and the linear layer statically to 8 bits.

    Weights have one scale per channel. The scales of the activations are measured on ``split``.
    """
    with needs_extra("writing ONNX", "export"):
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    import onnx

    pre = info.preprocessing

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(split), 50):
            indices = range(start, min(start + 50, len(split)))
            yield {INPUT: np.stack([pre.pixels(split.load(i)) for i in indices])}
            if progress:
                progress(indices.stop, len(split))

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
            ready,
            small,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            activation_type=quantization.QuantType.QUInt8,
            # Weights keep all 8 bits. With 7 (reduce_range), no sum of two products would exceed 16 bits, but
            # weights would be coarser. Instead, EXACT_PRODUCTS of onnx_classifier makes the sums exact.
            weight_type=quantization.QuantType.QInt8,
            extra_options={"CalibMovingAverage": True},
        )
        quantised = onnx.load(small)
    del quantised.metadata_props[:]
    onnx.helper.set_model_props(quantised, {METADATA: json.dumps(json.loads(info.to_json()))})
    return quantised


@contextmanager
def _naming(network: str) -> Iterator[None]:
    """If PyTorch's exporter fails on a user's own network, raise an error that names the network.

    Raises:
        RunError: the exporter fails.
    """
    try:
        yield
    except Exception as error:
        if is_built_in(network) or isinstance(error, ThumbnetError) or is_out_of_memory(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RunError(
            f"PyTorch cannot export the network {network}: {lines[0] if lines else type(error).__name__}\n"
            "Its forward method must take any batch size, and must not branch on the values of tensors"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings, which are meant for their own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
