"""What a training does differently if pictures have several labels each: its loss, and its recipe.

The labels' shape says which kind they are: [B] for one class per picture, [B, labels] for several labels.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from thumbnet.data.splits import Data
from thumbnet.errors import RecipeError
from thumbnet.recipes.recipe import Recipe

# Settings with a value that needs one class per picture, and one that works for several labels too.
ONE_CLASS_ONLY = {
    "data.sampling": ("balanced", "uniform"),
    "training.class_weights": ("balanced", "none"),
    "training.choose_by": ("balanced-accuracy", "accuracy"),
}


def label_losses(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Each picture's binary cross-entropy with logits, summed over its labels: float32 [B].

    The sum is the surprise of all of a picture's labels, if they are independent. It keeps the gradient of
    each logit, probability minus label, at the scale of the softmax's, so the recipes' learning rates fit.

    Args:
        logits: float32 [B, labels].
        labels: 0 or 1, int8 [B, labels]; negative for a picture that does not count, whose loss is 0.
        smoothing: moves each label this far from 0 or 1 towards 0.5: a label of 1 becomes
            1 - smoothing / 2, and one of 0 becomes smoothing / 2.
    """
    counts = (labels >= 0).to(logits.dtype)
    wanted = labels.clamp(min=0).to(logits.dtype) * (1 - smoothing) + smoothing / 2
    return (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * counts).sum(dim=1)


def exact_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many pictures have all of their labels right at a threshold of 0.5: int64 []."""
    return ((logits >= 0) == (labels > 0)).all(dim=1).logical_and((labels >= 0).all(dim=1)).sum()


def for_several_labels(recipe: Recipe, data: Data) -> tuple[Recipe, list[str]]:
    """The recipe for pictures with several labels, and notes; both unchanged for one class per picture.

    ``data.multilabel`` becomes true, so the run reads its data in the same way again. Test-time augmentation
    ``adaptive`` becomes ``mirror-shift``, because ``adaptive`` chooses pictures by the lead of one class.

    Raises:
        RecipeError: a setting works only with one class per picture.
    """
    if not data.multilabel:
        return recipe, []
    settings = recipe.to_dict()
    for key, (refused, usual) in ONE_CLASS_ONLY.items():
        section, name = key.split(".")
        if settings[section][name] == refused:
            raise RecipeError(
                f"{key} = {refused!r} needs one class per picture, and these pictures have "
                f"several labels each: --set {key}={usual}"
            )
    notes = []
    if recipe.evaluation.tta == "adaptive":
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, tta="mirror-shift"))
        notes.append(
            "several labels per picture: evaluation.tta is mirror-shift, because adaptive asks which one "
            "class leads"
        )
    return replace(recipe, data=replace(recipe.data, multilabel=True)), notes
