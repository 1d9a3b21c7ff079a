"""Find classes that are mirror images of each other, by training a small probe after the training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from thumbnet.batches.batches import EvalBatches, TrainBatches
from thumbnet.batches.engines import Engine, MemoryEngine, evenly_spaced
from thumbnet.batches.prepare import Prepared
from thumbnet.classifiers.logits import collect_logits
from thumbnet.errors import printable
from thumbnet.evaluation import Evaluation
from thumbnet.hardware import seeded
from thumbnet.models import DataInitialised, build_model
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.recipes.settings import SMALLEST_SIDE
from thumbnet.seeds import derive_seed
from thumbnet.training.build import passes
from thumbnet.training.fit import fit
from thumbnet.training.state import TrainingState

SETTING = "--set augment.flip=none"

# A pair is suspicious if each class has FEW_PICTURES held-out pictures and the network
# - takes at least MIXED_UP of the pair's pictures for the other class (chance would be a half),
# - calls at least INSIDE of them one of the two,
# - classifies at least OTHERS_RIGHT of the other classes' pictures correctly, if there are other classes.
FEW_PICTURES = 12
MIXED_UP = 0.3
INSIDE = 0.75
OTHERS_RIGHT = 0.5
PROBE_VIEWS = 6000  # pictures that the probe sees during its training, repeats included
PROBE_PICTURES = 2000  # at most this many different pictures of the two classes
PROBE_GAIN = 0.2  # warn if the probe's accuracy on the pair is higher by at least this
MOST_PAIRS = 3


@dataclass(frozen=True)
class MirroredPair:
    """Two classes that a network confuses if it trained with mirroring, and separates if it did not.

    Attributes:
        first, second: positions in the class names.
        pictures: number of held-out pictures of both classes.
        before: share of them that the run's network classifies correctly.
        without: share that the probe classifies correctly. The probe is a small network, trained briefly on
            these two classes without mirroring.
        sent_over: share of the same pictures that the probe takes for the other class when they are mirrored.
    """

    first: int
    second: int
    pictures: int
    before: float
    without: float
    sent_over: float

    def sentence(self, class_names: Sequence[str]) -> str:
        """A warning for the user."""
        one, other = (printable(class_names[label]) for label in (self.first, self.second))
        return (
            f"warning: {one} and {other} are mixed up: {100 * self.before:.0f} % of their {self.pictures} "
            f"held-out pictures are right. A small network that was trained without mirroring gets "
            f"{100 * self.without:.0f} % right, and takes {100 * self.sent_over:.0f} % for the other class "
            f"once they are mirrored. Train without mirroring: {SETTING}"
        )


def suspicious_pairs(confusion: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of classes that the network confuses almost at random while it separates the others.

    Args:
        confusion: counts, int [classes, classes], with a row for each true class.
    """
    totals = confusion.sum(axis=1)
    both = totals[:, None] + totals[None, :]
    mixed = confusion + confusion.T
    inside = mixed + confusion.diagonal()[:, None] + confusion.diagonal()[None, :]
    enough = np.minimum(totals[:, None], totals[None, :]) >= FEW_PICTURES
    chosen = np.triu((mixed >= MIXED_UP * both) & (inside >= INSIDE * both) & enough, 1)
    found = [(int(one), int(other)) for one, other in np.argwhere(chosen)]
    rest = np.setdiff1d(np.arange(len(totals)), [label for pair in found for label in pair])
    others = confusion[rest, rest].sum() / max(1, totals[rest].sum())
    if len(rest) and totals[rest].sum() and others < OTHERS_RIGHT:
        return []
    return found[:MOST_PAIRS]


def find_mirrored(
    recipe: Recipe, prepared: Prepared, split: str, evaluation: Evaluation, device: torch.device
) -> list[MirroredPair]:
    """Pairs of classes whose confusion mirroring explains. Trains a probe for each suspicious pair.

    Args:
        recipe: the run's recipe.
        prepared: the run's data.
        split: the held-out split that ``evaluation`` measured.
        evaluation: the result of the run's network without test-time augmentation.
        device: where the probe trains.
    """
    if recipe.augment.flip == "none":
        return []
    found, counts = [], np.array(evaluation.confusion)
    for first, second in suspicious_pairs(counts):
        held = int(counts[[first, second]].sum())
        before = float((counts[first, first] + counts[second, second]) / held)
        right, sent_over = _probe(recipe, prepared, split, (first, second), device)
        enough = max(PROBE_GAIN, 2 * (0.25 / held) ** 0.5)  # two standard errors of a share near one half
        if right >= before + enough and sent_over >= 0.5 + enough / 2:
            found.append(MirroredPair(first, second, held, before, right, sent_over))
    return found


def _probe(
    recipe: Recipe, prepared: Prepared, split: str, pair: tuple[int, int], device: torch.device
) -> tuple[float, float]:
    """Train a small network on two classes without mirroring and test it on held-out pictures.

    It draws its own random numbers and leaves PyTorch's generators unchanged.

    Returns:
        The accuracy, and the share of mirrored pictures that it takes for the other class; 0 for both if
        there is nothing to train on.
    """
    if len(_places(prepared.train.engine, pair)) < 2:
        return 0.0, 0.0
    train = _pair_engine(prepared.train.engine, pair, PROBE_PICTURES)
    held = _pair_engine(prepared.evaluation[split].engine, pair, PROBE_PICTURES)
    mirrored = MemoryEngine(held.images.flip(-1).contiguous(memory_format=torch.channels_last), held.labels)
    epochs = max(2, min(60, PROBE_VIEWS // len(train.labels)))
    settings = load_recipe("small").override(
        [
            "augment.flip=none",
            "evaluation.tta=none",
            "evaluation.every=0",
            f"training.epochs={epochs}",
            "model.width=0.5",
            "training.batch_size=64",
            "training.drop_last=false",
            f"seed={recipe.seed}",
            f"training.precision={recipe.training.precision}",
        ]
    )
    normalise, size = prepared.train.normalise, prepared.preprocessing.size
    if max(size) == SMALLEST_SIDE and 1 in passes(settings, len(train.labels)):
        # The last pass would have one picture, which the network reduces to one value per channel. BatchNorm
        # cannot normalise that.
        settings = settings.override(["training.drop_last=true"])
    batches = TrainBatches(train, normalise, settings, size)
    with seeded(derive_seed(recipe.seed, "mirror probe"), device):
        model = build_model(settings.model, 2)
        if isinstance(model, DataInitialised):
            model.initialise_from(normalise(train.images))
        state = TrainingState(model, settings, len(batches), device)
        for _ in fit(state, batches):
            pass
        probe = state.evaluated_model
        shares = []
        for engine in (held, mirrored):
            logits, labels = collect_logits(
                probe, EvalBatches(engine, normalise, batch_size=500), dtype=state.dtype
            )
            shares.append(float((logits.argmax(dim=1) == labels).double().mean()))
    return shares[0], 1 - shares[1]


def _pair_engine(engine: Engine, pair: tuple[int, int], most: int) -> MemoryEngine:
    """Up to ``most`` pictures of two classes, evenly spaced, with the labels 0 and 1."""
    places = _places(engine, pair)
    places = places[evenly_spaced(len(places), most)]
    images = torch.cat(list(engine.fetch(places.split(500))))
    return MemoryEngine(images, (engine.labels.cpu()[places] == pair[1]).long())


def _places(engine: Engine, pair: tuple[int, int]) -> torch.Tensor:
    """The positions of the pictures of two classes, int64 [N], on the CPU."""
    labels = engine.labels.cpu()
    return ((labels == pair[0]) | (labels == pair[1])).nonzero().flatten()
