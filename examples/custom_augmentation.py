"""An augmentation of one's own: any function of a picture, torchvision's and albumentations' included."""

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
    """Turned by up to 15 degrees; then float32 [3, H, W] in -1 to 1, as the network takes it.

    With torchvision this would be ``Compose([RandomRotation(15), ToTensor(), Normalize(...)])``.
    """
    turned = picture.rotate(random.uniform(-15, 15), Image.Resampling.BILINEAR)
    return to_tensor(turned).float() / 127.5 - 1


random.seed(0)
torch.manual_seed(0)
dataset = thumbnet.ImageDataset("digits", "train", transform=tilt, image_size=(32, 32))
loader = DataLoader(dataset, batch_size=64, shuffle=True)
recipe = thumbnet.load_recipe("resnet18", ["model.name=resnet20", "training.epochs=2"])
model = build_model(recipe.model, len(dataset.class_names))
batches = LoaderBatches(loader)
state = TrainingState(model, recipe, len(batches), torch.device("cpu"))
for result in thumbnet.fit(state, batches):
    print(f"epoch {result.epoch}: loss {result.loss:.3f}, {result.pictures_per_second:,.0f} pictures/s")
