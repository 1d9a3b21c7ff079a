"""``thumbnet push``."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="publish a run on the Hugging Face Hub, with a model card",
        description="Publish a run's weights, recipe and metrics with a generated model card. Log in first "
        "with hf auth login, or set HF_TOKEN.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a complete run")
    parser.add_argument(
        "repository", metavar="hf:OWNER/NAME", help="repository; created if it does not exist"
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="make the repository private if it is new, and publish nothing in a public one",
    )
    parser.add_argument(
        "--license", metavar="NAME", help="licence of the weights, by its name on the Hub, such as mit"
    )
    parser.add_argument("--card", action="store_true", help="print the model card, but publish nothing")
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import say
    from thumbnet.publish.hub import model_card, push
    from thumbnet.runs.folder import Run
    from thumbnet.sources.known_names import HUB

    run, name = Run.open(options.run), options.repository.removeprefix(HUB)
    if options.card:
        say(model_card(run, name, options.license))
    else:
        say(f"published: {push(run, name, private=options.private, licence=options.license)}")
    return 0
