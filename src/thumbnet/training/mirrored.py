"""Classes that are mirror images of each other: found by their names, or measured after a training."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from thumbnet.batches.batches import EvalBatches, TrainBatches
from thumbnet.batches.engines import Engine, MemoryEngine
from thumbnet.batches.prepare import Prepared
from thumbnet.classifiers.logits import collect_logits
from thumbnet.data.splits import Data
from thumbnet.errors import UnreadableImageError, printable
from thumbnet.evaluation import Evaluation
from thumbnet.models import DataInitialised, build_model
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.seeds import derive_seed
from thumbnet.training.fit import TrainingState, fit

SETTING = "--set augment.flip=none"
_NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_OPPOSITES = {
    "left": "right", "leftward": "rightward", "leftwards": "rightwards", "lefthand": "righthand", "l": "r",
    "links": "rechts", "gauche": "droite", "izquierda": "derecha", "左": "右",
    "west": "east", "northwest": "northeast", "southwest": "southeast", "w": "e", "nw": "ne", "sw": "se",
    "clockwise": "counterclockwise", "cw": "ccw", "b": "d", "p": "q",
}  # fmt: skip
FEWEST_CHARACTERS = 3  # classes: two called a and b may be anything
LOOKED_AT = 40  # pictures, to see whether they are colourless
COLOURLESS = 12  # of 255: channels that differ by no more
_SAME = {"anticlockwise": "counterclockwise", "acw": "ccw"}
_GLUED = ("left", "right")  # these are found without a separator too: turnleft, RIGHTARROW

FEW_PICTURES = 12  # of a pair's held-out pictures of one class: fewer say nothing
MIXED_UP = 0.3  # at least this share of the pair is called the other one: chance would be a half
INSIDE = 0.75  # at least this share of the pair is called one of the two
OTHERS_RIGHT = 0.5  # and where there are other classes, at least this share of their pictures is right
PROBE_VIEWS = 6000  # pictures that the probe is shown in all
PROBE_PICTURES = 2000  # at most, of the two classes
PROBE_GAIN = 0.2  # of the accuracy on the pair, from which a warning is given
MOST_PAIRS = 3


def without_mirroring(
    recipe: Recipe,
    class_names: Sequence[str],
    source: str,
    named: frozenset[str],
    are_digits: Callable[[], bool] = lambda: True,
) -> tuple[Recipe, list[str]]:
    """The recipe as it suits classes whose names say that mirroring would change them; and notes about it.

    Mirrored views at test time go with it: a network that never saw mirrored pictures is not asked about one.

    Args:
        recipe: as asked for.
        class_names: of the data.
        source: of the data.
        named: the keys that the user set himself; these stay.
        are_digits: whether classes called 0, 1, 2, ... are these digits, and not just numbered.
    """
    notes = []
    if recipe.augment.flip != "none" and "augment.flip" not in named:
        reason = _reason(class_names, source, are_digits)
        if reason:
            recipe = replace(recipe, augment=replace(recipe.augment, flip="none"))
            notes.append(f"{reason}, so pictures are not mirrored (augment.flip = none)")
    if recipe.augment.flip == "none" and recipe.evaluation.tta != "none":
        if "evaluation.tta" not in named:
            recipe = replace(recipe, evaluation=replace(recipe.evaluation, tta="none"))
        else:
            notes.append(
                f"warning: evaluation.tta = {recipe.evaluation.tta} shows mirrored pictures to a network "
                "that is trained without them (augment.flip = none)"
            )
    return recipe, notes


def named_keys(recipe: object, overrides: Sequence[str]) -> frozenset[str]:
    """The keys that a user set: by ``overrides``, or in a TOML file of his own."""
    keys = {assignment.partition("=")[0].strip() for assignment in overrides}
    if isinstance(recipe, str | Path) and Path(recipe).suffix == ".toml":
        try:
            settings = tomllib.loads(Path(recipe).read_text("utf-8"))
        except (OSError, ValueError):
            return frozenset(keys)
        tables = {section: table for section, table in settings.items() if isinstance(table, dict)}
        keys |= {f"{section}.{key}" for section, table in tables.items() for key in table}
    return frozenset(keys)


def show_digits(data: Data) -> bool:
    """Whether pictures of classes called 0, 1, 2, ... show these digits: colourless ones do, as MNIST's.

    CIFAR-10 as arrays has such classes, too, and its pictures are in colour. SVHN's digits are in colour, but
    its own reader knows them.
    """
    if data.layout.startswith("SVHN"):
        return True
    train = data.splits["train"]
    for index in np.linspace(0, len(train) - 1, LOOKED_AT).round().astype(int):
        try:
            pixels = np.asarray(train.read(int(index))).astype(np.int16)
        except UnreadableImageError:  # reported later, with all others
            continue
        spread = pixels.max(axis=2) - pixels.min(axis=2)
        if (spread > COLOURLESS).mean() > 0.05:
            return False
    return True


def _reason(class_names: Sequence[str], source: str, are_digits: Callable[[], bool]) -> str | None:
    if source == "digits":
        return "digits are not the same mirrored"
    if len(class_names) >= FEWEST_CHARACTERS and all(_is_character(name) for name in class_names):
        if not all(name.isdecimal() for name in class_names) or are_digits():
            return "the classes are characters by their names"
        return None
    pair = opposite_names(class_names)
    if pair is not None:
        return f"{printable(pair[0])} and {printable(pair[1])} are mirror images by their names"
    return None


def _is_character(name: str) -> bool:
    """A single letter or digit, or the word for a number; also with an affix, as in ``digit_7``."""
    if name.casefold() in _NUMBERS:
        return True
    if len(name) == 1:
        return name.isdigit() or (name.isascii() and name.isalpha())
    parts = re.split(r"[\W_]+", name.casefold())
    words = {"digit", "letter", "number", "char", "character"}
    return len(parts) == 2 and parts[0] in words and (len(parts[1]) == 1 or parts[1] in _NUMBERS)


def opposite_names(class_names: Sequence[str]) -> tuple[str, str] | None:
    """The first two classes whose names differ in nothing but left and right, or their like."""
    seen: dict[tuple[str, ...], str] = {}
    for name in class_names:
        seen.setdefault(tuple(_words(name)), name)
    for name in class_names:
        words = _words(name)
        for place, word in enumerate(words):
            other = _OPPOSITES.get(word)
            partner = seen.get((*words[:place], other, *words[place + 1 :])) if other else None
            if partner is not None:
                return name, partner
        turned = [_OPPOSITES.get(word, word) for word in words]
        if turned != words and tuple(turned) in seen:
            return name, seen[tuple(turned)]
    return None


def _words(name: str) -> list[str]:
    """``turnLeft``, ``turn_left`` and ``turnleft`` → turn, left."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = []
    for word in re.split(
        r"[\W_\d]+|(?<=[左右])|(?=[左右])", spaced.casefold().replace("counter-", "counter")
    ):
        glued = next((end for end in _GLUED if len(word) > len(end) + 2 and word not in _OPPOSITES), None)
        glued = next((one for one in _GLUED if glued and (word.endswith(one) or word.startswith(one))), None)
        if glued is None or word in _OPPOSITES.values():
            words.append(_SAME.get(word, word))
        elif word.endswith(glued):
            words += [word.removesuffix(glued), glued]
        else:
            words += [glued, word.removeprefix(glued)]
    digits = re.sub(r"\D+", " ", name).split()
    return [word for word in words if word] + digits


@dataclass(frozen=True)
class MirroredPair:
    """Two classes that a network trained with mirroring mixes up and one trained without tells apart.

    Attributes:
        first, second: positions in the class names.
        pictures: held-out pictures of the two.
        before: share of them that the run's network names rightly.
        without: the same of the probe, a small network trained shortly on these two without mirroring.
        sent_over: share of the same pictures that the probe takes for the other class once they are mirrored.
    """

    first: int
    second: int
    pictures: int
    before: float
    without: float
    sent_over: float

    def sentence(self, class_names: Sequence[str]) -> str:
        """A warning."""
        one, other = (printable(class_names[label]) for label in (self.first, self.second))
        return (
            f"warning: {one} and {other} are mixed up: {100 * self.before:.0f} % of their {self.pictures} "
            f"held-out pictures are right. A small network that was trained without mirroring gets "
            f"{100 * self.without:.0f} % right, and takes {100 * self.sent_over:.0f} % for the other class "
            f"once they are mirrored. Train without mirroring: {SETTING}"
        )


def suspicious_pairs(confusion: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of classes that are confused nearly by chance, while the others are told apart.

    Args:
        confusion: counts, int [classes, classes]: a row for each true class.
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
    """Pairs of classes whose confusion mirroring explains; nothing is computed where no pair is suspicious.

    Args:
        recipe: of the run.
        prepared: its data.
        split: held out, and measured by ``evaluation``.
        evaluation: of the run's network, without test-time augmentation.
        device: to train the probe on.
    """
    if recipe.augment.flip == "none":
        return []
    found = []
    for first, second in suspicious_pairs(np.array(evaluation.confusion)):
        counts = np.array(evaluation.confusion)
        held = int(counts[[first, second]].sum())
        before = float((counts[first, first] + counts[second, second]) / held)
        right, sent_over = _probe(recipe, prepared, split, (first, second), device)
        enough = max(PROBE_GAIN, 2 * (0.25 / held) ** 0.5)  # two standard errors of a share near a half
        if right >= before + enough and sent_over >= 0.5 + enough / 2:
            found.append(MirroredPair(first, second, held, before, right, sent_over))
    return found


def _probe(
    recipe: Recipe, prepared: Prepared, split: str, pair: tuple[int, int], device: torch.device
) -> tuple[float, float]:
    """How a small network without mirroring does on two classes: accuracy, and the share of mirrored pictures
    that it takes for the other class. All random numbers are the probe's own."""
    train = _pair_engine(prepared.train.engine, pair, PROBE_PICTURES)
    held = _pair_engine(prepared.evaluation[split].engine, pair, PROBE_PICTURES)
    mirrored = MemoryEngine(held.images.flip(-1).contiguous(memory_format=torch.channels_last), held.labels)
    epochs = max(2, min(60, PROBE_VIEWS // len(train.labels)))
    settings = load_recipe("small").override([
        "augment.flip=none", "evaluation.tta=none", "evaluation.every=0", f"training.epochs={epochs}",
        "model.width=0.5", "training.batch_size=64", "training.drop_last=false", f"seed={recipe.seed}",
        f"training.precision={recipe.training.precision}",
    ])  # fmt: skip
    normalise, size = prepared.train.normalise, prepared.preprocessing.size
    batches = TrainBatches(
        train, normalise, settings.augment, size, batch_size=64, drop_last=False, seed=recipe.seed
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "mirror probe"))
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
                probe, EvalBatches(engine, normalise, batch_size=500), bf16=state.bf16
            )
            shares.append(float((logits.argmax(dim=1) == labels).double().mean()))
    return shares[0], 1 - shares[1]


def _pair_engine(engine: Engine, pair: tuple[int, int], most: int) -> MemoryEngine:
    """Pictures of two classes, up to ``most``, evenly chosen; their labels are 0 and 1."""
    labels = engine.labels.cpu()
    places = ((labels == pair[0]) | (labels == pair[1])).nonzero().flatten()
    if len(places) > most:
        places = places[torch.linspace(0, len(places) - 1, most, dtype=torch.float64).round().long()]
    images = torch.cat(list(engine.fetch(places.split(500))))
    return MemoryEngine(images, (labels[places] == pair[1]).long())
