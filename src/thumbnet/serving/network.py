"""The network that is served: load it, try it, and say whether it can replace another. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.load import load_classifier
from thumbnet.data.splits import Data
from thumbnet.errors import OutOfMemoryError, RunError
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.serving.identity import Identity, digest_of, identify

MOST_NAMED = 10  # classes that an error lists


@dataclass(frozen=True)
class Network:
    """A network to serve.

    Attributes:
        classifier: computes its predictions.
        identity: which network it is, for ``/model``.
        load_data: returns the data whose test pictures the page offers, or None.
    """

    classifier: Classifier
    identity: Identity
    load_data: Callable[[], Data | None]


@dataclass(frozen=True)
class Source:
    """Where the served network is loaded from: at the start, and each time it may have been replaced.

    Attributes:
        path, device, threads: see :func:`thumbnet.load_classifier`.
        data_of: returns the data whose test pictures the page offers, or None; called with the network's
            description.
    """

    path: str
    device: str = "auto"
    threads: int = 0
    data_of: Callable[[WeightsInfo], Data | None] = lambda info: None

    def load(self) -> Network:
        """Load the network.

        Raises:
            ThumbnetError: as :func:`thumbnet.load_classifier`; or the file changed while it was being read.
        """
        return self._load(digest_of(self.path))

    def load_unless(self, digest: str | None) -> Network | None:
        """Load the network, unless its file has this SHA-256 digest; then return None.

        Raises:
            ThumbnetError: as for :meth:`load`.
        """
        found = digest_of(self.path)
        return None if found == digest else self._load(found)

    def _load(self, digest: str) -> Network:
        classifier = load_classifier(self.path, self.device, threads=self.threads)
        identity = identify(classifier, self.path)
        if identity.digest != digest:  # so the network may be neither the old nor the new one
            raise RunError(
                f"{self.path} changed while it was being read. Write new files next to it, then rename them"
            )
        return Network(classifier, identity, partial(self.data_of, classifier.info))


def check_memory(classifier: Classifier, most: int, tta: str | None) -> None:
    """Classify the largest batch, ``most`` pictures, once.

    Raises:
        OutOfMemoryError: it does not fit the device's memory.
    """
    try:
        try_batch(classifier, most, tta)
    except (OutOfMemoryError, MemoryError) as error:
        device = getattr(classifier, "device", "cpu")
        advice = f"Use smaller batches: --max-batch {max(1, most // 2)}"
        raise OutOfMemoryError(str(device), f"classifying {most} pictures at a time", advice) from error


def try_batch(classifier: Classifier, pictures: int, tta: str | None) -> None:
    """Classify so many blank pictures. The first forward pass with each batch size is slow."""
    classifier.logits(np.zeros((pictures, *classifier.info.preprocessing.size, 3), np.uint8), tta=tta)


def check_replaces(new: WeightsInfo, old: WeightsInfo) -> None:
    """Check that clients of the network ``old`` understand the answers of ``new``.

    Both must have the same classes, in any order: answers name them. Both must give a picture one class, or
    both several labels.

    Raises:
        RunError: that is not so.
    """
    changes = []
    if new.multilabel != old.multilabel:
        kinds = {False: "one class", True: "several labels"}
        changes.append(f"it gives a picture {kinds[new.multilabel]}, not {kinds[old.multilabel]}")
    for what, names in (("new", _not_in(old, new)), ("missing", _not_in(new, old))):
        if names:
            more = ", ..." if len(names) > MOST_NAMED else ""
            changes.append(f"{what} classes: {', '.join(names[:MOST_NAMED])}{more}")
    if changes:
        raise RunError(
            f"clients may not understand the new network: {'; '.join(changes)}. To serve it nevertheless, "
            "restart the service"
        )


def _not_in(known: WeightsInfo, info: WeightsInfo) -> list[str]:
    return [name for name in info.class_names if name not in known.class_names]
