"""``thumbnet recipes list`` and ``thumbnet recipes show``."""

from __future__ import annotations

import argparse
from typing import Any

from thumbnet.cli.options import add_model_code, add_overrides


def add(commands: Any) -> None:
    parser = commands.add_parser("recipes", help="list recipes, or show one")
    inner = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(command=_recipes_list)
    listing = inner.add_parser("list", help="list the recipes that come with thumbnet")
    listing.set_defaults(command=_recipes_list)
    show = inner.add_parser(
        "show",
        help="print a recipe",
        description="Print how to run a recipe, what to expect, and the settings that differ from "
        "the defaults.",
    )
    show.add_argument("recipe", metavar="NAME", help="a recipe's name or a TOML file")
    show.add_argument("--all", action="store_true", help="print every setting")
    show.add_argument(
        "--plot", metavar="FILE", help="draw the learning rate over the epochs (.png, .svg, .pdf)"
    )
    add_overrides(show)
    add_model_code(show)
    show.set_defaults(command=_recipes_show)


def _recipes_list(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import say, table
    from thumbnet.invocation import command
    from thumbnet.recipes.recipe import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    say(table(["recipe", "description"], [[r.name, r.description] for r in recipes], left=2))
    show = command("recipes", "show", "NAME")
    say(f"\nTo print a recipe, as a starting point for your own: {show}")
    return 0


def _recipes_show(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import note, say
    from thumbnet.recipes.recipe import load_recipe, opening_comment, recipe_names

    recipe = load_recipe(options.recipe, options.overrides)
    if options.plot:
        from thumbnet.reports import figures as plots

        target = plots.check_plot_path(options.plot)
        plots.save(plots.schedule_figure(recipe), target)
        note(f"written: {target}")
    # The comment states the recipe's results, so it does not hold for a changed recipe.
    if options.recipe in recipe_names() and not options.overrides:
        say(opening_comment(options.recipe))
    say(recipe.to_toml(whole=options.all).rstrip())
    return 0
