"""Classify pictures with an exported model and onnxruntime (the extra ``onnx``). Imports no torch.

The file's metadata entry ``thumbnet`` is the same as in a ``model.safetensors``: network, classes and
preprocessing. The graph takes pixels, uint8 [B, height, width, 3], normalises them, and returns logits,
float32 [B, classes]. A graph of the format ``onnx-any-size`` takes one picture of any size, [H, W, 3], and
resizes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.batches.cores import library_threads
from thumbnet.classifiers.base import Classifier
from thumbnet.data.images import Picture
from thumbnet.data.rendering import is_deep
from thumbnet.errors import OutOfMemoryError, RecipeError, RunError, is_out_of_memory, needs_extra
from thumbnet.files import user_path
from thumbnet.kernels.processor import instructions
from thumbnet.runs.finding import no_run
from thumbnet.runs.weights_info import WeightsInfo

INPUT, OUTPUT, METADATA = "pixels", "logits", "thumbnet"
PICTURE = "picture"  # the input of a graph that resizes
# An x86 processor without VNNI adds two products of 8 bits in 16 bits and clips the sum, so a graph in 8 bits
# would give other answers there, without an error. This option makes the sums exact, by slower instructions.
# onnxruntime heeds it with VNNI, too, where the sums are exact without it. Only Linux says whether there is
# VNNI: on other systems the option is always set. Processors other than x86 ignore it.
EXACT_PRODUCTS = ("session.x64quantprecision", "1")
VNNI = {"avx512_vnni", "avx_vnni"}


class OnnxClassifier(Classifier):
    """A ``MODEL.onnx`` that ``thumbnet export`` wrote.

    Args:
        path: the file.
        threads: CPU threads to use; 0 for onnxruntime's choice, one per core, but no more threads than this
            process may use cores.

    Raises:
        RunError: the file does not exist, is damaged, or was not written by thumbnet.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        place = user_path(path)
        with needs_extra("an ONNX model", "onnx"):
            import onnxruntime
        if not place.is_file():
            raise no_run(place)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or library_threads()
        if not instructions() & VNNI:
            options.add_session_config_entry(*EXACT_PRODUCTS)
        options.log_severity_level = 4  # silent: the exception says what is wrong
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(place), options, providers=["CPUExecutionProvider"]
            )
            text = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
            ends = [
                (one.name, one.shape) for one in (*self._session.get_inputs(), *self._session.get_outputs())
            ]
        except Exception as error:  # onnxruntime has a different class for each kind of failure
            if is_out_of_memory(error):
                raise OutOfMemoryError("cpu", f"reading {place}", "Close other programs") from None
            raise RunError(f"cannot read {place}: {str(error).splitlines()[0]}") from None
        if text is None:
            raise RunError(f"{place} was not exported by thumbnet: the model has no description")
        try:
            info = WeightsInfo.from_json(text)
        except (ValueError, RecursionError, RecipeError) as error:
            raise RunError(f"cannot read the description in {place}: {error}") from None
        self.any_size = [name for name, _ in ends] == [PICTURE, OUTPUT]
        shapes = [shape[1:] for _, shape in ends]
        pixels = ["width", 3] if self.any_size else [*info.preprocessing.size, 3]
        if shapes != [pixels, [len(info.class_names)]]:
            raise RunError(f"the graph in {place} does not match its description: shapes {shapes}")
        super().__init__(info)
        self.loaded_from(place)

    @property
    def threads(self) -> int:
        """The number of CPU threads that onnxruntime was asked for; 0 if the choice was left to it."""
        return int(self._session.get_session_options().intra_op_num_threads)

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        if self.any_size:  # these pixels have the network's size already, so the graph does not resize them
            return np.concatenate([self.logits_of_picture(one) for one in pixels])
        return self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(pixels)})[0]

    def _classify(self, pictures: Sequence[Picture], tta: str) -> tuple[np.ndarray, np.ndarray]:
        if not self.any_size:
            return super()._classify(pictures, tta)
        # What the graph alone gives. The views of test-time augmentation are made of resized pixels.
        alone = np.concatenate([self.logits_of_picture(picture) for picture in pictures])
        return alone if tta == "none" else super()._classify(pictures, tta)[0], alone

    def logits_of_picture(self, picture: Picture) -> np.ndarray:
        """Compute the logits, float32 [1, classes], of a decoded picture of any size; the graph resizes it.

        This needs a model of the format ``onnx-any-size``.

        Raises:
            OutOfMemoryError: the picture does not fit into memory.
        """
        with self._memory():
            return self._of_picture(picture)

    def _of_picture(self, picture: Picture) -> np.ndarray:
        limits = self.info.preprocessing.range
        values = np.asarray(picture)
        if limits is not None and is_deep(picture) and values.shape[2:] in ((), (1,), (3,)):
            planes = values.reshape(*values.shape[:2], -1).astype(np.float32)
            values = np.broadcast_to(planes, (*values.shape[:2], 3))
        else:
            values = np.asarray(self.info.preprocessing.rendering.rgb(picture))
            if limits is not None:  # the scale of the network's training pictures
                values = (values * ((limits[1] - limits[0]) / 255) + limits[0]).astype(np.float32)
        return self._session.run([OUTPUT], {PICTURE: np.ascontiguousarray(values)})[0]
