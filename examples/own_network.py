"""A network of your own becomes a run, and trains, resumes and exports like any other."""

import torch
from torch import Tensor, nn

import thumbnet


class SqueezeExcite(nn.Module):
    """Weighs each channel by what the whole picture holds (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        return torch.mul(x, self.weigh(x))


@thumbnet.register_model("squeeze")
class SqueezeNet(nn.Module):
    """Residual blocks from the library, with something new between them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            thumbnet.ResidualBlock(16, 32, stride=2), SqueezeExcite(32),
            thumbnet.ResidualBlock(32, 64, stride=2), SqueezeExcite(64),
        )  # fmt: skip
        self.head = nn.Linear(64, num_classes)  # thumbnet finds the last layer by its name

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] → logits [B, num_classes]."""
        logits: Tensor = self.head(self.layers(x).mean(dim=(2, 3)))
        return logits


if __name__ == "__main__":
    settings = [
        "model.name=squeeze",
        "data.image_size=16",
        "training.epochs=4",
        "training.batch_size=64",
    ]
    run = thumbnet.train("digits", "one-cycle", overrides=settings)
    print(f"accuracy {100 * run.summary['accuracy']:.2f} %, in {run.path}")
    print(
        thumbnet.load_classifier(run.path)
        .predict(thumbnet.load_data("digits").splits["test"].read(0))[0]
        .label
    )
