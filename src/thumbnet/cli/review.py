"""``thumbnet review``."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.cli.options import DATA_HELP, add_common, add_model_code, positive, reading_words
from thumbnet.cli.run_data import where_now
from thumbnet.errors import RunError, ThumbnetError, needs_extra, printable
from thumbnet.invocation import command

if TYPE_CHECKING:
    from thumbnet.data.rendering import Rendering
    from thumbnet.data.splits import Data, Split
    from thumbnet.reviewing.service import Tokens
    from thumbnet.reviewing.session import Review
    from thumbnet.runs.folder import Run

PORT = 8001  # not the one of `thumbnet serve`, so that both can run
FIRST = 500  # pictures


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "review",
        help="correct labels in the browser, or label new pictures",
        description="Show the pictures of RUN's data whose labels are probably wrong, most suspicious first, "
        "on a page in the browser. Decisions are written to labels.csv in RUN, for train --labels. "
        "With --run, show the unlabelled pictures in a folder, those first whose labels would help RUN most. "
        "No picture is ever changed.",
    )
    parser.add_argument(
        "place", metavar="RUN", help="a run's folder; with --run, a folder of unlabelled pictures"
    )
    parser.add_argument("--run", metavar="RUN", help="label a folder's pictures with the help of this run")
    parser.add_argument("--data", metavar="DATA", help=f"{DATA_HELP}: the run's data, if they have moved")
    parser.add_argument(
        "--folds",
        type=folds,
        metavar="K",
        help="train K networks, each without a part of the training pictures, to judge that part "
        "(default: 3); 0: let the run's own network judge them within seconds, having seen their labels",
    )
    parser.add_argument(
        "--first",
        type=positive,
        default=FIRST,
        metavar="N",
        help=f"number of pictures to review (default: {FIRST}); those that the run has learned come last",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the file of labels (default: labels.csv in RUN; with --run, DIR-labels.csv next to the folder)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=PORT,
        help=f"port of the page on this machine; 0 for any free one (default: {PORT})",
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the page's address")
    add_model_code(parser)
    add_common(parser)
    parser.set_defaults(command=execute)


def folds(text: str) -> int:
    """Parse a number of folds, for argparse."""
    number = int(text)
    if number < 0 or number == 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 2 or more, or 0 to train no network")
    return number


def execute(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import say

    with needs_extra("thumbnet review", "serve"):
        from thumbnet.reviewing.service import Heading, Tokens, build_review
        from thumbnet.serving.protection import accepted_hosts
        from thumbnet.serving.server import listen, serve
    prepare = _Suspects if options.run is None else _Unlabelled
    task = prepare(options)
    with ExitStack() as stack:
        # A file or port that is in use is reported now, not after the scoring.
        stack.enter_context(task.lock())
        listener = stack.enter_context(listen("127.0.0.1", options.port))
        review = task.review()
        hosts = accepted_hosts(listener, "localhost")
        show_more = task.show_more(review.selection.reach)
        heading = Heading(task.title, task.next_command(), hosts, show_more)
        tokens = Tokens()
        app = build_review(
            review, heading, lambda item: task.splits[item.split].load(item.index), task.rendering, tokens
        )
        more = _not_shown(review, task)
        serve(app, listener, lambda address: _greet(address, tokens, review, more, options.no_browser))
    say(_outcome(review, task))
    return 0


class _Task(ABC):
    """What is reviewed.

    Attributes:
        title: what the page calls it.
        file: the file of labels.
        run: the run that helps; None if it is a file or on the Hub.
        splits: the pictures by split, once :meth:`review` was called.
        rendering: how they become RGB.
    """

    title: str
    file: Path
    run: Run | None
    splits: dict[str, Split]
    rendering: Rendering

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @abstractmethod
    def review(self) -> Review:
        """Score the pictures and order them."""

    @abstractmethod
    def data_name(self) -> str:
        """The data to train on with the labels."""

    def next_command(self) -> str:
        """The command that trains with the labels, on the data as the run read them."""
        run, reading = self.run, []
        if run is not None:
            reading = reading_words(run.recipe.data, self.options.data_dir or run.settings.get("data_dir"))
        return command("train", self.data_name(), *reading, "--labels", self.file)

    def show_more(self, reach: int) -> str:
        """The command that shows the first ``reach`` pictures."""
        words = self.options.words
        kept = [
            word
            for before, word in itertools.pairwise(words)
            if "--first" not in (before, word) and not word.startswith("--first=")
        ]
        # Directly after the command's name, because behind a "--" it would be no option.
        return command(words[0], "--first", str(reach), *kept)

    def lock(self) -> Any:
        """Keep other reviews from writing the file of labels.

        Raises:
            RunError: another review writes it, or it cannot be written; see :func:`check_output`.
        """
        from thumbnet.files import check_output
        from thumbnet.reviewing.session import lock_labels

        check_output(self.file, named=bool(self.options.out))
        return lock_labels(self.file)


class _Suspects(_Task):
    """The pictures of a run's data whose labels are probably wrong."""

    run: Run

    def __init__(self, options: argparse.Namespace) -> None:
        from thumbnet.files import user_path
        from thumbnet.runs.finding import is_run
        from thumbnet.runs.folder import Run
        from thumbnet.runs.weights import read_weights

        super().__init__(options)
        folder = user_path(options.place)
        try:
            self.run = Run.open(folder)
        except RunError as error:
            if is_run(folder) or not folder.is_dir():
                raise
            label = command("review", options.place, "--run", "RUN")
            raise RunError(
                f"{error}\nTo label the pictures in this folder with the help of a run: {label}"
            ) from None
        _ = self.run.summary  # refuse an incomplete run before anything is loaded
        self.title = f"Review of {folder.resolve().name}"
        self.file = user_path(options.out) if options.out else self.run.path / "labels.csv"
        self.rendering = read_weights(self.run.weights_path)[1].preprocessing.rendering

    def data_name(self) -> str:
        return str(self.options.data or self.run.settings.get("data"))

    def review(self) -> Review:
        from thumbnet.cli.console import note
        from thumbnet.cli.progress import ScoringDisplay
        from thumbnet.reviewing.scores import FOLDS, score_pictures
        from thumbnet.reviewing.session import Review, settled_pictures, suspicious_items
        from thumbnet.reviewing.suspects import find_suspects

        data = _data_of(self.run, self.options)
        for text in data.notes:
            if text.startswith("warning: "):
                note(f"thumbnet: {text}")
        self.splits = data.splits
        folds = FOLDS if self.options.folds is None else self.options.folds
        try:
            with ScoringDisplay() as display:
                scores = score_pictures(
                    self.run, data, folds=folds, device=self.options.device, progress=display
                )
        except KeyboardInterrupt:
            again = command(*self.options.words)
            note(f"\nthumbnet: the networks that are finished are kept. Continue: {again}")
            raise
        inherited = self.run.corrections or ()
        settled = settled_pictures(self.file, inherited)
        selected = suspicious_items(find_suspects(data, scores), scores, self.options.first, settled)
        return Review(selected, data.class_names, self.file, inherited=inherited)


class _Unlabelled(_Task):
    """The pictures of a folder, those first whose labels would help most."""

    def __init__(self, options: argparse.Namespace) -> None:
        from thumbnet.files import user_path
        from thumbnet.runs.data import open_run
        from thumbnet.runs.finding import is_run

        super().__init__(options)
        self.folder = user_path(options.place).resolve()
        if is_run(self.folder):
            raise ThumbnetError(
                f"{options.place} is a run: with --run, name a folder of unlabelled pictures. To review the "
                f"run's labels: {command('review', options.place)}"
            )
        if options.folds is not None or options.data is not None:
            raise ThumbnetError(
                "--folds and --data are for reviewing a run's own data: leave them out with --run"
            )
        self.title = f"Labels for {self.folder.name}"
        named = user_path(options.out) if options.out else None
        self.file = named or self.folder.with_name(f"{self.folder.name}-labels.csv")
        self.run = open_run(options.run)  # None: a file, or a run on the Hub

    def data_name(self) -> str:
        return str((self.run and self.run.settings.get("data")) or "DATA")

    def review(self) -> Review:
        from thumbnet.classifiers.load import load_classifier
        from thumbnet.cli.console import note
        from thumbnet.cli.progress import counting
        from thumbnet.reviewing.session import TRAIN, Review, renamed, settled_pictures, unlabelled_items
        from thumbnet.reviewing.unlabelled import order_unlabelled, read_unlabelled, score_unlabelled
        from thumbnet.runs.provenance import batch_size_of, recipe_of

        pictures = read_unlabelled(self.folder)
        classifier = load_classifier(self.options.run, self.options.device)
        batch_size = batch_size_of(recipe_of(self.options.run))
        with counting("classifying") as count:
            found = score_unlabelled(classifier, pictures, count, batch_size=batch_size)
        if found.skipped:
            name, reason = found.skipped[0]
            note(
                f"thumbnet: {len(found.skipped):,} picture(s) cannot be read and are skipped, such as "
                f"{printable(name)}: {reason}"
            )
        self.splits, self.rendering = {TRAIN: found.split}, classifier.info.preprocessing.rendering
        order = order_unlabelled(found.probabilities, found.features)
        folder = self.file.parent.resolve()
        # The next training needs the corrections of the run's data as well.
        inherited = renamed((self.run and self.run.corrections) or (), folder)
        settled = settled_pictures(self.file, inherited)
        selected = unlabelled_items(found, order, self.options.first, folder, settled)
        return Review(selected, classifier.class_names, self.file, inherited=inherited)


def _data_of(run: Run, options: argparse.Namespace) -> Data:
    """Load the run's data, split and corrected as for its training, calibration pictures in ``train``.

    Raises:
        RunError: the run does not name its data.
        DataError: they cannot be loaded.
    """
    from thumbnet.cli.progress import counting
    from thumbnet.runs.finding import explaining_gone
    from thumbnet.sources.load import load_data

    own = run.settings.get("data")
    if own is None and options.data is None:
        raise RunError(
            f"{run.path} was trained on data in memory: save them to disk, and name them with --data DATA"
        )
    source = options.data or own
    data_dir = options.data_dir or run.settings.get("data_dir")
    moved = explaining_gone(own if options.data is None else None, lambda: where_now(options, options.place))
    with moved, counting("downloading") as count:
        return load_data(
            source, data_dir=data_dir, settings=run.recipe.data, progress=count, labels=run.corrections
        )


def _greet(address: str, tokens: Tokens, review: Review, more: Sequence[str], no_browser: bool) -> None:
    """Print the page's address and what else there is to know, and open the page."""
    from thumbnet.cli.console import announce

    page = f"{address}/?token={tokens.printed}"
    announce(f"review at {page}   {review.decided} of {review.shown} decided   (Ctrl-C to stop)")
    for line in more:
        announce(line)
    if not no_browser and _has_display():
        import threading
        import webbrowser

        # In a thread, because a browser's start may take long.
        page = f"{address}/?token={tokens.once}"
        threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()


def _has_display() -> bool:
    """Whether a browser can open a window here. Without one, it might take over the terminal."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _outcome(review: Review, task: _Task) -> str:
    """Say what was decided, and how to go on."""
    if not review.path.is_file():
        return "nothing is decided yet"
    lines = [
        f"{review.decided} of {review.shown} decided, written to {printable(str(review.path))}",
        *_not_shown(review, task),
        f"train with these labels: {task.next_command()}",
    ]
    return "\n".join(lines)


def _not_shown(review: Review, task: _Task) -> list[str]:
    """Say how many pictures are left beyond the shown ones, if there are any."""
    if not review.remaining:
        return []
    selected = review.selection
    more = f"not shown: {review.remaining:,} more {selected.what}"
    return [f"{more}. To review them too: {task.show_more(selected.reach)}"]
