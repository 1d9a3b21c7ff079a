"""A loss of your own: its run resumes, evaluates and exports like any other."""

import torch.nn.functional as F
from torch import Tensor

import thumbnet


@thumbnet.register_loss("focal")
def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """The focal loss (Lin et al. 2017): pictures that are already right count less.

    Args:
        logits: float32 [B, classes].
        targets: the classes, int64 [B].
        gamma: how much less; 0 is the cross-entropy.

    Returns:
        The loss of each picture, float32 [B].
    """
    surprise = F.cross_entropy(logits, targets, reduction="none")
    return (1 - (-surprise).exp()) ** gamma * surprise


if __name__ == "__main__":
    settings = ["training.loss=focal", "training.epochs=4"]
    run = thumbnet.train("digits", overrides=settings)
    print(f"accuracy {100 * run.summary['accuracy']:.2f} %, in {run.path}")
