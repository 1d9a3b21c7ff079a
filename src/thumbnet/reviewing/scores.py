"""Probabilities of all pictures of a run's data, each from a network that was not trained on that picture.

A network remembers the labels that it was trained on, even wrong ones, so it cannot judge them. The run's own
network classifies only the pictures that it was not trained on. Its training pictures are divided into folds
(:mod:`thumbnet.data.folds`), and for each fold, a network is trained with the run's recipe on the
other folds. The probabilities of each fold are kept in the run's folder:

```text
scores/network.npz   the pictures that the run's own network classified
scores/fold-1.npz    those of the first fold, and so on
```

Each file has a digest of everything that it depends on. A scoring that was interrupted continues with the
first fold that has no valid file.
"""

from __future__ import annotations

import hashlib
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from thumbnet.batches.batches import EvalBatches
from thumbnet.batches.cores import within_quota
from thumbnet.batches.decoding import decode_split, find_unreadable
from thumbnet.batches.engines import CPU, fits_in_memory
from thumbnet.batches.leaks import are_among, training_digests
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.classifiers.logits import collect_logits
from thumbnet.classifiers.temperature import calibrated, fit_temperature
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.folds import fold_numbers, joined
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.repeats import number_pictures, picture_digests
from thumbnet.data.spelling import places_in
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.errors import FallbackWarning, RunError, ThumbnetError, memory_guard
from thumbnet.evaluation import log_softmax
from thumbnet.files import check_links, make_folder, write_with
from thumbnet.hardware import compute_dtype, deterministic
from thumbnet.recipes.networks import is_timm
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import AUTO
from thumbnet.runs.finding import ways_on
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import find_weights
from thumbnet.seeds import derive_seed
from thumbnet.training.build import build_state
from thumbnet.training.continue_run import Beginning, beginning
from thumbnet.training.fit import StepResult
from thumbnet.training.known import find_known
from thumbnet.training.linear import train_epochs
from thumbnet.training.schedules import pixels_after
from thumbnet.training.transfer import read_initial

FOLDS = 3
FOLDER = "scores"
_VERSION = 1  # raise it when the files or the way to compute them change


@dataclass(frozen=True)
class Scores:
    """What networks say about the pictures of a data set.

    Attributes:
        probabilities: by split, float32 [N, classes], columns in the order of the data's class names. A row
            of NaN belongs to a picture that cannot be read.
        digests: by split, uint64 [N, 2], from :func:`thumbnet.data.repeats.picture_digests`; empty if the
            pictures were not compared. The row of an unreadable picture means nothing.
        held_out: by split, bool [N]: whether the network had not seen the picture in its training.
    """

    probabilities: dict[str, np.ndarray]
    digests: Mapping[str, np.ndarray] = field(default_factory=dict)
    held_out: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring:
    """How far :func:`score_pictures` is.

    Attributes:
        network: the network that is being trained, counted from 1; 0 while the run's own network classifies.
        networks: the number of networks to train, with those that an interrupted call has trained.
        done: the share of all trainings that is done, 0 to 1.
        pictures_per_second: the speed of the training; None before the first step.
        seconds_left: an estimate for the trainings; None before the first step.
    """

    network: int
    networks: int
    done: float
    pictures_per_second: float | None = None
    seconds_left: float | None = None


def score_pictures(
    run: Run,
    data: Data,
    *,
    folds: int = FOLDS,
    device: str = "auto",
    progress: Callable[[Scoring], None] | None = None,
) -> Scores:
    """Compute the probabilities of all pictures; see the text of this module.

    The same run, data and ``folds`` give the same scores. The split ``all``, which repeats ``train``, has no
    scores of its own.

    Args:
        run: a complete run.
        data: the run's data, or newer ones: pictures are recognised by their pixels. If they were not all in
            memory during the training, every picture in ``train`` counts as a training picture.
        folds: how many networks to train, 2 or more. With 0, none is trained, and the run's network judges
            its own training pictures too. That takes seconds. It has seen their labels, so after a long
            training it overlooks some of the wrong ones.
        device: ``auto``, ``cpu``, ``cuda``, ...
        progress: called after every training step. If it raises an exception, the scoring ends, and the
            folds that are finished are kept.

    Raises:
        RunError: the run is not complete, has several labels per picture, has a link that leads out of its
            folder, or it is not known what it began with (see :func:`fold_recipe`).
        ThumbnetError: ``folds`` is 1 or negative.
        DivergedError, OutOfMemoryError: see :func:`thumbnet.training.fit.fit`.
    """
    if folds < 0 or folds == 1:
        raise ThumbnetError(f"the number of folds is {folds}: expected 2 or more, or 0 to train no network")
    for folder in (run.path, run.path / FOLDER):
        check_links(folder)
    if not run.is_complete:
        raise RunError(
            f"{run.path} is not finished, so its labels cannot be reviewed yet. "
            f"{ways_on(run.path, 'First finish')}"
        )
    if folds:
        _beginning(run)  # raises its error before anything is decoded
        if beginning(run) is None:
            text = f"{_gone(run)}: the networks of the folds begin with random ones"
            warnings.warn(text, FallbackWarning, stacklevel=2)
    guard = memory_guard("this computer", "scoring the pictures", "Close other programs")
    with deterministic(), within_quota(), guard:
        return _Scorer(run, data, folds, device, progress or (lambda state: None)).scores()


class _Scorer:
    """Computes the scores of one run. All readable pictures of all splits count as one sequence of N."""

    def __init__(
        self, run: Run, data: Data, folds: int, device: str, progress: Callable[[Scoring], None]
    ) -> None:
        self.run, self.data, self.folds, self.progress = run, data, folds, progress
        self.own = Predictor.load(run.path, device)
        if self.own.info.multilabel:
            raise RunError(f"{run.path} has several labels per picture: only single labels can be reviewed")
        progress(Scoring(0, folds, 0.0))
        originals = {name: split for name, split in data.splits.items() if name != "all" and len(split)}
        self.sizes = {name: len(split) for name, split in originals.items()}
        self.kept = {
            name: np.setdiff1d(np.arange(len(split)), list(find_unreadable(split)))
            for name, split in originals.items()
        }
        readable = {name: split.subset(self.kept[name]) for name, split in originals.items()}
        self.in_memory = fits_in_memory(readable.values(), self.preprocessing.size)
        self.splits: dict[str, Split] = readable
        self.digests: np.ndarray | None = None
        if self.in_memory:
            decoded = {name: self._decoded(name, split) for name, split in readable.items()}
            self.splits = {**decoded}
            self.digests = np.concatenate([picture_digests(one.images) for one in decoded.values()])
        self.labels = np.concatenate([split.labels for split in self.splits.values()])
        self.seen = self._seen()
        self.numbers = self._fold_numbers()
        self.meter = _Meter(folds, progress)

    @property
    def preprocessing(self) -> Preprocessing:
        return self.own.info.preprocessing

    def _decoded(self, name: str, split: Split) -> ArraySplit:
        """The pictures as the network sees them, except that their values are not normalised."""
        pre = self.preprocessing
        if not len(split):
            return ArraySplit(np.empty((0, *pre.size, 3), dtype=np.uint8), split.labels, name)
        images = decode_split(split, pre.size, pre.fit, rendering=pre.rendering).images
        return ArraySplit(images.permute(0, 2, 3, 1).numpy(), split.labels, name)

    def _seen(self) -> np.ndarray:
        """Which pictures the run was trained on, or on a copy of them: bool [N]."""
        trained_on = training_digests(self.run.path)
        if self.digests is not None and trained_on is not None:
            return are_among(self.digests, trained_on)
        in_train = np.concatenate(
            [np.full(len(split), name == "train") for name, split in self.splits.items()]
        )
        if self.digests is None:
            return in_train
        return are_among(self.digests, self.digests[in_train])

    def _fold_numbers(self) -> np.ndarray:
        """The fold of each picture, from 1, or 0 if the run's own network classifies it: int64 [N]."""
        numbers = np.zeros(len(self.labels), dtype=np.int64)
        pool = np.flatnonzero(self.seen)
        if self.folds and len(pool):
            alike = [np.arange(len(self.labels)) if self.digests is None else number_pictures(self.digests)]
            if self.data.groups:
                alike.append(self._groups())
            together = joined(*alike)[pool]
            seed = derive_seed(self.run.recipe.seed, "folds")
            numbers[pool] = fold_numbers(self.labels[pool], together, self.folds, seed)
        return numbers

    def _groups(self) -> np.ndarray:
        """The number of each picture's group, int64 [N]; a number of its own for one without a group."""
        names = [
            self.data.groups[name][self.kept[name]]
            if name in self.data.groups
            else np.array([f"\0{name} {index}" for index in range(len(split))], dtype=object)
            for name, split in self.splits.items()
        ]
        return np.unique(np.concatenate(names).astype(str), return_inverse=True)[1]

    def scores(self) -> Scores:
        """Load or compute the probabilities of every fold."""
        found = np.full((len(self.labels), len(self.data.class_names)), np.nan, dtype=np.float32)
        store = _Store(self.run.path / FOLDER, self._key())
        kept = {number: store.load(number) for number in range(self.folds + 1)}
        self.meter.networks_done = sum(kept[number] is not None for number in range(1, self.folds + 1))
        for number, values in kept.items():
            rows = np.flatnonzero(self.numbers == number)
            if not len(rows):
                continue
            if values is None or values.shape != (len(rows), found.shape[1]):
                values = self._trained(number, rows) if number else self._by_own_network(rows)
                store.save(number, values)
            found[rows] = values
        self.progress(Scoring(0, self.folds, 1.0, seconds_left=0.0))
        return self._by_split(found)

    def _key(self) -> str:
        """A digest of everything that the scores depend on."""
        weights = find_weights(self.run.path).read_bytes()
        digest = hashlib.blake2b(f"{_VERSION} {self.folds} {self.fingerprint}".encode(), digest_size=16)
        parts = [weights, self.run.recipe.to_toml().encode(), self.numbers.tobytes()]
        began = _beginning(self.run) if self.folds else Beginning()
        if began != Beginning() and self.run.settings.get("continues"):
            parts.append(str(began).encode())  # else as in earlier versions, whose scores are still valid
        if began.init:
            parts.append(b"compared by pictures")  # earlier versions compared the names of the data
        for part in parts:
            digest.update(hashlib.blake2b(part).digest())
        if self.digests is not None:
            digest.update(self.digests.tobytes())
        return digest.hexdigest()

    def _by_split(self, found: np.ndarray) -> Scores:
        """Give each picture its place in its split; unreadable ones get NaN."""
        held_out = ~self.seen | (self.numbers > 0)
        probabilities, digests, fair, start = {}, {}, {}, 0
        for name, kept in self.kept.items():
            rows = slice(start, start + len(kept))
            start += len(kept)
            probabilities[name] = np.full((self.sizes[name], found.shape[1]), np.nan, dtype=np.float32)
            probabilities[name][kept] = found[rows]
            fair[name] = np.zeros(self.sizes[name], dtype=bool)
            fair[name][kept] = held_out[rows]
            if self.digests is not None:
                digests[name] = np.zeros((self.sizes[name], 2), dtype=np.uint64)
                digests[name][kept] = self.digests[rows]
        return Scores(probabilities, digests, fair)

    def _by_own_network(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities of the pictures ``rows`` by the run's own network, float32 [rows, classes]."""
        own, info = self.own, self.own.info
        logits = self._logits(own.model, rows, own.dtype, info.tta)
        answers = _probabilities(calibrated(logits, info.temperature))
        found = np.zeros((len(rows), len(self.data.class_names)), dtype=np.float32)
        for column, place in enumerate(places_in(info.class_names, self.data.class_names)):
            if place is not None:  # a correction may have added a class
                found[:, column] = answers[:, place]
        return found

    def _trained(self, number: int, rows: np.ndarray) -> np.ndarray:
        """Train a network without the fold ``rows``; its probabilities of them, float32 [rows, classes]."""
        train, offset = self.splits["train"], self._offset("train")
        inside = slice(offset, offset + len(train))
        others = np.flatnonzero(self.seen[inside] & (self.numbers[inside] != number))
        recipe = self._recipe(number).fitted(len(others))
        part = Data(self.data.source, "a fold", self.data.class_names, {"train": train.subset(others)})
        prepared = prepare(part, recipe, self.own.device)
        state = build_state(recipe, prepared, part.class_names, self.own.device)
        count = self.meter.begin(number, recipe, prepared)
        for _ in train_epochs(state, prepared, on_step=count):
            pass
        self.meter.networks_done += 1
        model = state.evaluated_model
        model.load_state_dict(state.final_weights())
        dtype = compute_dtype(recipe.training.precision, self.own.device)
        logits = self._logits(model, rows, dtype, recipe.evaluation.tta)
        return _probabilities(calibrated(logits, fit_temperature(logits, self.labels[rows])))

    def _recipe(self, number: int) -> Recipe:
        """The run's recipe for the network of a fold; see :func:`fold_recipe`."""
        return self._with_own_pixels(fold_recipe(self.run, number, knows=self.knows))

    def _with_own_pixels(self, recipe: Recipe) -> Recipe:
        """A recipe that takes the pictures as the run's network sees them."""
        pre = self.preprocessing
        return replace(
            recipe,
            data=replace(
                recipe.data,
                image_size=f"{pre.size[0]}x{pre.size[1]}",
                mean=pre.mean,
                std=pre.std,
                range=AUTO if self.in_memory or pre.range is None else pre.range,
                background=AUTO if self.in_memory else pre.background,
                subset_size=0,
                engine="auto" if self.in_memory else recipe.data.engine,
            ),
        )

    @cached_property
    def fingerprint(self) -> str:
        """The digest of the data."""
        return self.data.fingerprint()

    @cached_property
    def knows(self) -> bool:
        """Whether the weights that the run began with know some of the training pictures, or may know them.

        See :mod:`thumbnet.training.known`.
        """
        init, train = _beginning(self.run).init, self.splits["train"]
        if not init:
            return False
        recipe = self._with_own_pixels(self.run.recipe.without_plan()).fitted(len(train))
        recipe = replace(recipe, training=replace(recipe.training, init=init))
        data = Data(self.data.source, "training pictures", self.data.class_names, {"train": train})
        prepared = prepare(data, recipe, CPU)
        # An earlier run may have seen the pictures in another size.
        originals = {"train": self.data.splits["train"].subset(self.kept["train"])}
        prepared = replace(prepared, preprocessing=self.preprocessing, splits=originals)
        found = find_known(recipe, prepared, self.data, self.fingerprint, ["train"], read_initial(init))
        return found.unsure or "train" in found.pictures

    def _offset(self, name: str) -> int:
        """Where a split begins in the sequence of all pictures."""
        names = list(self.splits)
        return sum(len(self.splits[before]) for before in names[: names.index(name)])

    def _logits(self, model: nn.Module, rows: np.ndarray, dtype: torch.dtype, tta: str) -> np.ndarray:
        """A network's logits of the pictures ``rows`` (ascending), float32 [rows, classes]."""
        found, start = [], 0
        for split in self.splits.values():
            local = rows[(rows >= start) & (rows < start + len(split))] - start
            start += len(split)
            if len(local):
                engine = self.own.engine(split.subset(local))
                size = self.run.recipe.evaluation.batch_size
                batches = EvalBatches(engine, self.own.normalise, batch_size=size)
                found.append(collect_logits(model, batches, dtype=dtype, tta=tta)[0].numpy())
        return np.concatenate(found)


def fold_recipe(run: Run, number: int, *, knows: bool) -> Recipe:
    """The run's recipe with a seed of its own for each fold's network, and nothing learned from that fold.

    If the run began with weights that know its pictures, the fold's network begins with random ones instead.
    A run that continues another one is trained for the epochs of both, from what the first one began with. A
    plan for a given time (``--minutes``) becomes a number of epochs.

    Args:
        run: the run.
        number: the fold, from 1.
        knows: whether the weights that it began with were trained on its training pictures, or perhaps were.

    Raises:
        RunError: only the last layer was trained, on features that were learned from the same pictures; or a
            run that the run continues is gone, and the network is one of timm.
    """
    recipe = run.recipe.without_plan()
    model, training, schedule = recipe.model, recipe.training, recipe.schedule
    continued = run.settings.get("continues")
    if isinstance(continued, dict):
        began = _beginning(run)
        model = replace(model, pretrained=began.pretrained)
        epochs = training.epochs + int(continued["epochs"])
        training = replace(training, init=began.init, epochs=epochs)
        schedule = replace(schedule, begin_at=0.0, head_first=began.head_first)
    if training.init and knows:
        if training.frozen:
            raise RunError(
                f"the features of {run.path} come from {training.init}, which was trained on some of the "
                "same pictures, or may have been. So no network of this recipe can judge their labels: "
                "review them with a run of another recipe"
            )
        training = replace(training, init="")
        schedule = replace(schedule, head_first=0.0)  # random layers have nothing that has to be kept
    seed = derive_seed(recipe.seed, "fold", number)
    return replace(recipe, seed=seed, model=model, training=training, schedule=schedule)


def _beginning(run: Run) -> Beginning:
    """What a run began with. Random weights are assumed if a run that it continues is gone.

    Raises:
        RunError: it is gone, and the network is one of timm. Those usually begin with pretrained weights.
    """
    found = beginning(run)
    if found is None and is_timm(run.recipe.model.name):
        raise RunError(
            f"{_gone(run)}. {run.recipe.model.name} usually begins with pretrained weights, and without them "
            "it is too weak to judge the labels. Put the run back where it was, or train none: --folds 0"
        )
    return found or Beginning()


def _gone(run: Run) -> str:
    return (
        f"{run.path} continues {run.settings['continues']['run']}. That run, or one that it continues, is no "
        "longer there, so it is not known which weights the training began with"
    )


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return np.exp(log_softmax(logits)).astype(np.float32)


class _Store:
    """The files of one scoring. ``key`` must be in a file for it to be valid."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def _path(self, number: int) -> Path:
        return self._folder / (f"fold-{number}.npz" if number else "network.npz")

    def load(self, number: int) -> np.ndarray | None:
        """The probabilities of a fold, float32 [rows, classes]; None if there is no valid file."""
        # NumPy, zipfile and tokenize raise almost any exception for a damaged file.
        with suppress(Exception), np.load(self._path(number), allow_pickle=False) as file:
            members = file.zip.infolist()
            if (
                any(one.compress_type != zipfile.ZIP_STORED for one in members)
                or str(file["key"]) != self._key
            ):
                return None  # save() compresses nothing: what it declares could be a thousand times the file
            values = file["probabilities"]
            if values.dtype == np.float32 and values.ndim == 2:
                return np.array(values)
        return None

    def save(self, number: int, probabilities: np.ndarray) -> None:
        """Write the probabilities of a fold, whole or not at all.

        Raises:
            RunError: the file cannot be written.
        """
        try:
            make_folder(self._folder)
        except OSError as error:
            raise RunError(f"cannot create {self._folder}: {error.strerror or error}") from None
        content = {"key": np.array(self._key), "probabilities": probabilities}
        write_with(self._path(number), lambda file: np.savez(file, **content))  # type: ignore[arg-type]


class _Meter:
    """Measures the speed of the trainings.

    Attributes:
        networks_done: networks that are trained already.
    """

    def __init__(self, networks: int, progress: Callable[[Scoring], None]) -> None:
        self.networks_done = 0
        self._networks, self._progress = networks, progress
        self._seconds = self._share = 0.0  # of finished networks in this call: their time and number

    def begin(self, number: int, recipe: Recipe, prepared: Prepared) -> Callable[[StepResult], None]:
        """Begin the training of a network; the result is to be called after each of its steps."""
        started, batch_size = time.perf_counter(), prepared.train.batch_size

        def work_after(step: int, total: int) -> float:
            return pixels_after(recipe.schedule, step, total, prepared.preprocessing.size)

        def count(step: StepResult) -> None:
            seconds = time.perf_counter() - started
            share = 1 - work_after(step.step, step.total_steps) / work_after(0, step.total_steps)
            done = self.networks_done + share
            speed = (self._seconds + seconds) / (self._share + share)  # seconds per network
            self._progress(
                Scoring(
                    number,
                    self._networks,
                    done / self._networks,
                    step.step * batch_size / max(seconds, 1e-9),
                    speed * (self._networks - done),
                )
            )
            if share >= 1:
                self._seconds, self._share = self._seconds + seconds, self._share + 1

        return count
