"""An exported model at work, by onnxruntime (the extra ``onnx``); imports no torch.

The file's metadata entry ``thumbnet`` is that of a ``model.safetensors``: network, classes, preprocessing.
The graph takes pixels uint8 [B, height, width, 3] and gives logits float32 [B, classes]; it normalises by
itself. One of the format ``onnx-any-size`` takes one picture [H, W, 3] of any size, and resizes by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.classifiers.base import Classifier, Count
from thumbnet.data.images import Picture, is_deep
from thumbnet.data.splits import Split
from thumbnet.errors import (
    MissingExtraError,
    RecipeError,
    RunError,
    UnreadableImageError,
    UnreadableImagesError,
)
from thumbnet.evaluation import VIEW_WEIGHTS, unsure
from thumbnet.runs.finding import no_run
from thumbnet.runs.weights_info import WeightsInfo

INPUT, OUTPUT, METADATA = "pixels", "logits", "thumbnet"
PICTURE = "picture"  # the input of a graph that resizes by itself


class OnnxClassifier(Classifier):
    """A ``MODEL.onnx`` that ``thumbnet export`` wrote.

    Args:
        path: the file.
        threads: of the processor; 0 for as many as it has cores.

    Raises:
        RunError: no such file, damaged, or not written by thumbnet.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        place = Path(path).expanduser()
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("an ONNX model", "onnx") from None
        if not place.is_file():
            raise no_run(place)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what is wrong, the error says
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(place), options, providers=["CPUExecutionProvider"]
            )
            text = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        except Exception as error:  # onnxruntime has a class of its own for each way to fail
            raise RunError(f"cannot read {place}: {str(error).splitlines()[0]}") from None
        if text is None:
            raise RunError(f"{place} holds a model, but not one that thumbnet exported: no description in it")
        try:
            info = WeightsInfo.from_json(text)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RecipeError) as error:
            raise RunError(f"the description in {place} is not understood: {error}") from None
        ends = (*self._session.get_inputs(), *self._session.get_outputs())
        self.any_size = [one.name for one in ends] == [PICTURE, OUTPUT]
        shapes = [one.shape[1:] for one in ends]
        pixels = ["width", 3] if self.any_size else [*info.preprocessing.size, 3]
        if shapes != [pixels, [len(info.class_names)]]:
            raise RunError(f"the graph in {place} does not fit its description: shapes {shapes}")
        super().__init__(info)

    def logits(self, pixels: np.ndarray, *, tta: str | None = None) -> np.ndarray:  # noqa: D102
        return self._with_views(pixels, self._run(pixels), self.info.tta if tta is None else tta)

    def _with_views(self, pixels: np.ndarray, plain: np.ndarray, tta: str) -> np.ndarray:
        """Logits with ``tta``, given those without. Both are calibrated: the graph does that."""
        logits = plain.copy()
        asked: np.ndarray | slice = slice(None)
        if tta == "adaptive":
            tta, asked = "mirror-shift", unsure(logits, self.info.temperature)
            if not asked.any():
                return logits
        if tta == "none":
            return logits
        total = logits[asked] * VIEW_WEIGHTS[tta][0]
        for view, weight in zip(_views(pixels[asked], tta)[1:], VIEW_WEIGHTS[tta][1:], strict=True):
            total += self._run(view) * weight
        logits[asked] = total
        return logits

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        if self.any_size:  # such pixels have the network's size already: the graph leaves them as they are
            return np.concatenate([self.logits_of_picture(one) for one in pixels])
        logits: np.ndarray = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(pixels)})[0]
        return logits

    def logits_of_picture(self, picture: Picture) -> np.ndarray:
        """Logits, float32 [1, classes], of a decoded picture of any size, which the graph itself resizes.

        Only a model of the format ``onnx-any-size`` can do that.
        """
        limits = self.info.preprocessing.range
        values = np.asarray(picture)
        if limits is not None and is_deep(picture) and values.shape[2:] in ((), (1,), (3,)):
            planes = values.reshape(*values.shape[:2], -1).astype(np.float32)
            values = np.broadcast_to(planes, (*values.shape[:2], 3))
        else:
            values = np.asarray(self.info.preprocessing.rendering.rgb(picture))
            if limits is not None:  # on the scale of the pictures that the graph was made for
                values = (values * ((limits[1] - limits[0]) / 255) + limits[0]).astype(np.float32)
        logits: np.ndarray = self._session.run([OUTPUT], {PICTURE: np.ascontiguousarray(values)})[0]
        return logits

    def _logits_of(
        self, split: Split, tta: str, batch_size: int, on_bad_image: str, on_decode: Count | None
    ) -> tuple[Split, np.ndarray, np.ndarray]:
        pre = self.info.preprocessing
        by_itself = self.any_size and tta == "none"
        kept: list[int] = []
        parts = [np.empty((0, len(self.class_names)), dtype=np.float32)]
        plain = list(parts)
        errors: list[UnreadableImageError] = []
        for start in range(0, len(split), batch_size):
            stop = min(start + batch_size, len(split))
            pixels = []
            for index in range(start, stop):
                try:
                    picture = split.load(index)
                    if by_itself:
                        plain.append(self.logits_of_picture(picture))
                        parts.append(plain[-1])
                    else:
                        pixels.append(pre.pixels(picture))
                    kept.append(index)
                except UnreadableImageError as error:
                    errors.append(error)
            if pixels and (not errors or on_bad_image == "skip"):
                stacked = np.stack(pixels)
                plain.append(self._run(stacked))
                parts.append(self._with_views(stacked, plain[-1], tta))
            if on_decode:
                on_decode(stop, len(split))
        if errors and on_bad_image != "skip":
            raise UnreadableImagesError(errors)
        chosen = split.subset(np.array(kept, dtype=np.int64)) if errors else split
        return chosen, np.concatenate(parts), np.concatenate(plain)


def _views(pixels: np.ndarray, tta: str) -> list[np.ndarray]:
    """As :func:`thumbnet.classifiers.logits.views` has them, of uint8 [B, H, W, 3]."""
    if tta == "none":
        return [pixels]
    seen = [pixels]
    if tta == "mirror-shift":
        height, width = pixels.shape[1:3]
        padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        seen += [padded[:, :height, :width], padded[:, 2:, 2:]]
    return seen + [view[:, :, ::-1] for view in seen]
