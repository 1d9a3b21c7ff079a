"""Explain what to do when a data set, address or path that the user named does not exist."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from thumbnet.errors import nearest, printable
from thumbnet.files import user_path
from thumbnet.invocation import command, install_command

HUB = "hf:"  # begins the name of a repository on the Hugging Face Hub: data or weights
# Where to get well-known data sets, by their names in lower case without spaces and punctuation.
_ON_HUB = {
    "mnist": "hf:ylecun/mnist",
    "fashionmnist": "hf:zalando-datasets/fashion_mnist",
    "kmnist": "hf:tanganke/kmnist",
    "svhn": "hf:ufldl-stanford/svhn:cropped_digits",
    "stl10": "hf:tanganke/stl10",
    "catsanddogs": "hf:microsoft/cats_vs_dogs",
    "catsvsdogs": "hf:microsoft/cats_vs_dogs",
    "catvsdog": "hf:microsoft/cats_vs_dogs",
    "catdog": "hf:microsoft/cats_vs_dogs",
    "catsdogs": "hf:microsoft/cats_vs_dogs",
    "dogsvscats": "hf:microsoft/cats_vs_dogs",
    "dogsandcats": "hf:microsoft/cats_vs_dogs",
    "tinyimagenet": "hf:zh-plus/tiny-imagenet",
    "tinyimagenet200": "hf:zh-plus/tiny-imagenet",
    "imagenette": "hf:frgfm/imagenette:320px",
    "food101": "hf:ethz/food101",
    "oxfordpets": "hf:timm/oxford-iiit-pet",
    "oxfordiiitpet": "hf:timm/oxford-iiit-pet",
    "pets": "hf:timm/oxford-iiit-pet",
    "flowers102": "hf:dpdl-benchmark/oxford_flowers102",
    "oxfordflowers": "hf:dpdl-benchmark/oxford_flowers102",
    "flowers": "hf:dpdl-benchmark/oxford_flowers102",
    "beans": "hf:AI-Lab-Makerere/beans",
    "eurosat": "hf:blanchon/EuroSAT_RGB",
    "gtsrb": "hf:tanganke/gtsrb",
    "dtd": "hf:tanganke/dtd",
    "caltech101": "hf:flwrlabs/caltech101",
    "cinic10": "hf:flwrlabs/cinic10",
}
_OWN = {
    "imagenet": "ImageNet has to be downloaded with an account at image-net.org; then name its folder. A "
    "small part of it needs no account: {small_part}",
    "medmnist": "MedMNIST comes as one .npz file per data set, from medmnist.com; name such a file",
    "coco": "COCO has boxes for objects, but thumbnet classifies whole pictures: crop the objects, and sort "
    "them into one folder per class",
    "lfw": "LFW comes as one folder per person, from vis-www.cs.umass.edu/lfw; name that folder",
    "celeba": "CelebA has forty attributes per picture; write a CSV file of the pictures and one attribute, "
    "and name it",
}
_ALSO = {"imagenet1k": "imagenet", "ilsvrc": "imagenet", "ilsvrc2012": "imagenet", "coco2017": "coco"}


def explain(name: str, known: Sequence[str]) -> str:
    """Say that ``name`` is neither a data set nor an existing path, and what to do.

    Args:
        known: the names of the known data sets.
    """
    what = f"there is no data set, folder or archive {printable(name)!r}."
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    same = next((each for each in known if re.sub(r"[^a-z0-9]", "", each) == plain), None)
    if same:
        return f"{what} Did you mean {same!r}? {nearest(same, known).rpartition('? ')[2]}"
    if plain in _ON_HUB:
        return (
            f"{what} The Hugging Face Hub has a data set of that name: {command('train', _ON_HUB[plain])} "
            f"(needs {install_command('hub')}). Or download it, and name its folder or archive"
        )
    plain = _ALSO.get(plain, plain)
    if plain in _OWN:
        advice = _OWN[plain].format(small_part=command("train", _ON_HUB["tinyimagenet"]))
        return f"{what} {advice}"
    address = re.fullmatch(
        r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/datasets/([\w.-]+/[\w.-]+).*", name
    )
    if address:
        again = command("train", f"{HUB}{address[1]}")
        return f"{what} This data set is on the Hugging Face Hub: {again}"
    if re.match(r"[a-z0-9+]+://", name, re.IGNORECASE):
        return f"{what} thumbnet does not download from addresses: download the file, and name it"
    return f"{what} {_near_path(name)}{nearest(name, known)}"


def _near_path(name: str) -> str:
    """A sentence that suggests a similar path or the Hub's prefix ``hf:``, or says what the folder lacks."""
    path = user_path(name)
    try:
        parent = next((folder for folder in path.parents if folder.is_dir()), None)
        missing = path.relative_to(parent).parts[0] if parent else ""
        there = sorted(os.listdir(parent)) if parent else []
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(
        missing, [each for each in there if not each.startswith(".")], n=1, cutoff=0.7
    )
    if close and parent:
        return f"A similar path is {printable(str(parent / close[0]))!r}. "
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return f"If it is on the Hugging Face Hub: hf:{printable(name)}. "
    if parent and parent != Path():
        return f"The folder {printable(str(parent))!r} has no {printable(missing)!r}. "
    return f"The current folder, {printable(os.getcwd())!r}, has no {printable(missing)!r}. "
