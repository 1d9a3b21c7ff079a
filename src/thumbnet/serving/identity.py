"""Say which network is served: its run, the digest of its file, its accuracy. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from thumbnet.classifiers.base import Classifier
from thumbnet.errors import RunError
from thumbnet.files import file_digest
from thumbnet.runs.provenance import run_folder, with_provenance
from thumbnet.runs.weights import find_weights
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.serving.schemas import Accuracy, ModelDescription
from thumbnet.version import __version__


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Identity:
    """Which network is served.

    Attributes:
        info: the network's description, with the run's name and accuracy where they are known.
        format: ``run``, ``safetensors``, or the format of the export, such as ``onnx``; None if not known.
        digest: the SHA-256 digest of the weights' file, in hexadecimal; None if not known.
        started: when the service started.
        loaded: when the service loaded the network.
    """

    info: WeightsInfo
    format: str | None = None
    digest: str | None = None
    started: datetime = field(default_factory=_now)
    loaded: datetime = field(default_factory=_now)


def identify(classifier: Classifier, path: str | Path) -> Identity:
    """Identify the network that was loaded from ``path``.

    Args:
        classifier: the network.
        path: what :func:`thumbnet.load_classifier` loaded.

    Raises:
        RunError: the file cannot be read any more.
    """
    digest = digest_of(path)
    info = with_provenance(classifier.info, path)
    return Identity(info, _format_of(classifier, path, info), digest)


def digest_of(path: str | Path) -> str:
    """The SHA-256 digest, in hexadecimal, of the weights or the exported file at ``path``.

    Raises:
        RunError: the file does not exist, or cannot be read.
    """
    place = find_weights(path)
    try:
        return file_digest(place)
    except OSError as error:
        raise RunError(f"cannot read {place}: {error.strerror or error}") from None


def _format_of(classifier: Classifier, path: str | Path, info: WeightsInfo) -> str:
    if Path(path).suffix.lower() == ".onnx":
        # Exports of older versions do not name their format.
        return info.exported or ("onnx-any-size" if getattr(classifier, "any_size", False) else "onnx")
    return "safetensors" if run_folder(path) is None else "run"


def describe(identity: Identity, keeps_below: float | None = None) -> ModelDescription:
    """Describe the network for ``GET /model``. No field names a folder of this machine.

    Args:
        identity: which network it is.
        keeps_below: the service keeps pictures whose class is less probable than this; None if it keeps none.
    """
    info = identity.info
    height, width = info.preprocessing.size
    accuracy = None
    if info.accuracy is not None:
        accuracy = Accuracy(
            value=info.accuracy, split=info.accuracy_split or None, pictures=info.accuracy_pictures
        )
    return ModelDescription(
        run=info.run or None,
        format=identity.format,
        digest=None if identity.digest is None else f"sha256:{identity.digest}",
        accuracy=accuracy,
        fingerprint=info.fingerprint or None,
        calibrated=info.temperature != 1.0,
        network=info.model.name,
        classes=list(info.class_names),
        height=height,
        width=width,
        thumbnet=info.thumbnet or None,
        served_by=__version__,
        started=identity.started,
        loaded=identity.loaded,
        multilabel=info.multilabel,
        keeps_below=keeps_below,
    )
