"""Measures scores for pictures unlike the training pictures, and the thresholds for wanted precisions.

    python benchmarks/unlike.py --pictures 10000 --epochs 3 --json unlike.json

It trains ``fast`` on a part of CIFAR-10, once with all classes and once without two of them. The test
pictures should look like the training pictures; digits, noise, plain colours and the two classes should not.
The scores ``energy``, ``probability`` and ``logit`` need nothing but logits, as exported models give them;
``looks`` is the distance of a few statistics of the pixels; ``shipped`` is what a run stores, ``logit`` and
``looks`` together.
``mahalanobis`` and ``neighbours`` need the inputs of the last layer, and those of all training pictures.

AUROC is the chance that a picture of the other set has a higher score than a test picture. FPR95 is the share
of the other set that passes if 95 % of the test pictures pass. "Caught" is the share above the threshold that
99 % of the held-out training pictures pass, as a run stores it.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from howtos import part
from measure import SHARED, parser, report
from PIL import Image, ImageFilter
from torch import nn

from thumbnet.batches.batches import EvalBatches
from thumbnet.classifiers.logits import collect_logits
from thumbnet.classifiers.temperature import calibrated, fit_temperature
from thumbnet.classifiers.thresholds import PRECISIONS, choose_thresholds
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.classifiers.unlike import MOST, PASSED, SCORES, distances, fit_unlikeness, looks, unlikeness
from thumbnet.cli.console import say, table
from thumbnet.data.calibration import CALIBRATION, with_calibration_split
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.evaluation import log_softmax
from thumbnet.hardware import choose_device
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.load import load_data
from thumbnet.training.train import train

LEFT_OUT = ("cat", "truck")
SIDE = 32
MADE = 2000  # pictures in each made set
QUALITY = (
    75  # CIFAR-10's copy is JPEG of this quality; without it, a score could tell the sets by their artefacts
)
NEIGHBOUR = 50  # the distance to this one counts (Sun et al. 2022)
DRAWS = 200
HELD_OUT = (500, 2500)  # pictures that thresholds are chosen on, in the draws


def through_jpeg(pictures: list[np.ndarray]) -> np.ndarray:
    """Encode pictures as JPEG and decode them: uint8 [N, 32, 32, 3]."""
    found = []
    for pixels in pictures:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        found.append(np.asarray(Image.open(file).convert("RGB")))
    return np.stack(found)


def small_digits() -> np.ndarray:
    """The embedded digits, uint8 [1797, 8, 8]."""
    split = load_data("digits").splits["train"]
    return np.stack([np.asarray(split.read(i))[::4, ::4, 0] for i in range(len(split))])


def grey_digits() -> np.ndarray:
    """The embedded digits, white on black, at 32x32."""
    big = [np.kron(one, np.ones((4, 4), np.uint8)) for one in small_digits()]
    return through_jpeg([np.repeat(one[..., None], 3, axis=2) for one in big])


def coloured_digits(random: np.random.Generator) -> np.ndarray:
    """Digits drawn like SVHN's house numbers: coloured, on a textured ground, with parts of neighbours."""
    digits, made = small_digits(), []
    for _ in range(MADE):
        cover = np.zeros((SIDE, SIDE), np.float32)
        height = int(random.integers(20, 31))
        width = int(height * random.uniform(0.6, 0.9))
        left = (SIDE - width) // 2 + int(random.integers(-2, 3))
        top = (SIDE - height) // 2 + int(random.integers(-1, 2))
        places = [left] + [left + sign * width for sign in (-1, 1) if random.random() < 0.6]
        for start in places:
            digit = Image.fromarray(digits[random.integers(len(digits))])
            pixels = np.asarray(digit.resize((width, height), Image.Resampling.BICUBIC)) / np.float32(255)
            first, last = max(0, start), min(SIDE, start + width)
            if first < last:
                upper, lower = max(0, top), min(SIDE, top + height)
                inner = pixels[upper - top : lower - top, first - start : last - start]
                cover[upper:lower, first:last] = np.maximum(cover[upper:lower, first:last], inner)
        ground, ink = two_colours(random)
        coarse = random.normal(0, random.uniform(4, 18), (int(random.integers(3, 7)),) * 2 + (3,))
        waves = [
            np.asarray(
                Image.fromarray(coarse[..., k].astype(np.float32)).resize(
                    (SIDE, SIDE), Image.Resampling.BICUBIC
                )
            )
            for k in range(3)
        ]
        pixels = ground + np.stack(waves, axis=2) + random.normal(0, random.uniform(1, 6), (SIDE, SIDE, 3))
        pixels = pixels + cover[..., None] * (ink - ground)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        made.append(np.asarray(image.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 0.9))))))
    return through_jpeg(made)


def two_colours(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two colours that a person can tell apart."""
    while True:
        first, second = random.uniform(10, 245, 3), random.uniform(10, 245, 3)
        if abs(first.mean() - second.mean()) > 45:
            return first, second


def made_sets(random: np.random.Generator) -> dict[str, np.ndarray]:
    """The sets that are unlike CIFAR-10, each uint8 [N, 32, 32, 3]."""
    noise = random.integers(0, 256, (MADE, SIDE, SIDE, 3), dtype=np.uint8)
    colours = random.integers(0, 256, (MADE, 1, 1, 3), dtype=np.uint8)
    return {
        "digits like SVHN's": coloured_digits(random),
        "grey digits": grey_digits(),
        "noise": through_jpeg(list(noise)),
        "plain colours": through_jpeg(list(np.repeat(np.repeat(colours, SIDE, 1), SIDE, 2))),
    }


def features(predictor: Predictor, split: Split) -> np.ndarray:
    """The inputs of the network's last layer, float32 [N, features], without test-time augmentation."""
    last = [module for module in predictor.model.modules() if isinstance(module, nn.Linear)][-1]
    kept: list[torch.Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].float().cpu()))
    batches = EvalBatches(predictor.engine(split), predictor.normalise, batch_size=500)
    collect_logits(predictor.model, batches, dtype=predictor.dtype)
    hook.remove()
    return torch.cat(kept).numpy()


def mahalanobis(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The distance to the nearest class mean, with one covariance for all classes (Lee et al. 2018): [N]."""
    means = np.stack([known[labels == label].mean(axis=0) for label in np.unique(labels)])
    spread = known - means[np.unique(labels, return_inverse=True)[1]]
    covariance = spread.T @ spread / len(known)
    inverse = np.linalg.pinv(covariance.astype(np.float64), rcond=1e-6, hermitian=True)
    distances = []
    for mean in means:
        away = asked.astype(np.float64) - mean
        distances.append(np.einsum("nf,fg,ng->n", away, inverse, away, optimize=True))
    found: np.ndarray = np.min(distances, axis=0)
    return found


def neighbours(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The distance to the ``NEIGHBOUR``th nearest training picture on the unit sphere (Sun et al. 2022)."""
    known, asked = (
        one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-9) for one in (known, asked)
    )
    found = []
    for start in range(0, len(asked), 500):
        near = np.partition(-(asked[start : start + 500] @ known.T), NEIGHBOUR - 1, axis=1)
        found.append(near[:, NEIGHBOUR - 1])
    return np.concatenate(found)


def auroc(usual: np.ndarray, other: np.ndarray) -> float:
    """The chance that a score of ``other`` is above one of ``usual``; ties count half."""
    ordered = np.sort(usual)
    below = np.searchsorted(ordered, other, "left") + np.searchsorted(ordered, other, "right")
    return float(below.mean() / (2 * len(usual)))


def fpr95(usual: np.ndarray, other: np.ndarray) -> float:
    """The share of ``other`` that passes if 95 % of ``usual`` pass."""
    return float(np.mean(other <= np.quantile(usual, 0.95)))


class Scorer:
    """All scores of one trained network.

    Args:
        predictor: the network.
        known: its training pictures.
        held_out: pictures that it was not trained on.
    """

    def __init__(self, predictor: Predictor, known: Split, held_out: Split) -> None:
        self.predictor, self._labels = predictor, known.labels
        self._known = features(predictor, known)
        some = known.subset(np.linspace(0, len(known) - 1, min(MOST, len(known))).round().astype(np.int64))
        raw = self.logits(held_out) * predictor.info.temperature
        fitted = fit_unlikeness(raw, looks(self.pixels(held_out)), looks(self.pixels(some)))
        assert fitted is not None
        self.shipped = fitted

    def pixels(self, split: Split) -> np.ndarray:
        """The pictures as the network sees them: uint8 [N, height, width, 3]."""
        pre = self.predictor.info.preprocessing
        return np.stack([pre.pixels(split.load(index)) for index in range(len(split))])

    def logits(self, split: Split) -> np.ndarray:
        """The calibrated logits of a split, as ``predict`` computes them."""
        names = self.predictor.class_names
        unlabelled = split.subset(np.arange(len(split)))
        unlabelled.labels = np.zeros(len(split), np.int64)
        return self.predictor.classify_split(unlabelled, names).logits

    def scores(self, split: Split, logits: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Each score of a split, higher for pictures less like the training pictures: [N]."""
        logits = self.logits(split) if logits is None else logits
        temperature, how = self.predictor.info.temperature, self.shipped
        found = {name: score(logits * temperature) for name, score in SCORES.items()}
        look = looks(self.pixels(split))
        found["looks"] = distances(look, np.array(how.mean), np.array(how.inverse))
        found["shipped"] = unlikeness(logits, look, temperature, how)
        seen = features(self.predictor, split)
        found["mahalanobis"] = mahalanobis(self._known, self._labels, seen)
        found["neighbours"] = neighbours(self._known, seen)
        return found


def compare(
    usual: dict[str, np.ndarray], held_out: dict[str, np.ndarray], others: dict[str, dict[str, np.ndarray]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Compare the scores of the test pictures with those of each other set.

    A score's threshold lets the share ``PASSED`` of the held-out training pictures pass.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, scores in others.items():
        found[name] = {}
        for score, values in scores.items():
            limit = np.quantile(held_out[score], PASSED, method="higher")
            found[name][score] = {
                "auroc": auroc(usual[score], values), "fpr95": fpr95(usual[score], values),
                "caught": float(np.mean(values > limit)), "false": float(np.mean(usual[score] > limit)),
            }  # fmt: skip
    return found


def draws(logits: np.ndarray, labels: np.ndarray, temperature: float) -> list[dict[str, Any]]:
    """Choose thresholds on random halves of the test pictures, and measure them on the others."""
    random, rows = np.random.default_rng(0), []
    raw = logits * temperature
    for count in HELD_OUT:
        tried: dict[float, list[tuple[float, float]]] = {precision: [] for precision in PRECISIONS}
        for _ in range(DRAWS):
            order = random.permutation(len(labels))
            first, rest = order[:count], order[count:]
            fitted = fit_temperature(raw[first], labels[first])
            chosen = choose_thresholds(calibrated(raw[first], fitted), labels[first], "val")
            assert chosen is not None
            confidence = np.exp(log_softmax(calibrated(raw[rest], fitted)).max(axis=1))
            right = raw[rest].argmax(axis=1) == labels[rest]
            for row in chosen.table:
                taken = confidence >= row.probability
                tried[row.precision].append((float(right[taken].mean()), float(taken.mean())))
        for precision, pairs in tried.items():
            reached = [share for share, _ in pairs]
            rows.append({
                "held_out": count, "precision": precision, "supported": len(pairs) / DRAWS,
                "kept": float(np.mean([share >= precision for share in reached])) if pairs else None,
                "measured": float(np.mean(reached)) if pairs else None,
                "least": min(reached) if pairs else None,
                "accepted": float(np.mean([share for _, share in pairs])) if pairs else None,
            })  # fmt: skip
    return rows


def show_draws(rows: list[dict[str, Any]]) -> None:
    """Print what :func:`draws` found."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    heads = ["held-out", "precision", "supported", "reached", "mean precision", "least", "accepted"]
    keys = ("supported", "kept", "measured", "least", "accepted")
    say(
        table(
            heads, [[f"{r['held_out']:,}", f"{r['precision']:g}", *(cell(r[k]) for k in keys)] for r in rows]
        )
    )


def trained(data: Data, options: Any, seed: int, folder: Path) -> tuple[Scorer, Data]:
    """Train on ``data``, or take the finished run in ``folder``; returns its scores and its splits."""
    overrides = [f"training.epochs={options.epochs}", f"seed={seed}", *options.overrides]
    run = train(
        data, options.recipe, overrides=overrides, out=folder, device=options.device, auto_resume=True
    )
    say(f"{folder.name}: test accuracy {100 * run.summary['accuracy']:.2f} %")
    splits = with_calibration_split(data, run.recipe.data)
    predictor = Predictor.load(run.path, options.device)
    return Scorer(predictor, splits.splits["train"], splits.splits[CALIBRATION]), splits


def measure_seed(data: Data, options: Any, seed: int, folder: Path) -> dict[str, Any]:
    """Train both networks and compare all scores."""
    each = options.pictures // len(data.class_names)
    made = made_sets(np.random.default_rng(seed))
    scorer, all_classes = trained(
        part(data, data.class_names, dict.fromkeys(data.class_names, each), seed),
        options,
        seed,
        folder / f"all-{seed}",
    )
    test = all_classes.splits["test"]
    logits = scorer.logits(test)
    others = {
        name: scorer.scores(ArraySplit(pictures, np.zeros(len(pictures), np.int64), name))
        for name, pictures in made.items()
    }
    found = compare(scorer.scores(test, logits), scorer.scores(all_classes.splits[CALIBRATION]), others)
    few = tuple(name for name in data.class_names if name not in LEFT_OUT)
    near, eight = trained(
        part(data, few, dict.fromkeys(few, each), seed), options, seed, folder / f"without-{seed}"
    )
    unknown = part(data, LEFT_OUT, {}, seed).splits["test"]
    found |= compare(
        near.scores(eight.splits["test"]),
        near.scores(eight.splits[CALIBRATION]),
        {f"{' and '.join(LEFT_OUT)}, left out": near.scores(unknown)},
    )
    return {"sets": found, "thresholds": draws(logits, test.labels, scorer.predictor.info.temperature)}


def main() -> None:
    """Measure, print tables, and write JSON."""
    arguments = parser(__doc__, rounds=1, device="cpu")
    arguments.add_argument("--data", default=str(SHARED))
    arguments.add_argument("--recipe", default="fast")
    arguments.add_argument(
        "--pictures", type=int, default=10_000, help="training pictures of all ten classes"
    )
    arguments.add_argument("--epochs", type=int, default=3)
    arguments.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments.add_argument("--runs", metavar="DIR", help="keep the runs here, and use those that are here")
    options = arguments.parse_args()
    data = load_data(options.data, settings=DataSettings())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.runs or temporary)
        seeds = [measure_seed(data, options, seed, folder) for seed in range(options.rounds)]
    rows = []
    for name in seeds[0]["sets"]:
        for score in seeds[0]["sets"][name]:
            every = [seed["sets"][name][score] for seed in seeds]
            means = {key: float(np.mean([one[key] for one in every])) for key in every[0]}
            cells = [f"{100 * means[key]:.1f}" for key in ("fpr95", "caught", "false")]
            rows.append([name, score, f"{means['auroc']:.3f}", *cells])
    title = (
        f"{options.recipe}, {options.pictures:,} pictures of CIFAR-10 (JPEG), {options.epochs} epoch(s), "
        f"n = {options.rounds}"
    )
    heads = [
        "unlike the training pictures",
        "score",
        "AUROC",
        "FPR95, %",
        "caught, %",
        "test pictures caught, %",
    ]
    report(title, heads, rows, options.json, {"seeds": seeds}, choose_device(options.device))
    say(f"\nthresholds chosen on some of the test pictures and measured on the others, {DRAWS} draws, seed 0")
    show_draws(seeds[0]["thresholds"])


if __name__ == "__main__":
    main()
