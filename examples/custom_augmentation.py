"""Your own augmentation: any function of a picture. Transforms of torchvision and albumentations work too."""

import random

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

import thumbnet
from thumbnet.batches.batches import LoaderBatches
from thumbnet.batches.dataset import to_tensor
from thumbnet.models import build_model
from thumbnet.training.state import TrainingState


def tilt(picture: Image.Image) -> Tensor:
    """Rotate by up to 15 degrees and return float32 [3, H, W] from -1 to 1, as the network takes it.

    In torchvision this is ``Compose([RandomRotation(15), ToTensor(), Normalize(...)])``.
    """
    turned = picture.rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR)
    return to_tensor(turned).float() / 127.5 - 1


random.seed(0)
torch.manual_seed(0)
dataset = thumbnet.ImageDataset("digits", "train", transform=tilt, image_size=(32, 32))
loader = DataLoader(dataset, batch_size=64, shuffle=True)
recipe = thumbnet.load_recipe("one-cycle", ["model.name=resnet20", "training.epochs=2"])
model = build_model(recipe.model, len(dataset.class_names))
batches = LoaderBatches(loader)
state = TrainingState(model, recipe, len(batches), torch.device("cpu"))
for result in thumbnet.fit(state, batches):
    print(f"epoch {result.epoch}: loss {result.loss:.3f}, {result.pictures_per_second:,.0f} pictures/s")
