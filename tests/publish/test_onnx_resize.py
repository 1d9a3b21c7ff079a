"""A graph that resizes a picture of any size as Pillow does."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from helpers import noise
from thumbnet.data.rendering import Fit, Preprocessing
from thumbnet.publish.onnx_resize import with_any_size

pytest.importorskip("onnx", reason="the extra 'export' is not installed")


def fitting_model(preprocessing: Preprocessing) -> Any:
    """Build a graph that only resizes: its logits are the pixels."""
    from onnx import TensorProto, checker, helper

    shape: list[str | int | None] = ["batch", *preprocessing.size, 3]
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, shape) for name in ("pixels", "logits")]
    nodes = [helper.make_node("Identity", ["pixels"], ["logits"])]
    graph = helper.make_graph(nodes, "pixels", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = with_any_size(model, preprocessing, "pixels")
    checker.check_model(model)
    return model


def fitting_graph(preprocessing: Preprocessing) -> Any:
    """Open :func:`fitting_model` with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        fitting_model(preprocessing).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


SIZES = [
    (1, 1), (2, 300), (300, 2), (32, 32), (31, 33), (100, 37), (37, 100), (480, 640), (500, 333), (17, 64),
    (64, 17), (5, 7), (72, 96), (144, 192), (1000, 30),
]  # fmt: skip


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (72, 96), (40, 16)])
def test_the_graph_resizes_as_preprocessing_does(fit: Fit, size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(size, fit, (0.5,) * 3, (0.5,) * 3)
    session = fitting_graph(preprocessing)
    rng = np.random.default_rng(0)
    exact = 0
    shapes = SIZES + [(int(h), int(w)) for h, w in rng.integers(1, 200, (25, 2))]
    for shape in shapes:
        picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        expected = preprocessing.pixels(picture).astype(int)
        (found,) = session.run(None, {"picture": picture})
        assert found.shape == (1, *size, 3)
        difference = np.abs(found[0] - expected)
        assert difference.max() <= 1, shape
        exact += int(difference.max() == 0)
    assert exact > len(shapes) / 2  # for the others, Pillow resizes vertically first


@pytest.mark.parametrize("limits", [None, (515.0, 765.5)])
def test_only_one_copy_of_the_whole_picture_is_in_float64(limits: tuple[float, float] | None) -> None:
    model = fitting_model(Preprocessing((8, 8), "crop", (0.5,) * 3, (0.5,) * 3, limits))
    readers = {node.op_type: node for node in model.graph.node if "picture" in node.input}
    assert set(readers) == {"Shape", "Transpose"}, "transposed as it is given, in 1 or 4 bytes per value"
    planes = readers["Transpose"].output[0]
    assert [node.op_type for node in model.graph.node if planes in node.input] == ["Cast"]


def test_a_picture_of_the_right_size_is_not_changed() -> None:
    picture = noise(0, 24, 40)
    for fit in get_args(Fit):
        session = fitting_graph(Preprocessing((24, 40), fit, (0.5,) * 3, (0.5,) * 3))
        assert np.array_equal(session.run(None, {"picture": picture})[0][0], picture)


def test_the_graph_renders_deep_pictures_by_the_stored_range() -> None:
    preprocessing = Preprocessing((16, 24), "pad", (0.5,) * 3, (0.5,) * 3, (515.0, 765.5))
    session = fitting_graph(preprocessing)
    values = np.random.default_rng(0).integers(400, 900, (30, 41), dtype=np.uint16)
    given = np.repeat(values[..., None], 3, axis=2).astype(np.float32)
    assert np.array_equal(session.run(None, {"picture": given})[0][0], preprocessing.pixels(values))


def test_the_graph_takes_one_picture_and_returns_one_row_of_logits() -> None:
    session = fitting_graph(Preprocessing((8, 12), "squash", (0.5,) * 3, (0.5,) * 3))
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("picture", "tensor(uint8)", ["height", "width", 3])
    assert returned.shape[0] == 1


def test_the_graph_of_deep_pictures_takes_floats_and_clips_them_to_the_range() -> None:
    preprocessing = Preprocessing((4, 4), "squash", (0.5,) * 3, (0.5,) * 3, (-10.0, 10.0))
    session = fitting_graph(preprocessing)
    assert session.get_inputs()[0].type == "tensor(float)"
    row = np.array([-1000, -10, 10, 1000], dtype=np.float32)
    picture = np.tile(row[None, :, None], (4, 1, 3))
    assert session.run(None, {"picture": picture})[0][0, 0, :, 0].tolist() == [0, 0, 255, 255]


def test_padding_is_black_and_the_picture_is_in_the_middle() -> None:
    session = fitting_graph(Preprocessing((8, 8), "pad", (0.5,) * 3, (0.5,) * 3))
    (pixels,) = session.run(None, {"picture": np.full((4, 8, 3), 200, dtype=np.uint8)})
    assert pixels[0, :, 0, 0].tolist() == [0, 0, 200, 200, 200, 200, 0, 0]
