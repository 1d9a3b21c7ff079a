"""``thumbnet push``."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="publish a run on the Hugging Face Hub, with a model card",
        description="Publish a run's weights, recipe and metrics with a generated model card. Log in first: "
        "hf auth login, or HF_TOKEN.",
    )
    parser.add_argument("run", metavar="RUN", help="a complete run's folder")
    parser.add_argument("repository", metavar="hf:OWNER/NAME", help="made if it is not there")
    parser.add_argument("--private", action="store_true", help="for you alone, if it is new")
    parser.add_argument("--license", metavar="NAME", help="of the weights, by the Hub's names, as mit")
    parser.add_argument("--card", action="store_true", help="print the model card, and publish nothing")
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import say
    from thumbnet.publish.hub import model_card, push
    from thumbnet.runs.folder import Run

    run, name = Run.open(options.run), options.repository.removeprefix("hf:")
    if options.card:
        say(model_card(run, name, options.license))
    else:
        say(f"published: {push(run, name, private=options.private, licence=options.license)}")
    return 0
