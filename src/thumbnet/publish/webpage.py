"""Build one HTML file that classifies pictures in a browser, without network: model, runtime and page.

The page is that of ``thumbnet serve``, with a network that runs in the page in place of the service. It
holds the network as ONNX, ONNX Runtime Web (:mod:`thumbnet.publish.web_runtime`) and ``web/classify.js``,
which does what :mod:`thumbnet.classifiers` does in Python: it decodes and resizes pictures, averages views,
calibrates, and puts the answer into words.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from thumbnet.classifiers.onnx_classifier import OnnxClassifier
from thumbnet.classifiers.tta import SURE_LEAD, WEIGHTS
from thumbnet.classifiers.words import POSSIBLE, PROBABLE, SURE
from thumbnet.errors import RunError
from thumbnet.files import inline_source
from thumbnet.publish import web_runtime
from thumbnet.publish.web_runtime import WebRuntime
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.version import __version__

LIMIT = 15_000_000  # bytes: what mail servers and messengers usually pass on
FULL, HALF = "32 bits", "stored in 16 bits"
SMALL_TENSOR = 1024  # numbers; smaller tensors stay in 32 bits
PLANES = 4  # bytes of a weight; see :func:`to_planes`
_SERVICE_HTML = re.compile(r"<!-- service -->.*?<!-- /service -->\n", re.DOTALL)
_SERVICE_SCRIPT = re.compile(r"// <service>.*?// </service>\n", re.DOTALL)
_SCRIPT = re.compile(r"<script>\n\"use strict\";\n(.*?)</script>", re.DOTALL)
_STYLE = "pre { white-space: pre-wrap; font-size: .75rem; max-height: 24rem; overflow: auto; }\n"
_NO_SCRIPT = "<noscript><p>This page needs JavaScript: open the file in a browser.</p></noscript>"
_FOOT = """\
<footer><p>This page needs no network. The pictures stay on this computer.</p>
<details id="licences"><summary>Licences</summary><pre tabindex="0"></pre></details></footer>
"""


def web_page(model: Any, info: WeightsInfo, digest: str, runtime: WebRuntime) -> str:
    """Build the page. The weights are stored in 16 bits if the page is larger than ``LIMIT`` otherwise.

    Args:
        model: the network, an ``onnx.ModelProto``. Its weights are rounded to 16 bits if they do not fit.
        info: the network's description.
        digest: the SHA-256 digest of the file of weights, in hexadecimal.
        runtime: ONNX Runtime Web.

    Raises:
        RunError: the page would still be larger than ``LIMIT``, onnxruntime cannot run the network, or it
            needs more than 8 bits per colour, which browsers do not deliver.
        MissingExtraError: onnxruntime is not installed.
    """
    check_web(info)
    sizes = []
    for weights in (FULL, HALF):
        if weights == HALF:
            halve_weights(model)
        network = model.SerializeToString()
        described = describe(info, digest, weights)
        described["known_logits"] = known_logits(network)
        page = _assembled(described, network, runtime)
        if len(page) <= LIMIT:  # it is ASCII
            return page
        sizes.append(len(page) / 1e6)
    numbers = sum(int(np.prod(one.dims)) for one in model.graph.initializer)
    raise RunError(
        f"the page would have {sizes[0]:.1f} MB, and {sizes[1]:.1f} MB with the weights in 16 bits. At most "
        f"{LIMIT / 1e6:.0f} MB are allowed. This network ({info.model.name}) has {numbers / 1e6:.1f} million "
        "weights; about 4.3 million fit. Train a smaller one, such as fastnet (1.9 million, the recipe "
        "fast), or export this one with --format onnx"
    )


def check_web(info: WeightsInfo) -> None:
    """Check that a browser can prepare the network's pictures.

    Raises:
        RunError: the network was trained on pictures of more than 8 bits.
    """
    if info.preprocessing.range is not None:
        raise RunError(
            "the network was trained on pictures of more than 8 bits per colour, and browsers decode "
            "pictures to 8 bits: its answers would be wrong there. Use --format onnx"
        )


def describe(info: WeightsInfo, digest: str, weights: str) -> dict[str, Any]:
    """Describe the network for the page: what ``GET /model`` of the service says, and how to classify."""
    pre = info.preprocessing
    height, width = pre.size
    accuracy = None
    if info.accuracy is not None:
        accuracy = {
            "value": info.accuracy,
            "split": info.accuracy_split or None,
            "pictures": info.accuracy_pictures,
        }
    return {
        "run": info.run or None,
        "format": "web",
        "digest": f"sha256:{digest}",
        "accuracy": accuracy,
        "fingerprint": info.fingerprint or None,
        "calibrated": info.temperature != 1.0,
        "network": info.model.name,
        "classes": [_as_utf8(name) for name in info.class_names],
        "height": height,
        "width": width,
        "thumbnet": info.thumbnet or None,
        "written_by": __version__,
        "multilabel": info.multilabel,
        "weights": weights,
        "runtime": web_runtime.VERSION,
        "fit": pre.fit,
        "background": pre.background,
        "vertical_first": int(PIL.__version__.partition(".")[0]) >= 13,
        "tta": "mirror-shift" if info.multilabel and info.tta == "adaptive" else info.tta,
        "tta_weights": WEIGHTS,
        "sure_lead": SURE_LEAD,
        "temperature": info.temperature,
        "label_thresholds": info.label_thresholds,
        "unlike": info.unlike and asdict(info.unlike),
        "bands": {"sure": SURE, "probable": PROBABLE, "possible": POSSIBLE},
    }


def known_logits(network: bytes) -> list[float]:
    """Compute the logits of one fixed picture. The page compares its own with them.

    Args:
        network: an ONNX file of ours.

    Raises:
        RunError: onnxruntime cannot run it.
        MissingExtraError: onnxruntime is not installed.
    """
    classifier = open_network(network)
    shape = (1, *classifier.info.preprocessing.size, 3)
    pixels = np.arange(int(np.prod(shape))) * 37 % 256  # as in classify.js
    (logits,) = classifier.logits(pixels.astype(np.uint8).reshape(shape), tta="none")
    return [round(float(logit), 4) for logit in logits]


def open_network(network: bytes) -> OnnxClassifier:
    """Open an ONNX file of ours whose bytes are in memory.

    Raises:
        RunError: onnxruntime cannot run it.
        MissingExtraError: onnxruntime is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        file.write_bytes(network)
        return OnnxClassifier(file)


def halve_weights(model: Any) -> None:
    """Store the large float32 tensors of an ``onnx.ModelProto`` in float16. The graph casts them back.

    The network still computes in float32.

    Raises:
        RunError: a weight is too large for float16.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph, casts = model.graph, []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < SMALL_TENSOR:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise RunError(f"the page is too large, and {tensor.name} has weights too large for 16 bits")
        name, half = tensor.name, f"{tensor.name}.float16"
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [name], name=f"node_{half}", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def described_in(page: str) -> dict[str, Any]:
    """Read the network's description in a page.

    Raises:
        RunError: it is not a page of ours.
    """
    try:
        found = json.loads(_block(page, "described"))
    except ValueError as error:
        raise RunError(f"the page's description is damaged: {error}") from None
    if not isinstance(found, dict):
        raise RunError("the page's description is damaged")
    return found


def model_in(page: str) -> bytes:
    """Read the network in a page, as the bytes of an ONNX file.

    Raises:
        RunError: it is not a page of ours.
    """
    try:
        return from_planes(gzip.decompress(base64.b64decode(_block(page, "network"), validate=True)))
    except (binascii.Error, EOFError, OSError, zlib.error) as error:
        raise RunError(f"the network in the page is damaged: {error}") from None


def to_planes(content: bytes) -> bytes:
    """Put bytes 0, 4, 8, ... first, then bytes 1, 5, 9, ..., and so on.

    The bytes with the exponents of weights then stand together. gzip, which uses one code for all of a
    stretch, makes 7 % less of a network so.
    """
    return b"".join(content[plane::PLANES] for plane in range(PLANES))


def from_planes(planes: bytes) -> bytes:
    """Undo :func:`to_planes`."""
    content, at = bytearray(len(planes)), 0
    for plane in range(PLANES):
        count = len(range(plane, len(planes), PLANES))
        content[plane::PLANES] = planes[at : at + count]
        at += count
    return bytes(content)


def _block(page: str, name: str) -> str:
    found = re.search(f'id="{name}">([^<]*)</script>', page)
    if found is None:
        raise RunError("export --format web did not write this page, or it is damaged")
    return found[1]


def _assembled(described: dict[str, Any], model: bytes, runtime: WebRuntime) -> str:
    """Put the page together. It is ASCII, so it reads the same whatever encoding a server claims for it."""
    shown = (resources.files("thumbnet.serving") / "page.html").read_text("utf-8")
    shown = _SERVICE_HTML.sub("", shown).replace("</style>", f"{_STYLE}</style>")
    shown = shown.replace("</header>", f"{_NO_SCRIPT}</header>").replace("</main>\n", f"</main>\n{_FOOT}")
    found, style = _SCRIPT.search(shown), re.search(r"<style>(.*?)</style>", shown, re.DOTALL)
    assert found is not None, "the page of the service has no script"
    assert style is not None, "the page of the service has no style"
    script = _script(found[1], runtime)
    before = shown[: found.start()].replace("<title>", f"{_policy(script, style[1])}\n<title>", 1)
    licences = resources.files("thumbnet.publish") / "web" / "licences.txt.gz"
    blocks = [
        _data("described", json.dumps(described).replace("<", "\\u003c"), "application/json"),
        _data("network", _packed(gzip.compress(to_planes(model), 9, mtime=0))),
        _data("runtime", _packed(runtime.wasm)),
        _data("licence-texts", _packed(licences.read_bytes())),
    ]
    return "".join(
        [
            _ascii(before, lambda code: f"&#{code};"),
            *blocks,
            f'<script type="module">{script}</script>',
            _ascii(shown[found.end() :], lambda code: f"&#{code};"),
        ]
    )


def _script(page: str, runtime: WebRuntime) -> str:
    """One script: the runtime, and the page's own with the network in place of the service."""
    classify = (resources.files("thumbnet.publish") / "web" / "classify.js").read_text("utf-8")
    script = f"\n{_as_object(runtime.script)}\n{_SERVICE_SCRIPT.sub(lambda _: classify, page)}"
    return _ascii(script.replace("</script", "<\\/script"), lambda code: f"\\u{{{code:x}}}")


def _as_object(module: str) -> str:
    """Turn an ES module into ``const ort = {...}``, so that one script holds it and the page's own code."""
    body, _, exports = module.rpartition("export{")
    names = {}
    for one in exports.partition("}")[0].split(","):
        local, _, exported = one.partition(" as ")
        names[exported] = local
    wanted = ", ".join(f"{name}: {names[name]}" for name in ("InferenceSession", "Tensor", "env"))
    return f"const ort = (() => {{\n{body}\nreturn {{ {wanted} }};\n}})();"


def _policy(script: str, style: str) -> str:
    """The page may run its own script and load nothing, so that pictures cannot leave it."""
    return (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"script-src {inline_source(script)} 'wasm-unsafe-eval'; style-src {inline_source(style)}; "
        "img-src data: blob:; media-src blob:; base-uri 'none'; form-action 'none'\">"
    )


def _data(name: str, text: str, kind: str = "application/octet-stream") -> str:
    return f'<script type="{kind}" id="{name}">{text}</script>\n'


def _packed(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _ascii(text: str, escape: Callable[[int], str]) -> str:
    """Escape what is not ASCII."""
    return re.sub(r"[^\x00-\x7f]", lambda found: escape(ord(found[0])), text)


def _as_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
