from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from thumbnet.errors import RecipeError
from thumbnet.recipes.settings import (
    BACKGROUNDS,
    AugmentSettings,
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    GroupSettings,
    ModelSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainingSettings,
    kept_per_epoch,
    parse_image_size,
)

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("section", "settings", "key"),
    [
        (DataSettings, {"mean": (0.5, 0.5)}, "data.mean"),
        (DataSettings, {"mean": (0.5, 0.5, 1.5)}, "data.mean"),
        (DataSettings, {"mean": "some"}, "data.mean"),
        (DataSettings, {"std": (0.0, 0.2, 0.2)}, "data.std"),
        (DataSettings, {"largest_auto_size": 15}, "data.largest_auto_size"),
        (DataSettings, {"largest_mixed_size": 15}, "data.largest_mixed_size"),
        (DataSettings, {"range": (3.0, 3.0)}, "data.range"),
        (DataSettings, {"range": (0.0, INF)}, "data.range"),
        (DataSettings, {"background": (0, 0, 256)}, "data.background"),
        (DataSettings, {"background": "blue"}, "data.background"),
        (DataSettings, {"range": (5.0, 3.0)}, "data.range"),
        (DataSettings, {"val_fraction": 1.0}, "data.val_fraction"),
        (DataSettings, {"val_fraction": -0.1}, "data.val_fraction"),
        (DataSettings, {"test_fraction": -0.1}, "data.test_fraction"),
        (DataSettings, {"folds": 1}, "data.folds"),
        (DataSettings, {"folds": 21}, "data.folds"),
        (DataSettings, {"folds": -5}, "data.folds"),
        (DataSettings, {"folds": 5}, "data.fold"),
        (DataSettings, {"folds": 5, "fold": 6}, "data.fold"),
        (DataSettings, {"folds": 5, "fold": -1}, "data.fold"),
        (DataSettings, {"fold": 1}, "data.fold"),
        (DataSettings, {"classes_from": "0"}, "data.classes_from"),
        (DataSettings, {"classes_from": "17"}, "data.classes_from"),
        (DataSettings, {"label_pattern": "("}, "data.label_pattern"),
        (DataSettings, {"group_by": "["}, "data.group_by"),
        (DataSettings, {"calibration_pictures": -1}, "data.calibration_pictures"),
        (DataSettings, {"subset_size": -1}, "data.subset_size"),
        (DataSettings, {"subset_seed": -1}, "data.subset_seed"),
        (DataSettings, {"skip_easy": 0.51}, "data.skip_easy"),
        (DataSettings, {"skip_easy": 0.3, "sampling": "balanced"}, "data.skip_easy"),
        (DataSettings, {"workers": 0}, "data.workers"),
        (AugmentSettings, {"translate": 16}, "augment.translate"),
        (AugmentSettings, {"cutout": -1}, "augment.cutout"),
        (AugmentSettings, {"translate": -1}, "augment.translate"),
        (AugmentSettings, {"brightness": 2.1}, "augment.brightness"),
        (AugmentSettings, {"brightness": -0.1}, "augment.brightness"),
        (AugmentSettings, {"contrast": -0.1}, "augment.contrast"),
        (AugmentSettings, {"contrast": 1.1}, "augment.contrast"),
        (ModelSettings, {"width": 0.0}, "model.width"),
        (AugmentSettings, {"rotate": 181.0}, "augment.rotate"),
        (AugmentSettings, {"rotate": NAN}, "augment.rotate"),
        (AugmentSettings, {"scale": (1.2, 0.8)}, "augment.scale"),
        (AugmentSettings, {"scale": (0.0, 1.0)}, "augment.scale"),
        (AugmentSettings, {"scale": (0.8,)}, "augment.scale"),
        (AugmentSettings, {"scale": (1.0, INF)}, "augment.scale"),
        (AugmentSettings, {"hue": 0.51}, "augment.hue"),
        (AugmentSettings, {"saturation": 1.1}, "augment.saturation"),
        (AugmentSettings, {"erase": 1.1}, "augment.erase"),
        (AugmentSettings, {"erase_area": (0.0, 0.3)}, "augment.erase_area"),
        (AugmentSettings, {"erase_area": (0.5, 0.3)}, "augment.erase_area"),
        (AugmentSettings, {"mixup": -0.1}, "augment.mixup"),
        (AugmentSettings, {"cutmix": NAN}, "augment.cutmix"),
        (ModelSettings, {"width": 8.1}, "model.width"),
        (ModelSettings, {"name": "timm:resnet18", "width": 0.5}, "model.width"),
        (ModelSettings, {"pretrained": True}, "model.pretrained"),
        (ModelSettings, {"name": "timm:resnet18", "pretrained": "yes"}, "model.pretrained"),
        (ModelSettings, {"name": "timm:resnet18", "pretrained": 1}, "model.pretrained"),
        (ModelSettings, {"stem": "small"}, "model.stem"),
        (ModelSettings, {"name": "timm:resnet18", "stem": "tiny"}, "model.stem"),
        (GroupSettings, {"match": ""}, "optimizer.groups.match"),
        (GroupSettings, {"match": "*", "lr": -1.0}, "optimizer.groups.lr"),
        (GroupSettings, {"match": "*", "weight_decay": INF}, "optimizer.groups.weight_decay"),
        (GroupSettings, {"match": "*", "momentum": 1.0}, "optimizer.groups.momentum"),
        (OptimizerSettings, {"lr": 0.0}, "optimizer.lr"),
        (OptimizerSettings, {"lr": NAN}, "optimizer.lr"),
        (OptimizerSettings, {"lr": INF}, "optimizer.lr"),
        (OptimizerSettings, {"momentum": 1.0}, "optimizer.momentum"),
        (OptimizerSettings, {"momentum": -0.1}, "optimizer.momentum"),
        (OptimizerSettings, {"momentum": 0.0, "nesterov": True}, "optimizer.nesterov"),
        (OptimizerSettings, {"weight_decay": -1e-9}, "optimizer.weight_decay"),
        (OptimizerSettings, {"betas": (0.9,)}, "optimizer.betas"),
        (OptimizerSettings, {"betas": (0.9, 1.0)}, "optimizer.betas"),
        (ScheduleSettings, {"milestones": (0.5, 0.4)}, "schedule.milestones"),
        (ScheduleSettings, {"milestones": (1.0,)}, "schedule.milestones"),
        (ScheduleSettings, {"name": "multistep"}, "schedule.milestones"),
        (ScheduleSettings, {"factor": 0.0}, "schedule.factor"),
        (ScheduleSettings, {"factor": 1.1}, "schedule.factor"),
        (ScheduleSettings, {"small_sides": (0.5, 1.1)}, "schedule.small_sides"),
        (ScheduleSettings, {"warmup": 1.0}, "schedule.warmup"),
        (ScheduleSettings, {"warmup": -0.1}, "schedule.warmup"),
        (ScheduleSettings, {"start": -0.1}, "schedule.start"),
        (ScheduleSettings, {"end": 1.1}, "schedule.end"),
        (ScheduleSettings, {"begin_at": -0.1}, "schedule.begin_at"),
        (ScheduleSettings, {"small_until": -0.1}, "schedule.small_until"),
        (ScheduleSettings, {"milestones": (0.0, 0.5)}, "schedule.milestones"),
        (ScheduleSettings, {"small_sides": (0.0,)}, "schedule.small_sides"),
        (TrainingSettings, {"label_smoothing": -0.1}, "training.label_smoothing"),
        (TrainingSettings, {"ema_decay": -0.1}, "training.ema_decay"),
        (TrainingSettings, {"choose_by": "loss", "keep": "last"}, "training.choose_by"),
        (CheckpointSettings, {"minutes": -0.5}, "checkpoint.minutes"),
        (GroupSettings, {"match": "*", "momentum": -0.1}, "optimizer.groups.momentum"),
        (OptimizerSettings, {"betas": (-0.1, 0.9)}, "optimizer.betas"),
        (DataSettings, {"test_fraction": 1.0}, "data.test_fraction"),
        (DataSettings, {"skip_easy": -0.1}, "data.skip_easy"),
        (DataSettings, {"background": (-1, 0, 0)}, "data.background"),
        (DataSettings, {"mean": (-0.1, 0.5, 0.5)}, "data.mean"),
        (ScheduleSettings, {"start": 1.1}, "schedule.start"),
        (ScheduleSettings, {"end": -0.1}, "schedule.end"),
        (ScheduleSettings, {"small_sides": ()}, "schedule.small_sides"),
        (ScheduleSettings, {"begin_at": 1.0}, "schedule.begin_at"),
        (ScheduleSettings, {"small_until": 1.1}, "schedule.small_until"),
        (TrainingSettings, {"epochs": 0}, "training.epochs"),
        (TrainingSettings, {"micro_batch": 1}, "training.micro_batch"),
        (
            TrainingSettings,
            {"micro_batch": 8, "compile": True, "compile_mode": "reduce-overhead"},
            "training.micro_batch",
        ),
        (
            TrainingSettings,
            {"micro_batch": 8, "compile": True, "compile_mode": "max-autotune"},
            "training.micro_batch",
        ),
        (TrainingSettings, {"min_steps": -1}, "training.min_steps"),
        (TrainingSettings, {"steps": -1}, "training.steps"),
        (TrainingSettings, {"max_skips": -1}, "training.max_skips"),
        (TrainingSettings, {"batch_size": 1}, "training.batch_size"),
        (TrainingSettings, {"label_smoothing": 1.0}, "training.label_smoothing"),
        (TrainingSettings, {"ema_decay": 1.0}, "training.ema_decay"),
        (EvaluationSettings, {"every": -1}, "evaluation.every"),
        (EvaluationSettings, {"sample": -1}, "evaluation.sample"),
        (EvaluationSettings, {"batch_size": 0}, "evaluation.batch_size"),
        (CheckpointSettings, {"steps": -1}, "checkpoint.steps"),
        (CheckpointSettings, {"min_seconds": -0.1}, "checkpoint.min_seconds"),
        (CheckpointSettings, {"min_seconds": INF}, "checkpoint.min_seconds"),
        (CheckpointSettings, {"minutes": INF}, "checkpoint.minutes"),
    ],
    ids=str,
)
def test_the_error_for_a_value_out_of_range_names_the_key_and_what_was_expected(
    section: Any, settings: dict[str, Any], key: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        section(**settings)
    assert str(caught.value).startswith(f"recipe key '{key}' is ")
    assert "expected " in str(caught.value)


def test_folds_without_the_number_of_one_of_them_name_the_command_for_all() -> None:
    with pytest.raises(
        RecipeError, match=r"a number from 1 to 5\. To train with each .* repeat DATA --folds 5$"
    ):
        DataSettings(folds=5)


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        (DataSettings, {"mean": (0.0, 0.5, 1.0), "std": (0.001, 0.5, 1.0)}),
        (DataSettings, {"largest_auto_size": 0}),
        (DataSettings, {"largest_auto_size": 16}),
        (DataSettings, {"largest_mixed_size": 0}),
        (DataSettings, {"largest_mixed_size": 16}),
        (DataSettings, {"background": (0, 128, 255)}),
        (DataSettings, {"val_fraction": 0.0, "test_fraction": 0.999}),
        (DataSettings, {"classes_from": "16"}),
        (DataSettings, {"skip_easy": 0.5, "workers": 1}),
        (AugmentSettings, {"translate": 15, "brightness": 2.0, "contrast": 1.0}),
        (AugmentSettings, {"rotate": 180.0, "scale": (0.1, 10.0), "hue": 0.5, "saturation": 1.0}),
        (AugmentSettings, {"erase": 1.0, "erase_area": (1.0, 1.0), "mixup": 100.0, "cutmix": 1e-9}),
        (ModelSettings, {"width": 8.0}),
        (ModelSettings, {"pretrained": "auto"}),
        (ModelSettings, {"name": "timm:resnet18", "pretrained": True, "stem": "original"}),
        (GroupSettings, {"match": "*", "lr": 0.0, "momentum": 0.0}),
        (OptimizerSettings, {"weight_decay": 0.0, "momentum": 0.0, "betas": (0.0, 0.0)}),
        (
            ScheduleSettings,
            {"start": 1.0, "end": 1.0, "factor": 1.0, "small_until": 1.0, "small_sides": (1.0,)},
        ),
        (ScheduleSettings, {"planned_at": (0, 12), "planned_steps": (30, 20)}),
        (ScheduleSettings, {"planned_at": (0,), "planned_steps": (1,)}),
        (ScheduleSettings, {"milestones": (0.1, 0.9)}),
        (DataSettings, {"range": (-1.0, 1.0), "classes_from": "1", "calibration_pictures": 0}),
        (DataSettings, {"test_fraction": 0.0}),
        (OptimizerSettings, {"nesterov": True, "momentum": 0.5}),
        (TrainingSettings, {"epochs": 1, "batch_size": 2, "micro_batch": 2, "max_skips": 0}),
        (TrainingSettings, {"micro_batch": 8, "compile": True}),
        (TrainingSettings, {"micro_batch": 8, "compile_mode": "reduce-overhead"}),  # not compiled
        (TrainingSettings, {"compile": True, "compile_mode": "reduce-overhead"}),
        (EvaluationSettings, {"every": 0, "sample": 0, "batch_size": 1}),
        (CheckpointSettings, {"steps": 0, "minutes": 0.0, "min_seconds": 0.0}),
    ],
    ids=str,
)
def test_the_ends_of_every_range_are_allowed_and_settings_are_frozen(
    section: Any, settings: dict[str, Any]
) -> None:
    made = section(**settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, next(iter(settings)), None)


@pytest.mark.parametrize(("text", "size"), [("16", (16, 16)), ("32x64", (32, 64)), ("1024X16", (1024, 16))])
def test_an_image_size_is_height_and_width(text: str, size: tuple[int, int]) -> None:
    assert parse_image_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "15", "1025", "32x", "32x32x32", "-32", "3 2", "\u0663\u0662", "100000"]
)
def test_an_invalid_image_size_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="image size"):
        parse_image_size(text)


def test_backgrounds_are_the_colours_that_they_are_called() -> None:
    expected = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
    assert expected == BACKGROUNDS


def test_an_epoch_keeps_all_but_the_skipped_share() -> None:
    assert kept_per_epoch(1000, 0.33) == 670
    assert kept_per_epoch(10, 0.0) == 10


def test_a_choice_of_the_epoch_is_asked_for_by_each_setting_about_it() -> None:
    for without in (TrainingSettings(), TrainingSettings(keep="last")):
        assert (without.choices, without.must_choose) == ((), False)
    for training, choices in (
        (TrainingSettings(keep="best"), ("training.keep = 'best'",)),
        (TrainingSettings(choose_by="loss"), ("training.choose_by = 'loss'",)),
        (
            TrainingSettings(choose_by="loss", keep="last", patience=2),
            ("training.patience = 2", "training.choose_by = 'loss'"),
        ),
    ):
        assert (training.choices, training.must_choose) == (choices, True)
