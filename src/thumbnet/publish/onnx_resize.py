"""Resize a picture of any size to the network's pixels, with nodes of an ONNX graph.

The nodes compute what :func:`thumbnet.data.rendering.fit_image` does with Pillow: bilinear resizing with
antialiasing, that is, a triangle filter that widens as the picture shrinks. Pillow resizes horizontally
first, uses 22-bit fixed-point weights, and rounds to 8 bits after each direction. ONNX's own ``Resize`` can
antialias, but it rounds only once and cannot crop at fractions of a pixel. Here, each direction is a product
with a matrix of weights that the graph computes from the picture's size. In float64 these products are exact
sums of integers, so the pixels equal Pillow's to the bit. There is one exception: since version 13, Pillow
resizes vertically first if the height shrinks much more than the width. Some pixels then differ by one level.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from thumbnet.classifiers.onnx_classifier import PICTURE
from thumbnet.data.rendering import Preprocessing

STEPS = float(1 << 22)  # a weight of 1 in fixed point, as in Pillow


class _Nodes:
    """Collects the new nodes and constants of a graph."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        from onnx import helper

        output = output or f"fit_{len(self.nodes)}_{kind.lower()}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"node_{output}", **attributes))
        return output

    def constant(self, value: Any, kind: type = np.float64) -> str:
        """Add a constant; return its name."""
        from onnx import numpy_helper

        name = f"fit_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype=kind), name))
        return name

    def cast(self, name: str, kind: type, output: str = "") -> str:
        """Add a node that converts to the type ``kind``; return the name of its output."""
        from onnx import helper

        return self.add("Cast", name, output=output, to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


def with_any_size(model: Any, preprocessing: Preprocessing, input_name: str) -> Any:
    """Replace the model's input ``input_name`` with an input ``picture`` of any size.

    Args:
        model: an ``onnx.ModelProto`` that takes uint8 [B, height, width, 3]. It is changed in place.
        preprocessing: the range, size and fit that the graph must apply.
        input_name: the name of the model's input.

    Returns:
        ``model``. It now takes one picture, uint8 [H, W, 3], or float32 [H, W, 3] if the network was trained
        on pictures of more than 8 bits, and returns logits [1, classes].
    """
    from onnx import TensorProto, helper

    graph, new = model.graph, _Nodes()
    _picture_to_pixels(new, preprocessing, input_name)
    kind = TensorProto.UINT8 if preprocessing.range is None else TensorProto.FLOAT
    picture = helper.make_tensor_value_info(PICTURE, kind, ["height", "width", 3])
    nodes = [*new.nodes, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.append(picture)
    graph.initializer.extend(new.constants)
    del graph.value_info[:]  # these shapes still allow any batch size
    graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


def _picture_to_pixels(new: _Nodes, preprocessing: Preprocessing, output: str) -> None:
    shape = new.add("Shape", PICTURE)
    sides = [new.cast(new.add("Gather", shape, new.constant(axis, np.int64)), np.float64) for axis in (0, 1)]
    rows, columns = _axes(new, preprocessing, sides)
    # First transposed, then converted: two copies in float64 would take 48 bytes per pixel.
    planes = new.cast(new.add("Transpose", PICTURE, perm=[2, 0, 1]), np.float64)
    if preprocessing.range is not None:
        planes = _levels(new, planes, *preprocessing.range)
    narrow = _rounded(new, new.add("MatMul", planes, new.add("Transpose", columns, perm=[1, 0])))
    small = _rounded(new, new.add("MatMul", rows, narrow))
    picture = new.add("Transpose", small, perm=[1, 2, 0])
    one = new.add("Unsqueeze", picture, new.constant([0], np.int64))
    new.cast(one, np.uint8, output)


def _levels(new: _Nodes, values: str, low: float, high: float) -> str:
    """Scale float64 values to levels of 0 to 255, like :meth:`thumbnet.data.rendering.Rendering.levels`."""
    above = new.add("Sub", values, new.constant(low))
    scaled = new.add("Round", new.add("Mul", above, new.constant(255.0 / (high - low))))
    return new.add("Clip", scaled, new.constant(0.0), new.constant(255.0))


def _axes(new: _Nodes, preprocessing: Preprocessing, sides: list[str]) -> tuple[str, str]:
    """Compute the weights for rows, float64 [height, H], and for columns, float64 [width, W]."""
    zero, size = new.constant(0.0), [float(side) for side in preprocessing.size]
    wanted = [new.constant(side) for side in size]
    if preprocessing.fit == "squash":
        both = [
            _weights(new, int(n), side, zero, side, w, zero)
            for n, side, w in zip(size, sides, wanted, strict=True)
        ]
        return both[0], both[1]
    ratios = [new.add("Div", want, side) for want, side in zip(wanted, sides, strict=True)]
    both = []
    if preprocessing.fit == "pad":
        ratio = new.add("Min", *ratios)
        for count, want, side in zip(size, wanted, sides, strict=True):
            scaled = new.add("Max", new.constant(1.0), new.add("Round", new.add("Mul", side, ratio)))
            margin = new.add("Sub", want, scaled)
            before = new.add("Floor", new.add("Div", margin, new.constant(2.0)))
            both.append(_weights(new, int(count), side, zero, side, scaled, before))
        return both[0], both[1]
    ratio = new.add("Max", *ratios)
    for count, want, side in zip(size, wanted, sides, strict=True):
        kept = new.add("Div", want, ratio)
        start = new.add("Max", new.add("Div", new.add("Sub", side, kept), new.constant(2.0)), zero)
        stop = new.add("Min", new.add("Add", start, kept), side)
        # Pillow stores the box as float32.
        start, stop = (new.cast(name, np.float32) for name in (start, stop))
        extent = new.cast(new.add("Sub", stop, start), np.float64)
        both.append(_weights(new, int(count), side, new.cast(start, np.float64), extent, want, zero))
    return both[0], both[1]


def _weights(new: _Nodes, count: int, side: str, start: str, extent: str, scaled: str, before: str) -> str:
    """Compute the weight of each input pixel in each output pixel: float64 [count, side].

    ``extent`` input pixels from ``start`` on become ``scaled`` output pixels, after ``before`` black ones.
    Weights are integers: ``STEPS`` stands for 1.
    """
    half, one, zero = new.constant(0.5), new.constant(1.0), new.constant(0.0)
    index = new.add("Sub", new.constant(np.arange(count)[:, None]), before)
    scale = new.add("Div", extent, scaled)
    centre = new.add("Add", start, new.add("Mul", new.add("Add", index, half), scale))
    narrowing = new.add("Div", one, new.add("Max", scale, one))
    offset = new.add("Add", new.add("Sub", new.add("Range", zero, side, one), centre), half)
    distance = new.add("Abs", new.add("Mul", offset, narrowing))
    triangle = new.add("Max", new.add("Sub", one, distance), zero)
    total = new.add("ReduceSum", triangle, new.constant([1], np.int64), keepdims=1)
    share = new.add("Mul", triangle, new.add("Div", one, new.add("Max", total, new.constant(1e-9))))
    weights = new.add("Floor", new.add("Add", new.add("Mul", share, new.constant(STEPS)), half))
    inside = new.add("And", new.add("GreaterOrEqual", index, zero), new.add("Less", index, scaled))
    return new.add("Mul", weights, new.cast(inside, np.float64))


def _rounded(new: _Nodes, values: str) -> str:
    """Divide sums of fixed-point weights by ``STEPS``, round half up, and clip to 0..255."""
    levels = new.add("Div", values, new.constant(STEPS))
    nearest = new.add("Floor", new.add("Add", levels, new.constant(0.5)))
    return new.add("Clip", nearest, new.constant(0.0), new.constant(255.0))
