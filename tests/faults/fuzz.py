"""Coverage-guided fuzzing of the code that reads untrusted bytes: ``make fuzz``, or

    python tests/faults/fuzz.py TARGET SECONDS [FOLDER]

A target must return, or raise an error that thumbnet documents. Anything else is a finding. libFuzzer writes the
input to a file ``crash-...``, and it becomes a test in test_hostile.py or test_bad_input.py. FOLDER keeps the
inputs that reached new code, so that the next run can start with them.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

with atheris.instrument_imports(include=["thumbnet", "PIL", "tomllib", "safetensors"]):
    from faults.broken import FORMATS, encoded
    from helpers import coloured_data
    from thumbnet.data.images import Preprocessing, open_image
    from thumbnet.errors import DataError, RecipeError, RunError, UnreadableImageError
    from thumbnet.recipes.recipe import Recipe, load_recipe
    from thumbnet.runs.folder import Run
    from thumbnet.runs.weights import read_weights
    from thumbnet.sources import cifar
    from thumbnet.sources.folders import label_from_name

SCRATCH = Path(tempfile.mkdtemp(prefix="thumbnet-fuzz-"))
PREPROCESSING = Preprocessing((32, 32), "pad", (0.5,) * 3, (0.2,) * 3)


def picture(data: bytes) -> None:
    try:
        image = open_image(data, "fuzzed")
    except UnreadableImageError:
        return
    assert PREPROCESSING.pixels(image).shape == (32, 32, 3)


def recipe(data: bytes) -> None:
    path = SCRATCH / "recipe.toml"
    path.write_bytes(data)
    try:
        found = load_recipe(path)
    except RecipeError:
        return
    path.write_text(found.to_toml())
    assert load_recipe(path) == found


def setting(data: bytes) -> None:
    with contextlib.suppress(RecipeError):
        Recipe().override([data.decode("utf-8", "replace")])


def pickled(data: bytes) -> None:
    path = SCRATCH / "data_batch_1"
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        cifar._read_python(path, 1)


def weights(data: bytes) -> None:
    path = SCRATCH / "model.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(RunError):
        read_weights(path)


def checkpoint(data: bytes) -> None:
    path = SCRATCH / "checkpoint.pt"
    path.write_bytes(data)
    with contextlib.suppress(RunError):
        Run(SCRATCH).load_checkpoint()


def label(data: bytes) -> None:
    with contextlib.suppress(DataError):
        assert label_from_name(data.decode("utf-8", "surrogateescape"))


def seeds(name: str) -> list[bytes]:
    """Valid inputs to start from."""
    if name == "picture":
        return [content for kind in FORMATS if (content := encoded(kind))]
    if name == "recipe":
        return [load_recipe(one).to_toml().encode() for one in ("tutorial", "fast")]
    if name in ("weights", "checkpoint"):
        from thumbnet.training.train import train

        tiny = ["model.name=resnet20", "model.width=0.07", "training.epochs=1"]
        run = train(coloured_data(), "resnet18", overrides=tiny, out=SCRATCH / "run", device="cpu")
        (SCRATCH / "recipe.toml").write_bytes((run.path / "recipe.toml").read_bytes())
        file = run.weights_path if name == "weights" else run.path / "checkpoint.pt"
        return [file.read_bytes()]
    if name == "pickled":
        batch = {
            b"data": np.zeros((2, 3072), np.uint8),
            b"labels": [0, 1],
            b"filenames": [b"a.png", b"b.png"],
        }
        return [pickle.dumps(batch, protocol) for protocol in (0, 2, 4, 5)]
    return [b"optimizer.lr=0.05", b"12_frog.png"]


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one for one in (picture, recipe, setting, pickled, weights, checkpoint, label)
}

if __name__ == "__main__":
    name, seconds = sys.argv[1], sys.argv[2]
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else SCRATCH / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds(name)):
        (folder / f"seed-{number}").write_bytes(content)
    options = [f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=3000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(folder), *options], TARGETS[name])
    atheris.Fuzz()
