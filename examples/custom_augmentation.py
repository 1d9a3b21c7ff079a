"""An augmentation of your own: its run resumes, evaluates and exports like any other."""

import torch
from torch import Tensor

import thumbnet


@thumbnet.register_augmentation("grain")
def grain(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise to half of the pictures, like the grain of a film.

    Args:
        images: uint8 [B, 3, H, W], on the device of the training.
        generator: on the CPU, seeded for this step. A resumed training draws the same.

    Returns:
        Images of the same shape and type.
    """
    chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    noise = 20 * torch.randn(images.shape, generator=generator) * chosen
    return (images + noise.to(images.device)).round().clamp(0, 255).to(torch.uint8)


if __name__ == "__main__":
    settings = ["augment.custom=grain", "augment.rotate=10", "training.epochs=4"]
    run = thumbnet.train("digits", overrides=settings)
    print(f"accuracy {100 * run.summary['accuracy']:.2f} %, in {run.path}")
