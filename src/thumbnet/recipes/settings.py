"""What may be set in a recipe: one frozen dataclass per section, which checks its values.

Imports no torch, so that ``thumbnet recipes`` answers at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from thumbnet.errors import RecipeError
from thumbnet.invocation import command
from thumbnet.recipes.functions import AUGMENTATIONS, CROSS_ENTROPY, LOSSES
from thumbnet.recipes.networks import check_name, is_timm

AUTO = "auto"
SMALLEST_SIDE, LARGEST_SIDE = 16, 1024  # pixels of a network's input; networks here are made for these
Precision = Literal["auto", "fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
# Modes of torch.compile that record CUDA graphs. A graph overwrites the gradients of its previous run, so
# gradients cannot accumulate (https://github.com/pytorch/pytorch/issues/169545).
GRAPH_MODES = ("reduce-overhead", "max-autotune")
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
STEMS = (AUTO, "small", "original")
# What a group's pattern may be besides a pattern for names.
HEAD = "@head"  # the last layer, whatever its name is
VECTORS = "@vectors"  # parameters with one dimension: biases, and the weights of normalisation
MOST_TRANSLATE = 15  # pixels
MOST_FOLDS = 20  # more would each take a training and tell little more
LEAST_STD = 1e-6  # a millionth of the value range; below, normalised pixels would lose all precision
SMALLEST_BATCH = 32  # `min_steps` makes batches no smaller: BatchNorm's statistics need this many pictures
# Settings of [training] that have only this value where `training.frozen` is true.
FROZEN = (("epochs", 1), ("steps", 0), ("ema_decay", 0), ("loss", CROSS_ENTROPY))
# The settings in [data] that decide which pictures are read, and which split and class each has.
READ_BY = (
    "val_fraction", "test_fraction", "split_seed", "folds", "fold", "classes_from", "label_pattern",
    "group_by", "images", "path_column", "label_column", "multilabel", "on_bad_image",
)  # fmt: skip


def check(ok: bool, key: str, expected: str, value: object) -> None:
    """Refuse ``value`` of ``key`` unless ``ok``."""
    if not ok:
        raise RecipeError(f"recipe key '{key}' is {value!r}: expected {expected}")


@dataclass(frozen=True)
class DataSettings:
    """How pictures become one uniform array.

    Attributes:
        image_size: ``"32"``, ``"HEIGHTxWIDTH"`` in pixels, or ``"auto"``: the data's own size if all pictures
            share one of at least 16 pixels, else a square of at least 32 that does not enlarge a typical
            picture.
        fit: what to do with another aspect ratio: ``crop`` (keeps the centre), ``pad`` (nothing is lost, but
            a part of the input is black) or ``squash`` (loses the aspect ratio).
        largest_auto_size: longest side that ``image_size = "auto"`` chooses. Larger pictures are scaled down
            to it, with a note. 0 for no limit.
        largest_mixed_size: a lower limit for pictures of several sizes, which are mostly photographs: larger
            than 64 takes much longer and gains less (docs/notebook/tuning.md). 0 for no lower limit.
        mean, std: per channel in [0, 1], or ``"auto"`` to measure them on the training split.
        range: the values (low, high) that become 0 and 255 if pictures have more than 8 bits or are float, or
            ``"auto"`` to measure them on the training split. 8-bit pictures keep their values.
        background: what is behind transparent pixels: ``"white"``, ``"black"``, ``"grey"``, three numbers
            from 0 to 255 (RGB), or ``"auto"``: white, unless many training pictures would vanish on it.
        val_fraction: fraction of the training split to set aside as ``val``.
        test_fraction: fraction to set aside as ``test`` if the data have neither ``val`` nor ``test``. 0
            trains on all pictures and measures no accuracy.
        split_seed: seed of both and of the folds. It is separate from ``seed``, so that repeated runs are
            tested on the same pictures.
        folds: divide ``train`` into this many parts, 2 to 20, of which one is ``test``. ``thumbnet repeat
            --folds`` trains with each of them. ``test_fraction`` and a ``test`` split of the data are not
            used then. 0 for no folds.
        fold: which of these parts is ``test``, from 1; 0 without folds.
        classes_from: which folder names a picture's class: ``top`` (the outermost below the split), ``leaf``
            (the innermost), a depth such as ``"2"``, or ``here`` (the folders in the given one are the
            classes, even if they are called train or test).
        label_pattern: regular expression that finds the class in a picture's file name, with a group called
            ``label``, or its first group. Empty for the known forms.
        group_by: keeps related pictures in one split when some are set aside: a regular expression that finds
            the group in a picture's path (its first group, or the whole match), or the name of a manifest's
            column. Empty for no groups.
        images: folder of a manifest's pictures; empty for the manifest's own folder.
        path_column, label_column: columns of a manifest; empty to find them by name or by content.
        multilabel: whether pictures have several labels each: true, false, or ``"auto"`` to see it from a
            manifest's cells, from several ones in a row of columns, or from a matrix of labels. A run of
            several labels says true.
        calibration_pictures: set aside up to this many training pictures, and at most a twentieth of them, to
            calibrate the probabilities on. 0 for none. If there is a ``val`` split, it is used instead.
        subset_size: train on this many random pictures of the training split. 0 means all.
        subset_seed: seed of that choice; by default, the recipe's ``seed``. ``--more-epochs`` sets it, so
            that the new run trains on the pictures of the finished one.
        sampling: ``uniform`` shows each training picture once per epoch. ``balanced`` shows as many pictures
            per epoch, but the same number of each class, so pictures of rare classes come several times.
        skip_easy: fraction of the training pictures, up to half, that each epoch skips: those with the
            smallest loss when the network last saw them. No picture is skipped twice in a row. An epoch is
            shorter by this fraction.
        on_bad_image: what to do with damaged and missing pictures: ``stop`` and list them all, or ``skip``
            them and record which.
        engine: ``memory`` holds the decoded split. ``workers`` decodes in other processes during the
            training. ``auto`` uses memory if all splits together fit into a quarter of it and train has at
            most 500,000 pictures. All give the same batches.
        workers: number of processes of the ``workers`` engine.
    """

    image_size: str = AUTO
    fit: Literal["pad", "crop", "squash"] = "crop"
    largest_auto_size: int = 96
    largest_mixed_size: int = 64
    mean: str | tuple[float, ...] = AUTO
    std: str | tuple[float, ...] = AUTO
    range: str | tuple[float, ...] = AUTO
    background: str | tuple[int, ...] = AUTO
    val_fraction: float = 0.0
    test_fraction: float = 0.2
    split_seed: int = 0
    folds: int = 0
    fold: int = 0
    classes_from: str = "top"
    label_pattern: str = ""
    group_by: str = ""
    images: str = ""
    path_column: str = ""
    label_column: str = ""
    multilabel: bool | str = AUTO
    calibration_pictures: int = 500
    subset_size: int = 0
    subset_seed: int | None = None
    sampling: Literal["uniform", "balanced"] = "uniform"
    skip_easy: float = 0.0
    on_bad_image: Literal["stop", "skip"] = "stop"
    engine: Literal["auto", "memory", "workers"] = "auto"
    workers: int = 2

    def __post_init__(self) -> None:
        if self.image_size != AUTO:
            parse_image_size(self.image_size)
        for key, value in (("mean", self.mean), ("std", self.std)):
            if isinstance(value, str):
                check(value == AUTO, f"data.{key}", "'auto' or three numbers in [0, 1]", value)
            else:
                least = LEAST_STD if key == "std" else 0
                ok = len(value) == 3 and all(least <= v <= 1 for v in value)
                check(ok, f"data.{key}", f"'auto' or three numbers in [{least:g}, 1]", value)
        for key in ("largest_auto_size", "largest_mixed_size"):
            side = getattr(self, key)
            check(side == 0 or side >= SMALLEST_SIDE, f"data.{key}", "0 (none) or 16 or more pixels", side)
        if isinstance(self.range, str):
            ok = self.range == AUTO
        else:
            ok = (
                len(self.range) == 2 and all(map(math.isfinite, self.range)) and self.range[0] < self.range[1]
            )
        check(ok, "data.range", "'auto' or two numbers, the lower one first", self.range)
        if isinstance(self.background, str):
            ok = self.background in (AUTO, *BACKGROUNDS)
        else:
            ok = len(self.background) == 3 and all(0 <= value <= 255 for value in self.background)
        known = ", ".join(f"'{name}'" for name in (AUTO, *BACKGROUNDS))
        check(ok, "data.background", f"{known} or three numbers from 0 to 255", self.background)
        check(0 <= self.val_fraction < 1, "data.val_fraction", "a fraction in [0, 1)", self.val_fraction)
        check(0 <= self.test_fraction < 1, "data.test_fraction", "a fraction in [0, 1)", self.test_fraction)
        ok = self.folds == 0 or 2 <= self.folds <= MOST_FOLDS
        check(ok, "data.folds", f"0 (none) or a number from 2 to {MOST_FOLDS}", self.folds)
        if not min(self.folds, 1) <= self.fold <= self.folds:
            every = command("repeat", "DATA", "--folds", str(self.folds))
            some = f"a number from 1 to {self.folds}. To train with each of these folds: {every}"
            check(False, "data.fold", some if self.folds else "0 where data.folds is 0", self.fold)
        ok = self.classes_from in ("top", "leaf", "here") or (
            self.classes_from.isascii() and self.classes_from.isdigit() and 1 <= int(self.classes_from) <= 16
        )
        check(ok, "data.classes_from", "'top', 'leaf', 'here' or a depth such as '2'", self.classes_from)
        for key, pattern in (("label_pattern", self.label_pattern), ("group_by", self.group_by)):
            try:
                re.compile(pattern)
            except re.error as error:
                check(False, f"data.{key}", f"a regular expression ({error})", pattern)
        ok = isinstance(self.multilabel, bool) or self.multilabel == AUTO
        check(ok, "data.multilabel", "true, false or 'auto'", self.multilabel)
        ok = self.calibration_pictures >= 0
        check(ok, "data.calibration_pictures", "0 (none) or a positive number", self.calibration_pictures)
        check(self.subset_size >= 0, "data.subset_size", "0 (all) or a positive number", self.subset_size)
        ok = self.subset_seed is None or 0 <= self.subset_seed < 2**63
        check(ok, "data.subset_seed", "a number from 0 to 2**63 - 1", self.subset_seed)
        check(0 <= self.skip_easy <= 0.5, "data.skip_easy", "a fraction in [0, 0.5]", self.skip_easy)
        ok = not self.skip_easy or self.sampling == "uniform"
        check(ok, "data.skip_easy", "0 where data.sampling is 'balanced'", self.skip_easy)
        check(self.workers >= 1, "data.workers", "1 or more", self.workers)

    @property
    def test_fold(self) -> tuple[int, int] | None:
        """The fold that is ``test``, from 1, and the number of folds; None without folds."""
        return (self.fold, self.folds) if self.folds else None

    def given(self, *keys: str) -> list[str]:
        """Those of ``keys`` that do not have their default value."""
        usual = DataSettings()
        return [key for key in keys if getattr(self, key) != getattr(usual, key)]


@dataclass(frozen=True)
class AugmentSettings:
    """Random changes to training batches, and only to them.

    Attributes:
        flip: left-right: ``none``, ``random`` (each picture with probability 1/2), or ``alternating`` (each
            picture in every other epoch, so that two epochs show both sides; airbench, Jordan 2024).
        translate: shift by up to this many pixels in each direction, on both axes.
        translate_fill: what appears at the border: ``reflect`` or ``zero`` (black).
        cutout: side of a square set to the mean colour (DeVries & Taylor 2017). 0 is off.
        brightness: make a picture lighter or darker by up to this many of the data's standard deviations. 0
            is off.
        contrast: multiply differences from the mean colour by 1 - contrast to 1 + contrast. 0 is off.
        flip_vertical: top to bottom: ``none``, or ``random`` (each picture with probability 1/2).
        rotate: rotate by up to this many degrees in either direction, around the centre. 0 is off.
        scale: the smallest and the largest factor by which a picture is zoomed around its centre; above 1
            enlarges. The factor's logarithm is uniform. ``(1, 1)`` is off.
        hue: rotate the colours by up to this fraction of the colour circle in either direction; 0.5 reaches
            all of it. 0 is off.
        saturation: multiply the colours' saturation by 1 - saturation to 1 + saturation. 0 is off.
        erase: probability that a rectangle of the picture is set to the mean colour (random erasing, Zhong et
            al. 2017). 0 is off.
        erase_area: the smallest and the largest area of that rectangle, as fractions of the picture's.
        mixup: blend each picture and its label with another picture of its batch; the first one's share comes
            from Beta(mixup, mixup) (Zhang et al. 2018). 0 is off.
        cutmix: paste a rectangle of another picture of the batch into each picture, and mix the labels by
            area, which comes from Beta(cutmix, cutmix) (Yun et al. 2019). 0 is off. With ``mixup`` as well,
            each picture gets one of the two, with equal probability.
        custom: an augmentation of your own: a name from ``register_augmentation``, or an import path
            ``MODULE:NAME``. Empty for none.

    ``translate_fill`` also says what appears at the border of a picture that was rotated or made smaller.
    """

    flip: Literal["none", "random", "alternating"] = "none"
    translate: int = 0
    translate_fill: Literal["reflect", "zero"] = "reflect"
    cutout: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    flip_vertical: Literal["none", "random"] = "none"
    rotate: float = 0.0
    scale: tuple[float, ...] = (1.0, 1.0)
    hue: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0
    erase_area: tuple[float, ...] = (0.02, 0.4)
    mixup: float = 0.0
    cutmix: float = 0.0
    custom: str = ""

    def __post_init__(self) -> None:
        expected = f"0 to {MOST_TRANSLATE} pixels"
        check(0 <= self.translate <= MOST_TRANSLATE, "augment.translate", expected, self.translate)
        check(self.cutout >= 0, "augment.cutout", "0 (off) or pixels", self.cutout)
        check(0 <= self.brightness <= 2, "augment.brightness", "a number in [0, 2]", self.brightness)
        check(0 <= self.contrast <= 1, "augment.contrast", "a number in [0, 1]", self.contrast)
        check(0 <= self.rotate <= 180, "augment.rotate", "degrees in [0, 180]", self.rotate)
        ok = len(self.scale) == 2 and 0.1 <= self.scale[0] <= self.scale[1] <= 10
        check(ok, "augment.scale", "two factors in [0.1, 10], the smaller one first", self.scale)
        check(0 <= self.hue <= 0.5, "augment.hue", "a fraction of the colour circle in [0, 0.5]", self.hue)
        check(0 <= self.saturation <= 1, "augment.saturation", "a number in [0, 1]", self.saturation)
        check(0 <= self.erase <= 1, "augment.erase", "a probability in [0, 1]", self.erase)
        ok = len(self.erase_area) == 2 and 0 < self.erase_area[0] <= self.erase_area[1] <= 1
        check(ok, "augment.erase_area", "two fractions in (0, 1], the smaller one first", self.erase_area)
        for key, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            check(0 <= alpha <= 100, f"augment.{key}", "0 (off) or a number up to 100", alpha)
        AUGMENTATIONS.check_name(self.custom)

    @property
    def warps(self) -> bool:
        """Whether pictures are rotated or scaled."""
        return self.rotate > 0 or self.scale != (1.0, 1.0)

    @property
    def recolours(self) -> bool:
        """Whether the hue or the saturation of pictures changes."""
        return self.hue > 0 or self.saturation > 0

    @property
    def mixes(self) -> bool:
        """Whether pictures are mixed with others of their batch."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True)
class ModelSettings:
    """Which network.

    Attributes:
        name: a registered network, a network of timm as ``timm:NAME`` or ``timm:NAME.TAG``, or the import
            path ``MODULE:NAME`` of one of your own.
        width: multiplies the number of its channels. 1 for a network that takes no ``width``.
        pretrained: start a network of timm from the weights that timm names, except its last layer: true,
            false, or ``"auto"``: true unless ``training.init`` says where to start. A run says true or false.
        stem: the first layers of a network of timm, which were made for pictures of about 224 pixels:
            ``original``; ``small``, which lets them keep more of a small picture; or ``auto``: ``small`` for
            pictures whose shorter side has at most 64 pixels, if thumbnet can adapt the network. A run says
            which.
    """

    name: str = "resnet18"
    width: float = 1.0
    pretrained: bool | str = False
    stem: str = AUTO

    def __post_init__(self) -> None:
        check_name(self.name)
        check(0 < self.width <= 8, "model.width", "a factor in (0, 8]", self.width)
        ok = self.width == 1 or not is_timm(self.name)
        check(
            ok, "model.width", "1 for a network of timm (other widths are networks of their own)", self.width
        )
        ok = self.pretrained is True or self.pretrained is False or self.pretrained == AUTO
        check(ok, "model.pretrained", "true, false or 'auto'", self.pretrained)
        known = ", ".join(f"'{stem}'" for stem in STEMS)
        check(self.stem in STEMS, "model.stem", f"one of {known}", self.stem)
        if not is_timm(self.name):
            expected = "only for a network of timm (timm:NAME); training.init starts from any run's weights"
            check(self.pretrained is not True, "model.pretrained", expected, True)
            check(self.stem != "small", "model.stem", "only for a network of timm (timm:NAME)", self.stem)


@dataclass(frozen=True)
class GroupSettings:
    """Separate settings for the parameters whose name matches a pattern.

    Attributes:
        match: shell-style pattern for the parameter's name, such as ``"*.bias"`` or ``"stem.*"``;
            ``"@head"``: the last layer, whatever its name is; or ``"@vectors"``: all parameters with one
            dimension, which are biases and the weights of normalisation. A parameter belongs to the first
            group that matches.
        lr, weight_decay, momentum: replace the optimizer's. The schedule scales this ``lr`` as well. AdamW
            has no ``momentum``.
    """

    match: str
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float | None = None

    def __post_init__(self) -> None:
        check(bool(self.match), "optimizer.groups.match", "a pattern", self.match)
        for key, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            ok = value is None or (math.isfinite(value) and value >= 0)
            check(ok, f"optimizer.groups.{key}", "0 or a positive number", value)
        ok = self.momentum is None or 0 <= self.momentum < 1
        check(ok, "optimizer.groups.momentum", "a number in [0, 1)", self.momentum)


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer.

    ``sgd`` uses ``momentum`` and ``nesterov``; ``adamw`` uses ``betas``. ``muon`` orthogonalises the steps of
    filters of convolutions without a bias, and uses ``momentum``; all other parameters take SGD steps with
    Nesterov momentum, and need a group with their own rate.
    """

    name: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    betas: tuple[float, ...] = (0.9, 0.999)
    groups: tuple[GroupSettings, ...] = ()

    def __post_init__(self) -> None:
        check(math.isfinite(self.lr) and self.lr > 0, "optimizer.lr", "a positive number", self.lr)
        check(0 <= self.momentum < 1, "optimizer.momentum", "a number in [0, 1)", self.momentum)
        ok = not self.nesterov or self.momentum > 0
        check(ok, "optimizer.nesterov", "false where the momentum is 0", self.nesterov)
        ok = math.isfinite(self.weight_decay) and self.weight_decay >= 0
        check(ok, "optimizer.weight_decay", "0 or a positive number", self.weight_decay)
        ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check(ok, "optimizer.betas", "two numbers in [0, 1)", self.betas)


@dataclass(frozen=True)
class ScheduleSettings:
    """How the learning rate changes during the training, as a factor on each group's own rate.

    Every time is a *fraction of the whole training*, so a recipe stays the same when ``--epochs`` changes:
    milestone 0.75 is epoch 150 of 200 and epoch 15 of 20.

    Attributes:
        name: ``constant``; ``multistep`` (times ``factor`` at each milestone); ``cosine`` and ``linear``
            (down to ``end``); ``one-cycle`` (cosine up from ``start``, cosine down to ``end``; Smith & Topin
            2018).
        milestones, factor: for ``multistep``. A milestone of 1 or more would never be reached and is refused.
        warmup: fraction of the training in which the rate rises from ``start`` to its full height, in a
            straight line (for ``one-cycle``, along a cosine).
        start, end: factors at the beginning of the warm-up and at the end of the training.
        head_first: fraction of the training in which only the last layer learns, at its full rate. All other
            layers stay as they are, BatchNorm's statistics included. The schedule (milestones and warm-up
            too) fills the rest.
        small_sides: side lengths at the start of training, as fractions of the full side, each used for an
            equal share of ``small_until``. Smaller pictures cost less, and what is learned from them holds at
            full size (progressive resizing; Howard 2018).
        small_until: fraction of the training with small pictures. 0 is off.
        begin_at: start this far into the schedule, which then runs to its end within the training's steps,
            like the last part of a longer training. ``--more-epochs`` sets it.
        planned_at, planned_steps: if the training's length changed on the way: from step ``planned_at[i]``
            on, the rest of the schedule was spread over the steps up to ``planned_steps[i]``. ``--minutes``
            sets them.
    """

    name: Literal["constant", "multistep", "cosine", "linear", "one-cycle"] = "constant"
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    warmup: float = 0.0
    start: float = 0.0
    end: float = 0.0
    head_first: float = 0.0
    small_sides: tuple[float, ...] = (0.75,)
    small_until: float = 0.0
    begin_at: float = 0.0
    planned_at: tuple[int, ...] = ()
    planned_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        stones = self.milestones
        ok = all(0 < m < 1 for m in stones) and list(stones) == sorted(stones)
        check(ok, "schedule.milestones", "rising fractions of the training, each in (0, 1)", stones)
        ok = self.name != "multistep" or bool(stones)
        check(ok, "schedule.milestones", "at least one for 'multistep'", stones)
        check(0 < self.factor <= 1, "schedule.factor", "a number in (0, 1]", self.factor)
        check(0 <= self.warmup < 1, "schedule.warmup", "a fraction in [0, 1)", self.warmup)
        check(0 <= self.head_first < 1, "schedule.head_first", "a fraction in [0, 1)", self.head_first)
        check(0 <= self.start <= 1, "schedule.start", "a factor in [0, 1]", self.start)
        check(0 <= self.end <= 1, "schedule.end", "a factor in [0, 1]", self.end)
        ok = all(0 < side <= 1 for side in self.small_sides) and bool(self.small_sides)
        check(ok, "schedule.small_sides", "factors, each in (0, 1]", self.small_sides)
        check(0 <= self.begin_at < 1, "schedule.begin_at", "a fraction in [0, 1)", self.begin_at)
        check(0 <= self.small_until <= 1, "schedule.small_until", "a fraction in [0, 1]", self.small_until)
        at, steps = self.planned_at, self.planned_steps
        ok = len(at) == len(steps) and list(at) == sorted(set(at)) and at[:1] in ((), (0,))
        check(ok, "schedule.planned_at", "rising steps from 0 on, as many as in schedule.planned_steps", at)
        ok = all(end > max(start, after) for start, end, after in zip(at, steps, (*at, 0)[1:], strict=True))
        check(ok, "schedule.planned_steps", "step numbers that lie after those of schedule.planned_at", steps)


@dataclass(frozen=True)
class TrainingSettings:
    """The training loop.

    Attributes:
        init: a run's folder, a ``.safetensors``, ``.pt`` or ``.pth`` file or ``hf:OWNER/NAME`` whose weights
            to start from (the last layer's only for classes of the same name). Empty for random weights.
        frozen: train only the last layer, on the features that the network of ``init`` computes; see
            :mod:`thumbnet.training.linear`. Every picture passes the network once.
        epochs: passes over the training split.
        steps: end after this many steps, within the last epoch if need be. 0 is all steps of all epochs.
        batch_size: pictures per step.
        min_steps: if the training would have fewer steps, batches become smaller, down to ``SMALLEST_BATCH``,
            for about this many steps (see :meth:`thumbnet.Recipe.fitted`), and all learning rates shrink with
            the square root of the batch size (Krizhevsky 2014, https://arxiv.org/abs/1404.5997). 0 is off.
        micro_batch: pictures per forward pass; 0 is the whole batch. Gradients accumulate over a step, which
            takes less memory for the same ``batch_size``, but BatchNorm normalises over only this many
            pictures.
        drop_last: drop an epoch's last batch if it is not full (different pictures in each epoch).
        loss: ``cross-entropy`` (binary for several labels per picture), or a loss of your own: a name from
            ``register_loss``, or an import path ``MODULE:NAME``. Evaluations measure the cross-entropy in any
            case.
        label_smoothing: of the cross-entropy (Szegedy et al. 2016).
        class_weights: of the loss: ``none``, or ``balanced``: inversely proportional to the class's number of
            training pictures, and 1 on average over the pictures.
        ema_decay: evaluate and keep an exponential moving average of the weights with this decay per step. 0
            is off. The decay is smaller at the start, so that the average can follow.
        precision: of convolutions and matrix products: ``fp32``; ``bf16``; ``fp16``, with a loss that is
            scaled so that gradients fit into its range; or ``auto``: bf16 if the hardware multiplies it fast,
            else fp16 if a CUDA device does, else fp32. Weights are float32 in any case. On CUDA devices that
            have TF32, fp32 means convolutions in TF32, which is PyTorch's default.
        channels_last: keep pictures as [B, H, W, C] in memory; shapes stay [B, C, H, W]. Devices on which
            PyTorch computes wrongly in this layout do without it.
        compile: ``torch.compile`` the network, which takes about a minute at the start.
        compile_mode: its mode. ``reduce-overhead`` uses CUDA graphs on GPUs. ``max-autotune`` also tries more
            kernels, for minutes. Neither works with ``micro_batch``.
        graph: on an NVIDIA GPU, run the whole step as a CUDA graph: ``auto`` where that is possible, or
            ``off``. docs/recipes.md lists where it is not.
        sync_batchnorm: if several processes train, BatchNorm uses the statistics of all their pictures, as
            one process would. Otherwise each uses its own.
        on_nonfinite: what to do if a loss or gradient is not finite: ``stop``, or ``skip`` that step.
        max_skips: with ``skip``, stop after this many.
        patience: end the training once this many epochs have passed without a better score on ``val``. 0 is
            off. If the data have no ``val`` split, a tenth of ``train`` is set aside as one.
        keep: the epoch whose weights the run keeps: ``auto`` (the best one on ``val`` if there is a ``val``
            split, else the last one), ``best`` (the best one on ``val``, which is set aside if the data have
            none) or ``last``. ``test`` never chooses. Only evaluated epochs count (see ``evaluation.every``).
        choose_by: the score on ``val`` by which epochs are compared, for ``keep`` and ``patience``:
            ``accuracy`` (mAP if pictures have several labels), ``balanced-accuracy`` (the mean recall of the
            classes) or ``loss``. Between equal ones, the smaller loss is better, and between equal losses the
            higher accuracy.
    """

    init: str = ""
    frozen: bool = False
    epochs: int = 10
    steps: int = 0
    batch_size: int = 128
    min_steps: int = 0
    micro_batch: int = 0
    drop_last: bool = False
    loss: str = CROSS_ENTROPY
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    ema_decay: float = 0.0
    precision: Precision = "auto"
    channels_last: bool = True
    compile: bool = False
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    graph: Literal["auto", "off"] = "auto"
    sync_batchnorm: bool = True
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skips: int = 10
    patience: int = 0
    keep: Literal["auto", "best", "last"] = "auto"
    choose_by: Literal["accuracy", "balanced-accuracy", "loss"] = "accuracy"

    def __post_init__(self) -> None:
        check(self.epochs >= 1, "training.epochs", "1 or more", self.epochs)
        check(self.steps >= 0, "training.steps", "0 (all) or more", self.steps)
        ok = self.micro_batch == 0 or self.micro_batch >= 2
        check(ok, "training.micro_batch", "0 (the whole batch) or 2 or more", self.micro_batch)
        ok = not (self.compile and self.micro_batch and self.compile_mode in GRAPH_MODES)
        mode = f"training.compile_mode is {self.compile_mode!r}, which cannot accumulate gradients"
        check(ok, "training.micro_batch", f"0 where {mode} ('default' can)", self.micro_batch)
        check(self.min_steps >= 0, "training.min_steps", "0 (off) or more", self.min_steps)
        check(self.max_skips >= 0, "training.max_skips", "0 or more", self.max_skips)
        check(self.patience >= 0, "training.patience", "0 (off) or a number of epochs", self.patience)
        check(self.batch_size >= 2, "training.batch_size", "2 or more", self.batch_size)
        ok = 0 <= self.label_smoothing < 1
        check(ok, "training.label_smoothing", "a number in [0, 1)", self.label_smoothing)
        LOSSES.check_name(self.loss)
        check(0 <= self.ema_decay < 1, "training.ema_decay", "a number in [0, 1)", self.ema_decay)
        ok = self.choose_by == "accuracy" or self.chooses
        expected = (
            "'accuracy' where training.keep is 'last' and no training.patience is set: nothing is chosen"
        )
        check(ok, "training.choose_by", expected, self.choose_by)
        for key, only in FROZEN if self.frozen else ():
            value = getattr(self, key)
            check(value == only, f"training.{key}", f"{only!r} where training.frozen is true", value)

    @property
    def chooses(self) -> bool:
        """Whether a ``val`` split, if there is one, chooses the epoch or ends the training early."""
        return self.keep != "last" or self.patience > 0

    @property
    def choices(self) -> tuple[str, ...]:
        """The settings that ask for a choice of the epoch, such as ``training.patience = 5``.

        With ``keep = "auto"`` alone, an epoch is chosen only if there is a ``val`` split anyway.
        """
        asking = (
            ("patience", self.patience > 0),
            ("keep", self.keep == "best"),
            ("choose_by", self.choose_by != "accuracy"),
        )
        return tuple(f"training.{key} = {getattr(self, key)!r}" for key, asks in asking if asks)

    @property
    def must_choose(self) -> bool:
        """Whether the user asks for a choice of the epoch, and so for a ``val`` split and its evaluations."""
        return bool(self.choices)


@dataclass(frozen=True)
class EvaluationSettings:
    """When and how to evaluate.

    Attributes:
        every: evaluate after every this many epochs, and after the last one. 0 means only after the last one.
            With a ``val`` split, the best of these epochs is kept (see ``training.keep``). It becomes 1 if
            the user asks for a choice of the epoch and does not set it.
        tta: test-time augmentation, the mean of the logits over views of a picture: ``none``; ``mirror`` (two
            views); ``mirror-shift`` (these, also shifted by one pixel: six); ``adaptive`` (six if the first
            view leaves the network unsure, else one).
        sample: in the other epochs, score this many pictures of the split for the learning curve. 0 for none.
            This score never decides which epoch is kept.
        batch_size: pictures per forward pass.
    """

    every: int = 1
    tta: Literal["none", "mirror", "mirror-shift", "adaptive"] = "none"
    sample: int = 1000
    batch_size: int = 500

    def __post_init__(self) -> None:
        check(self.every >= 0, "evaluation.every", "0 or more", self.every)
        check(self.sample >= 0, "evaluation.sample", "0 (none) or a positive number", self.sample)
        check(self.batch_size >= 1, "evaluation.batch_size", "1 or more", self.batch_size)


@dataclass(frozen=True)
class CheckpointSettings:
    """When to write a checkpoint, in addition to after the last epoch and when the training is asked to stop.

    Attributes:
        min_seconds: after an epoch, if at least this much time has passed since the last checkpoint. 0 writes
            one after every epoch. On a GPU an epoch may be shorter than writing one.
        steps: after every this many steps. 0 is off.
        minutes: when this much time has passed since the last one. 0 is off.
    """

    min_seconds: float = 10.0
    steps: int = 0
    minutes: float = 10.0

    def __post_init__(self) -> None:
        ok = math.isfinite(self.min_seconds) and self.min_seconds >= 0
        check(ok, "checkpoint.min_seconds", "0 (every epoch) or a positive number", self.min_seconds)
        check(self.steps >= 0, "checkpoint.steps", "0 (off) or more", self.steps)
        ok = math.isfinite(self.minutes) and self.minutes >= 0
        check(ok, "checkpoint.minutes", "0 (off) or a positive number", self.minutes)


def in_subset(pictures: int, subset_size: int) -> int:
    """How many of ``pictures`` training pictures a training uses: see ``data.subset_size``."""
    return min(pictures, subset_size or pictures)


def kept_per_epoch(pictures: int, skip_easy: float) -> int:
    """How many of ``pictures`` training pictures an epoch keeps: see ``data.skip_easy``."""
    return pictures - int(pictures * skip_easy)


def parse_image_size(text: str) -> tuple[int, int]:
    """``"32"`` → (32, 32); ``"32x64"`` → (32, 64), height first, in pixels.

    Raises:
        RecipeError: not of that form, or a side is not between 16 and 1024.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise RecipeError(
            f"image size {text!r}: expected SIDE or HEIGHTxWIDTH in pixels, such as 32 or 32x64"
        )
    height, width = int(parts[0]), int(parts[-1])
    if not (SMALLEST_SIDE <= min(height, width) and max(height, width) <= LARGEST_SIDE):
        raise RecipeError(
            f"image size {text!r}: each side must have {SMALLEST_SIDE} to {LARGEST_SIDE} pixels"
        )
    return height, width
