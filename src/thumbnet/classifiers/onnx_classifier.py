"""An exported model at work, by onnxruntime (the extra ``onnx``); imports no torch.

The file's metadata entry ``thumbnet`` is that of a ``model.safetensors``: network, classes, preprocessing.
The graph takes pixels uint8 [B, height, width, 3] and gives logits float32 [B, classes]; it normalises by
itself. One of the format ``onnx-any-size`` takes one picture [H, W, 3] of any size, and resizes by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.classifiers.base import Classifier
from thumbnet.data.images import Picture, is_deep
from thumbnet.errors import MissingExtraError, RecipeError, RunError
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

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        if self.any_size:  # these pixels have the network's size already, so the graph does not resize them
            return np.concatenate([self.logits_of_picture(one) for one in pixels])
        logits: np.ndarray = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(pixels)})[0]
        return logits

    def _classify(self, pictures: Sequence[Picture], tta: str) -> tuple[np.ndarray, np.ndarray]:
        if not self.any_size or tta != "none":
            return super()._classify(pictures, tta)
        logits = np.concatenate([self.logits_of_picture(picture) for picture in pictures])
        return logits, logits

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
