"""A network of one's own in thumbnet's loop: any nn.Module from [B, 3, H, W] to [B, classes]."""

import torch
from torch import Tensor, nn

import thumbnet
from thumbnet.batches.prepare import prepare
from thumbnet.classifiers.logits import collect_logits
from thumbnet.evaluation import evaluate_logits
from thumbnet.training.state import Score, TrainingState


class SqueezeExcite(nn.Module):
    """Weighs channels by what the whole picture has in them (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels // 4, 1), nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        weighed: Tensor = x * self.weigh(x)
        return weighed


def my_network(num_classes: int) -> nn.Module:
    """Residual blocks from the library, something new between them."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        thumbnet.ResidualBlock(16, 32, stride=2), SqueezeExcite(32),
        thumbnet.ResidualBlock(32, 64, stride=2), SqueezeExcite(64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )  # fmt: skip


torch.manual_seed(0)
device = torch.device("cpu")
data = thumbnet.load_data("digits")
recipe = thumbnet.load_recipe(
    "resnet18", ["training.epochs=4", "training.batch_size=64", "augment.flip=none"]
)
prepared = prepare(data, recipe, device)
state = TrainingState(my_network(len(data.class_names)), recipe, len(prepared.train), device)


def evaluate(model: nn.Module) -> Score:
    """What ``fit`` asks for after an epoch."""
    logits, labels = collect_logits(model, prepared.evaluation["test"], bf16=state.bf16)
    result = evaluate_logits(logits.numpy(), labels.numpy(), data.class_names)
    return Score("test", result.accuracy, result.loss)


for result in thumbnet.fit(state, prepared.train, evaluate=evaluate):
    assert result.score is not None
    print(f"epoch {result.epoch}: loss {result.loss:.3f}, test accuracy {100 * result.score.accuracy:.2f} %")
torch.save(state.model.state_dict(), "my_network.pt")
