"""Coverage-guided fuzzing of the code that reads untrusted bytes: ``make fuzz``, or

    python tests/faults/fuzz.py TARGET SECONDS [FOLDER]

A target must return, or raise an error that thumbnet documents, within 5 seconds and 3 GB. Anything else is a
finding. libFuzzer writes the input to a file ``crash-...``, and it becomes a test. With ``FUZZ_FINDINGS=FOLDER``
a finding does not end the run: its traceback and its input go to that folder, once for each place in the code.
FOLDER keeps the inputs that reached new code, so that the next run can start with them.

``python tests/faults/fuzz.py`` lists the targets; ``test_fuzz_targets.py`` tries each of them without atheris.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import atheris

INSTRUMENTED = [
    "thumbnet",
    "PIL",
    "tomllib",
    "safetensors",
    "tarfile",
    "zipfile",
    "scipy.io",
    "numpy.lib",
    "webdataset",
]
with atheris.instrument_imports(include=INSTRUMENTED):
    from faults import fuzz_data, fuzz_runs
    from faults.broken import FORMATS, encoded
    from faults.fuzz_parts import SCRATCH, SEPARATOR, Target
    from helpers import coloured_data, open_image
    from thumbnet.data.rendering import Preprocessing
    from thumbnet.errors import DataError, RecipeError, RunError, UnreadableImageError
    from thumbnet.recipes.recipe import Recipe, load_recipe
    from thumbnet.runs.folder import Run
    from thumbnet.runs.weights import read_weights
    from thumbnet.sources import cifar
    from thumbnet.sources.folders import label_from_name

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
        run = train(coloured_data(), "one-cycle", overrides=tiny, out=SCRATCH / "run", device="cpu")
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


def _plain(run: Callable[[bytes], None]) -> Target:
    return Target(run, lambda: seeds(run.__name__))


TARGETS: dict[str, Target] = {
    one.__name__: _plain(one) for one in (picture, recipe, setting, pickled, weights, checkpoint, label)
}
TARGETS |= fuzz_data.TARGETS | fuzz_runs.TARGETS


def collecting(run: Callable[[bytes], object], folder: Path) -> Callable[[bytes], None]:
    """Write findings to a folder, once for each place in the code, and go on."""
    seen: set[int] = set()

    def collected(data: bytes) -> None:
        try:
            run(data)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = [(type(error).__name__, frame.name, frame.lineno) for frame in frames[-6:]]
            key = zlib.crc32(repr(place).encode())
            if key not in seen:
                seen.add(key)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{key:08x}.txt").write_text(
                    "".join(traceback.format_exception(error)), errors="replace"
                )
                (folder / f"{key:08x}.bin").write_bytes(data)

    return collected


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print(*TARGETS)
        sys.exit()
    name, seconds = sys.argv[1], sys.argv[2]
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else SCRATCH / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    target = TARGETS[name]
    for number, content in enumerate(target.seeds()):
        (folder / f"seed-{number}").write_bytes(content)
    options = [f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=3000", "-print_final_stats=1"]
    if target.words:
        dictionary = SCRATCH / "words"
        lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in (SEPARATOR, *target.words))
        dictionary.write_text("".join(f'"{line}"\n' for line in lines))
        options += [f"-dict={dictionary}", "-max_len=100000"]
    run = target.run
    if "FUZZ_FINDINGS" in os.environ:
        run = collecting(run, Path(os.environ["FUZZ_FINDINGS"]) / name)
    atheris.Setup([sys.argv[0], str(folder), *options], run)
    atheris.Fuzz()
