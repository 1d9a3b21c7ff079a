"""``thumbnet lr-find``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import importing
from thumbnet.cli.options import DATA_HELP, add_common, add_labels, add_recipe_options, overrides, positive
from thumbnet.invocation import quoted

if TYPE_CHECKING:
    from thumbnet.recipes.recipe import Recipe
    from thumbnet.recipes.settings import GroupSettings


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "lr-find",
        help="find a learning rate",
        description="Run a learning-rate range test: train on DATA while the learning rate "
        "rises with every step.",
    )
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--plot", metavar="FILE", help="draw the loss against the learning rate (.png, .svg, .pdf)"
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=100,
        metavar="N",
        help="number of training steps, 10 or more (default: 100)",
    )
    parser.add_argument(
        "--from",
        dest="lowest",
        type=float,
        default=1e-4,
        metavar="LR",
        help="lowest learning rate (default: 1e-4)",
    )
    parser.add_argument(
        "--to",
        dest="highest",
        type=float,
        default=100.0,
        metavar="LR",
        help="highest learning rate (default: 100)",
    )
    add_labels(parser)
    add_recipe_options(parser)
    add_common(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from dataclasses import replace

    with importing():
        from thumbnet.batches.prepare import prepare
        from thumbnet.cli.console import say
        from thumbnet.cli.progress import counting
        from thumbnet.data.corrections import corrections_of
        from thumbnet.errors import RecipeError
        from thumbnet.hardware import choose_device
        from thumbnet.reports import figures as plots
        from thumbnet.training.build import build_state
        from thumbnet.training.choose import asked_recipe, choose_recipe
        from thumbnet.training.listener import Listener
        from thumbnet.training.mirror_names import named_keys
        from thumbnet.training.range_test import check_asked, learning_rate_range_test
        from thumbnet.training.transfer import find_initial

    check_asked(options.lowest, options.highest, options.steps)
    target = plots.check_plot_path(options.plot) if options.plot else None
    device = choose_device(options.device)
    asked = asked_recipe(options.recipe, overrides(options))
    if asked.training.frozen:
        raise RecipeError(f"the recipe {asked.name} trains only the last layer, without a learning rate")
    labels = None if options.labels is None else corrections_of(options.labels)
    find_initial(asked)
    recipe, data = choose_recipe(
        options.data, options.recipe, overrides(options), options.data_dir, Listener(), labels
    )
    data = replace(data, splits={"train": data.splits["train"]})  # the test needs no other split
    whole_network = replace(recipe.schedule, head_first=0.0)
    recipe = replace(recipe, schedule=whole_network)
    with counting("decoding") as count:
        prepared = prepare(data, recipe, device, count)
    state = build_state(recipe, prepared, data.class_names, device)
    with counting("steps") as count:
        test = learning_rate_range_test(
            state,
            prepared.train,
            lowest=options.lowest,
            highest=options.highest,
            steps=options.steps,
            progress=count,
        )
    say(f"the loss falls fastest at lr {test.suggestion:.3g} and is lowest at lr {test.least:.3g}")
    named = named_keys(None, overrides(options))
    words = " ".join(map(quoted, suggested(recipe, float(f"{test.suggestion:.2g}"), named)))
    say(f"suggestion: {words}  (the recipe has {recipe.optimizer.lr:g})")
    if target:
        plots.save(plots.range_test_figure(test), target)
        say(f"written: {target}")
    return 0


def suggested(recipe: Recipe, rate: float, named: Collection[str]) -> list[str]:
    """The options with which a training has the rates that the test had at ``rate``.

    Args:
        recipe: the recipe of the test, fitted to the data.
        rate: what ``optimizer.lr`` should be. All other rates keep their ratio to it.
        named: the keys that the user set.
    """
    options = []
    if recipe.training.min_steps and "training.batch_size" not in named:
        # Otherwise the training might choose a smaller batch for the data, and change the rates with it.
        options += ["--batch-size", str(recipe.training.batch_size)]
    options += ["--set", f"optimizer.lr={rate:g}"]
    groups, factor = recipe.optimizer.groups, rate / recipe.optimizer.lr
    if any(group.lr is not None for group in groups):
        tables = ", ".join(_as_toml(group, factor) for group in groups)
        options += ["--set", f"optimizer.groups=[{tables}]"]
    return options


def _as_toml(group: GroupSettings, factor: float) -> str:
    """A group with its rate times ``factor``, as an inline table."""
    from dataclasses import asdict

    values = {key: value for key, value in asdict(group).items() if value is not None}
    if "lr" in values:
        values["lr"] = float(f"{factor * values['lr']:.4g}")
    pairs = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    return "{" + ", ".join(pairs) + "}"
