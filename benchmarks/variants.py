"""Compares variants of a recipe by training pictures that they are not trained on.

    python benchmarks/variants.py photos/ --try data.image_size=32 --try "data.image_size=64 data.fit=pad"
    python benchmarks/variants.py cifar10-jpeg.tar.xz --pictures 500 --held-out 5000 \\
        --try training.epochs=30 --try training.epochs=100
    python benchmarks/variants.py cifar10-jpeg.tar.xz --recipe resnet18 --set model.width=0.25 \\
        --held-out 0.1 --try "" --try optimizer.nesterov=false

Test pictures choose nothing. Variants are compared with the first one, seed by seed.

Results are written after every training. If the program is interrupted, call it again: it continues.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from label_noise import part_of, spread
from measure import summary
from resumable import Results, settings_of

from thumbnet.cli.console import say, table
from thumbnet.data.splits import Data
from thumbnet.errors import ThumbnetError
from thumbnet.hardware import choose_device
from thumbnet.sources.load import load_data
from thumbnet.training.train import train

HELD_OUT = 1 / 3
LAST_ONLY = ("training.keep=last", "evaluation.every=0", "evaluation.sample=0")
AS_IT_IS = "as it is"


def judged(options: argparse.Namespace, source: str, variant: str, seed: int) -> dict[str, Any]:
    """What a variant reaches on the pictures that it is not trained on, and the seconds of its steps."""
    data, fraction = chosen_pictures(source, options.pictures, options.held_out)
    own = [f"seed={seed}", f"data.val_fraction={fraction}", *options.set, *variant.split()]
    with tempfile.TemporaryDirectory() as out:
        run = train(
            data,
            options.recipe,
            overrides=[*LAST_ONLY, *own],
            out=Path(out) / "run",
            device=options.device,
        )
        epochs = run.metrics
    last = epochs[-1]
    found = {"accuracy": last["val_accuracy"], "loss": last["val_loss"], "pictures": last["val_pictures"]}
    return {**found, "seconds": sum(one["seconds"] for one in epochs)}


def chosen_pictures(source: str, pictures: int, held_out: float) -> tuple[Data | str, float]:
    """The data, and the fraction of their training pictures that judges.

    Args:
        source: anything that thumbnet reads.
        pictures: train on so many of the training pictures; 0 for all.
        held_out: number of pictures that judge if it is 1 or more, else their fraction.
    """
    if not pictures and held_out < 1:
        return source, held_out
    data = load_data(source)
    if held_out < 1:
        return part_of(data, round(pictures / (1 - held_out))), held_out
    if pictures:
        data = part_of(data, pictures + int(held_out))
    return data, held_out / len(data.splits["train"])


def difference(values: Sequence[float], reference: Sequence[float]) -> str:
    """The mean difference of pairs in points, with its standard error if there are several."""
    pairs = [100 * (one - other) for one, other in zip(values, reference, strict=True)]
    found = summary(pairs)
    return f"{found['mean']:+.2f}" + (f" ± {found['error']:.2f}" if len(pairs) > 1 else "")


def arguments() -> argparse.ArgumentParser:
    """The options of this program."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("sources", nargs="+", metavar="DATA", help="anything that thumbnet reads")
    made.add_argument("--recipe", default="small", help="default: %(default)s")
    made.add_argument("--try", action="append", default=[], metavar="SETTINGS", dest="variants")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all variants")
    made.add_argument("--pictures", type=int, default=0, help="train on so many; default: all")
    made.add_argument(
        "--held-out",
        type=float,
        default=HELD_OUT,
        help="pictures that judge, or their fraction; default: a third",
    )
    made.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    made.add_argument("--device", default="auto", help="as in thumbnet train (default: %(default)s)")
    made.add_argument("--json", metavar="FILE", default="build/variants/results.json")
    return made


def main() -> None:
    """Measure, and print a table."""
    options = arguments().parse_args()
    settings = settings_of(options, "recipe", "set", "pictures", "held_out")
    results = Results(Path(options.json), settings, choose_device(options.device))
    variants = options.variants or [""]
    names = {
        (source, variant, seed): f"{Path(source).name}, {variant or AS_IT_IS}, seed {seed}"
        for seed in range(options.seeds)
        for source, variant in itertools.product(options.sources, variants)
    }
    try:
        for (source, variant, seed), name in names.items():
            results.once(name, lambda: judged(options, source, variant, seed))  # noqa: B023
    except ThumbnetError as error:
        raise SystemExit(str(error)) from None
    rows = []
    for source, variant in itertools.product(options.sources, variants):
        of, first = (
            [results.found[names[source, one, seed]] for seed in range(options.seeds)]
            for one in (variant, variants[0])
        )
        accuracies, reference = ([one["accuracy"] for one in found] for found in (of, first))
        loss, seconds = (statistics.fmean(one[key] for one in of) for key in ("loss", "seconds"))
        gain = "" if variant == variants[0] else difference(accuracies, reference)
        row = [Path(source).name, variant or AS_IT_IS, spread(accuracies), gain]
        rows.append([*row, f"{loss:.3f}", f"{seconds:.0f}"])
    say(f"accuracy on held-out pictures, %, {options.recipe}, n = {options.seeds}")
    say(table(["data", "variant", "accuracy", "gain", "loss", "seconds of steps"], rows))


if __name__ == "__main__":
    main()
