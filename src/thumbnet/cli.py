"""The command ``thumbnet``: parse, call, show. What it shows is in console.py and views.py.

Heavy modules are imported by the commands that need them, so that ``thumbnet --help`` answers at once.
Exit status: 0 done; 1 some pictures could not be read, or another process of the training was lost; 2 the
user has something to mend; 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from thumbnet import __version__
from thumbnet.errors import MissingExtraError, ThumbnetError

if TYPE_CHECKING:
    from thumbnet.data.images import Fit
    from thumbnet.data.splits import Data
    from thumbnet.recipe import DataSettings
    from thumbnet.runs import Run
    from thumbnet.training.listener import StoppableListener

DATA_HELP = "digits, cifar10, cifar100, a folder, an archive (.tar, .tar.gz, .tar.xz, .zip), or hf:OWNER/NAME"

_TRAIN_MODULES = ("torch", "safetensors", "psutil", "filelock")  # what the extra `train` brings
PREDICT_BATCH = 256  # pictures classified, and shown, at a time


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (the process' own by default); the exit status."""
    options = build_parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a picture, its error says
    try:
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except ModuleNotFoundError as error:
        if error.name not in _TRAIN_MODULES:
            raise
        print(f"thumbnet: {MissingExtraError('this command', 'train')}", file=sys.stderr)
        return 2
    except ThumbnetError as error:
        if _rank() == 0:
            print(f"thumbnet: {error}", file=sys.stderr)
        elif error.exit_status < 128:  # that it was stopped, the first process says for all
            print(f"thumbnet (process {_rank()}): {error}", file=sys.stderr)
        return error.exit_status
    except _Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print("\nthumbnet: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `thumbnet predict ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as shells have it


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``command`` to a function of the parsed options."""
    parser = argparse.ArgumentParser(
        prog="thumbnet",
        description="Train classifiers of small pictures from scratch, on the computer that you have.",
        epilog="Begin with: thumbnet train digits",
    )
    parser.add_argument("--version", action="version", version=f"thumbnet {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_train, _add_evaluate, _add_predict, _add_compare, _add_report, _add_export, _add_push,
        _add_serve, _add_data, _add_recipes, _add_lr_find, _add_completion,
    ):  # fmt: skip
        add(commands)
    return parser


def _add_train(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network and leave a run's folder",
        description="Train a network on DATA, or go on with a run that was stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent("""\
            examples:
              thumbnet train digits
              thumbnet train pictures/ --epochs 20 --val-fraction 0.1
              thumbnet train cifar10 --recipe resnet18 --set optimizer.lr=0.05
              thumbnet train --resume runs/2026-11-23-cifar10-resnet18-1"""),
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--resume", metavar="RUN", help="go on with this run, to the very same result")
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default: a new name under runs/)")
    parser.add_argument(
        "--auto-resume", action="store_true",
        help="go on with --out if that run was begun: for schedulers that start the same command again",
    )  # fmt: skip
    parser.add_argument("--init", metavar="RUN", help="begin from this run's weights (or hf:OWNER/NAME)")
    parser.add_argument(
        "--micro-batch", type=int, metavar="N", help="go through a batch N pictures at a time"
    )
    parser.add_argument("--on-nonfinite", choices=["stop", "skip"], help="for a loss that is not finite")
    parser.add_argument("--checkpoint-steps", type=int, metavar="N", help="a checkpoint each N steps, too")
    parser.add_argument(
        "--checkpoint-minutes", type=float, metavar="M", help="and each M minutes (default: 10)"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write events for TensorBoard, too")
    parser.add_argument("--quiet", action="store_true", help="no progress; at the end the run's folder")
    parser.add_argument("--json", action="store_true", help="at the end, the outcome as JSON")
    _add_recipe_options(parser)
    _add_common(parser)
    parser.set_defaults(command=_train)


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure a run on a data set",
        description="Measure RUN on DATA (by default its own): accuracy, classes, confusion, calibration.",
    )
    _add_run(parser, or_onnx=True)
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA_HELP + " (default: the run's own)")
    parser.add_argument("--split", help="train, val or test (default: test, or else val)")
    _add_tta(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", metavar="FILE", help="draw the confusion matrix (.png, .svg, .pdf)")
    _add_on_bad_image(parser, "as the run was trained")
    _add_common(parser)
    parser.set_defaults(command=_evaluate)


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="classify pictures",
        description="Classify pictures with RUN. Exit status 1 if some could not be read.",
    )
    _add_run(parser, or_onnx=True)
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="files, folders, globs, or - for one picture on stdin"
    )
    parser.add_argument("--top", type=_positive, default=3, metavar="K", help="classes shown (default: 3)")
    _add_tta(parser)
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="a JSON object a line")
    shape.add_argument("--csv", action="store_true", help="comma-separated, with a header")
    _add_device(parser)
    parser.set_defaults(command=_predict)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="put runs side by side",
        description="Put complete runs side by side. Those that differ in the seed alone are taken together: "
        "mean, standard deviation, and a test (Welch's) of the difference from the first ones.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders")
    parser.add_argument("--plot", metavar="FILE", help="draw their learning curves (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=_compare)


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="all of a run on one page, with pictures",
        description="Write an HTML page that needs nothing beside it: curves, confusion with the pictures "
        "behind it, classes, calibration, mistakes, doubtful labels, where the network looks, data, recipe.",
    )
    parser.add_argument("run", metavar="RUN", help="a complete run's folder")
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA_HELP + " (default: the run's own)")
    parser.add_argument("--split", help="train, val or test (default: test, or else val)")
    parser.add_argument("--out", metavar="FILE", help="(default: report.html in RUN)")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    _add_data_dir(parser)
    parser.set_defaults(command=_report)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a run's network for somewhere else, and check it",
        description="Write RUN's network in another format, and check it against RUN on real pictures.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent("""\
            formats:
              onnx          for onnxruntime and others; normalisation in the graph, any batch
              onnx-int8     the same in 8 bits, calibrated with training pictures
              torch-export  a .pt2 for torch.export.load
              safetensors   the weights and their description

            example:
              thumbnet export RUN --format onnx --out cats.onnx
              thumbnet predict cats.onnx new/*.jpg"""),
    )
    _add_run(parser)
    parser.add_argument(
        "--format", choices=["onnx", "onnx-int8", "torch-export", "safetensors"], default="onnx",
        help="(default: onnx)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="(default: model.onnx, model.int8.onnx, ... in RUN)")
    parser.add_argument(
        "--data", metavar="DATA", help="to calibrate and to check with (default: the run's own)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_data_dir(parser)
    parser.set_defaults(command=_export)


def _add_push(commands: Any) -> None:
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
    parser.set_defaults(command=_push)


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="classify pictures over HTTP, with a page to try it",
        description="Serve a trained network: a page at /, POST /predict for programs (see /openapi.json), "
        "/healthz, /readyz and /metrics. An API key comes from the environment's THUMBNET_API_KEY, or from "
        "a file.",
    )
    _add_run(parser, or_onnx=True)
    parser.add_argument("--data", metavar="DATA", help="its test pictures are tried on the page "
                        "(default: the run's own); none for none")  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (default: 8000)")
    parser.add_argument("--api-key-file", metavar="FILE", help="whose first line every request must show")
    parser.add_argument("--max-batch", type=_positive, default=64, metavar="N",
                        help="pictures that share a forward pass (default: 64)")  # fmt: skip
    parser.add_argument("--max-queue", type=_positive, default=256, metavar="N",
                        help="requests at a time; more are refused with 429 (default: 256)")  # fmt: skip
    parser.add_argument("--max-megabytes", type=float, default=10.0, metavar="N",
                        help="of a request; more is refused with 413 (default: 10)")  # fmt: skip
    parser.add_argument("--max-megapixels", type=float, default=25.0, metavar="N",
                        help="of a picture; more is refused with 413 (default: 25)")  # fmt: skip
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS",
                        help="for a request to come, and again for its answer (default: 30)")  # fmt: skip
    _add_tta(parser)
    _add_common(parser)
    parser.set_defaults(command=_serve)


def _add_data(commands: Any) -> None:
    parser = commands.add_parser(
        "data",
        help="show what is in a data set",
        description="Read all of DATA and show layout, classes, sizes, unreadable files, duplicates.",
    )
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--plot", metavar="FILE", help="draw sample pictures of each class (.png, .svg, .pdf)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _add_data_options(parser)
    _add_data_dir(parser)
    parser.set_defaults(command=_data)


def _add_recipes(commands: Any) -> None:
    parser = commands.add_parser("recipes", help="list recipes, or show one")
    inner = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.set_defaults(command=_recipes_list)
    listing = inner.add_parser("list", help="the recipes that come with thumbnet")
    listing.set_defaults(command=_recipes_list)
    show = inner.add_parser("show", help="print a recipe, every setting resolved")
    show.add_argument("recipe", metavar="NAME", help="a recipe's name or a TOML file")
    show.add_argument("--plot", metavar="FILE", help="draw its learning rate over the epochs")
    _add_overrides(show)
    show.set_defaults(command=_recipes_show)


def _add_lr_find(commands: Any) -> None:
    parser = commands.add_parser(
        "lr-find",
        help="find a learning rate",
        description="A learning-rate range test on DATA: train for some steps at rising rates.",
    )
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--plot", metavar="FILE", help="draw loss against rate (.png, .svg, .pdf)")
    parser.add_argument("--steps", type=_positive, default=100, help="training steps (default: 100)")
    parser.add_argument("--from", dest="lowest", type=float, default=1e-4, metavar="LR", help="default: 1e-4")
    parser.add_argument("--to", dest="highest", type=float, default=100.0, metavar="LR", help="default: 100")
    _add_recipe_options(parser)
    _add_common(parser)
    parser.set_defaults(command=_lr_find)


def _add_completion(commands: Any) -> None:
    parser = commands.add_parser(
        "completion",
        help="a script by which a shell completes commands and options",
        description="Print a script for your shell, as: thumbnet completion bash "
        "> ~/.local/share/bash-completion/completions/thumbnet",
    )
    parser.add_argument("shell", metavar="SHELL", choices=["bash", "zsh", "tcsh"], help="bash, zsh or tcsh")
    parser.set_defaults(command=_completion)


def _add_recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="a name or a TOML file (default: small or fast, by the data)",
    )
    parser.add_argument("--epochs", type=int, help="as --set training.epochs=N; the schedule scales")
    parser.add_argument("--batch-size", type=int, help="as --set training.batch_size=N")
    parser.add_argument("--seed", type=int, help="as --set seed=N")
    _add_data_options(parser)
    _add_on_bad_image(parser)
    _add_overrides(parser)


def _add_on_bad_image(parser: argparse.ArgumentParser, default: str = "stop") -> None:
    parser.add_argument(
        "--on-bad-image", choices=["stop", "skip"],
        help=f"for pictures that cannot be read (default: {default})",
    )  # fmt: skip


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-size", metavar="SIZE", help="32, or HEIGHTxWIDTH as 32x64, in pixels")
    parser.add_argument("--fit", choices=["pad", "crop", "squash"], help="for other shapes (default: pad)")
    parser.add_argument("--val-fraction", type=float, metavar="F", help="part of train to set aside as val")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
        help="override a recipe's setting, as optimizer.lr=0.05; may be repeated",
    )  # fmt: skip


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_device(parser)
    _add_data_dir(parser)


def _add_run(parser: argparse.ArgumentParser, or_onnx: bool = False) -> None:
    known = "a run's folder, a model.safetensors" + (", a MODEL.onnx, or hf:OWNER/NAME" if or_onnx else "")
    parser.add_argument("run", metavar="RUN", help=known)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help="where downloads are kept")


def _add_tta(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tta", nargs="?", const="mirror-shift", default="none",
        choices=["none", "mirror", "mirror-shift", "adaptive"],
        help="test-time augmentation: the mean over mirrored (and shifted) views (adaptive: where unsure)",
    )  # fmt: skip


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


# --- train ---------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    if (options.data is None) == (options.resume is None):
        raise ThumbnetError("name either DATA or --resume RUN, as in: thumbnet train digits")
    if options.resume is not None:
        given = [flag for flag in ("recipe", "out", *_SHORTCUTS) if getattr(options, flag, None)]
        given += ["auto_resume"] if options.auto_resume else []
        if given or options.overrides:
            raise ThumbnetError(
                "--resume takes the run's own recipe and data: leave out "
                + ", ".join(f"--{flag.replace('_', '-')}" for flag in given or ["set"])
            )

    from thumbnet.console import TrainingDisplay, say
    from thumbnet.training.listener import Listener, Listeners, StoppableListener
    from thumbnet.training.train import resume, train
    from thumbnet.views import show_summary

    first = _rank() == 0  # of several processes only the first shows anything
    shown = TrainingDisplay() if first and not options.quiet else nullcontext(StoppableListener())
    with shown as display, ExitStack() as stack, _stopping(display):
        listener: Listener = display
        if options.tensorboard and first:
            from thumbnet.training.tensorboard import TensorBoardWriter

            listener = Listeners(display, stack.enter_context(TensorBoardWriter()))
        if options.resume is not None:
            run = resume(options.resume, device=options.device, listener=listener)
        else:
            run = train(
                options.data,
                options.recipe,
                overrides=_overrides(options),
                out=options.out,
                device=options.device,
                data_dir=options.data_dir,
                listener=listener,
                auto_resume=options.auto_resume,
            )
    if not first:
        return 0
    if options.json:
        say(json.dumps({"run": str(run.path), **run.summary}))
    elif options.quiet:
        say(str(run.path))
    else:
        show_summary(run)
    return 0


def _rank() -> int:
    """Which of the processes that torchrun started this is; 0 without it."""
    return int(os.environ.get("RANK", "0"))


_SHORTCUTS = {
    "init": "training.init",
    "micro_batch": "training.micro_batch",
    "on_nonfinite": "training.on_nonfinite",
    "checkpoint_steps": "checkpoint.steps",
    "checkpoint_minutes": "checkpoint.minutes",
    "on_bad_image": "data.on_bad_image",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "seed": "seed",
    "image_size": "data.image_size",
    "fit": "data.fit",
    "val_fraction": "data.val_fraction",
}


def _overrides(options: argparse.Namespace) -> list[str]:
    """The settings that the options change; shortcuts such as --epochs come before --set."""
    shortcuts = []
    for option, key in _SHORTCUTS.items():
        value = getattr(options, option, None)
        if value is not None:
            shortcuts.append(f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}")
    return [*shortcuts, *options.overrides]


class _Terminated(BaseException):
    """SIGTERM, where nothing is to be saved."""


@contextmanager
def _stopping(listener: StoppableListener) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM of a training asks it to stop after the step; a second ends it at once.

    Ends it with 128 + the signal's number, as shells have it and schedulers understand it.
    """
    received = []

    def handle(signum: int, frame: object) -> None:
        from thumbnet.console import note

        received.append(signum)
        if not listener.started or listener.stop_requested:
            raise KeyboardInterrupt if signum == signal.SIGINT else _Terminated
        listener.stop_requested = True
        again = "Ctrl-C again to stop at once" if signum == signal.SIGINT else "SIGTERM received"
        note(f"\nstopping after this step, and saving; {again}")

    from thumbnet.runs import InterruptedRunError

    before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except InterruptedRunError as error:
        error.exit_status = 128 + (received[0] if received else signal.SIGINT)
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# --- evaluate, predict ---------------------------------------------------------------------------------


def _evaluate(options: argparse.Namespace) -> int:
    from thumbnet.classifier import load_classifier
    from thumbnet.console import counting, note, say
    from thumbnet.views import show_evaluation

    target = None
    if options.plot:
        from thumbnet import plots

        target = plots.check_plot_path(options.plot)
    predictor = load_classifier(options.run, options.device)
    settings = _data_settings_of_run(options)
    data = _data_of_run(options, settings)
    split = options.split or ("test" if "test" in data.splits else "val")
    on_bad_image = options.on_bad_image or settings.on_bad_image
    with counting("decoding") as count:
        result = predictor.evaluate(data, split, tta=options.tta, on_bad_image=on_bad_image, on_decode=count)
    left_out = len(data.splits[split]) - result.pictures
    if left_out:
        note(f"thumbnet: {left_out} picture(s) cannot be read and were left out; thumbnet data lists them")
    if target:
        title = f"{data.source}, {split}: accuracy {100 * result.accuracy:.2f} %"
        plots.save(plots.confusion_figure(result, title), target)
    if options.json:
        described = {"data": data.source, "split": split, "tta": options.tta, **result.to_dict()}
        say(json.dumps(described, ensure_ascii=False))
    else:
        show_evaluation(result, f"{data.source}, {split}", options.tta)
    if target and not options.json:
        say(f"drawn: {target}")
    return 0


def _run_of(options: argparse.Namespace) -> Run | None:
    """The run that was named; None where it is a file of weights alone."""
    from pathlib import Path

    folder = Path(options.run).expanduser()
    if not folder.is_dir():
        return None
    from thumbnet.runs import Run

    return Run.open(folder)


def _data_settings_of_run(options: argparse.Namespace) -> DataSettings:
    from thumbnet.recipe import DataSettings

    run = _run_of(options)
    return DataSettings() if run is None else run.recipe.data


def _data_of_run(options: argparse.Namespace, settings: DataSettings) -> Data:
    """The data that were named, or the run's own; split as the run split them."""
    from thumbnet.data.sources import load_data
    from thumbnet.errors import RunError

    source, data_dir, run = options.data, options.data_dir, _run_of(options)
    if run is not None and source is None:
        source = run.settings.get("data")
        data_dir = data_dir or run.settings.get("data_dir")
    if source is None:
        raise RunError(f"name the data: {options.run} is a file alone, which does not say where they are")
    return load_data(
        source,
        data_dir=data_dir,
        val_fraction=settings.val_fraction if options.data is None else 0.0,
        test_fraction=settings.test_fraction,
        split_seed=settings.split_seed,
    )


def _predict(options: argparse.Namespace) -> int:
    import numpy as np

    from thumbnet.classifier import load_classifier
    from thumbnet.data.images import open_image
    from thumbnet.errors import UnreadableImageError
    from thumbnet.views import prediction_printer

    predictor = load_classifier(options.run, options.device)
    shape: Literal["json", "csv", "table"] = "json" if options.json else "csv" if options.csv else "table"
    show = prediction_printer(shape, min(options.top, len(predictor.class_names)))
    failures = 0
    pending: list[tuple[str, np.ndarray | str]] = []  # pictures, or the reason why there is none

    def flush() -> None:
        good = [pixels for _, pixels in pending if not isinstance(pixels, str)]
        results = iter(predictor.predict_pixels(np.stack(good), tta=options.tta) if good else [])
        show([(name, found if isinstance(found, str) else next(results)) for name, found in pending])
        pending.clear()

    for name in _expand(options.paths):
        try:
            source = sys.stdin.buffer.read() if name == "-" else name
            image = open_image(source, "stdin" if name == "-" else name)
            pending.append((name, predictor.info.preprocessing.pixels(image)))
        except UnreadableImageError as error:
            failures += 1
            pending.append((name, error.reason))
        if len(pending) == PREDICT_BATCH:
            flush()
    flush()
    if failures:
        print(f"thumbnet: {failures} picture(s) could not be read", file=sys.stderr)
    return 1 if failures else 0


def _expand(paths: Sequence[str]) -> Iterator[str]:
    """Files as they are, folders by their pictures, globs by what they match."""
    import glob

    from thumbnet.data.folders import pictures_below

    for path in paths:
        if path == "-" or os.path.isfile(path):
            yield path
        elif os.path.isdir(path):
            found = sorted(pictures_below(path))
            if not found:
                raise ThumbnetError(f"there are no pictures in the folder {path}")
            yield from found
        elif glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise ThumbnetError(f"no file matches {path}")
            yield from _expand(matches)
        else:
            yield path  # reported as unreadable, in its place


# --- report, export, push ------------------------------------------------------------------------------


def _report(options: argparse.Namespace) -> int:
    from pathlib import Path

    from thumbnet.console import counting, say
    from thumbnet.errors import DataError
    from thumbnet.report import write_report
    from thumbnet.runs import Run

    run = Run.open(options.run)
    _ = run.summary  # a run that is not complete is refused before its data are looked for
    data = _data_of_run(options, run.recipe.data)
    split = options.split or ("test" if "test" in data.splits else "val")
    if split not in data.splits:
        raise DataError(f"{data.source} has no split {split!r}, only {', '.join(data.splits)}")
    out = Path(options.out).expanduser() if options.out else run.path / "report.html"
    with counting("looking") as count:
        write_report(run, data, split, out, count=count)
    say(f"written: {out}  ({out.stat().st_size / 1e6:.2f} MB)")
    if options.open:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())
    return 0


def _export(options: argparse.Namespace) -> int:
    from dataclasses import asdict
    from pathlib import Path

    from thumbnet.console import counting, percent, say
    from thumbnet.errors import RunError
    from thumbnet.export import SUFFIXES, TOLERANCE, check_export, export

    suffix = SUFFIXES[options.format]
    place = Path(options.run).expanduser()
    beside = place if place.is_dir() else place.parent
    out = Path(options.out).expanduser() if options.out else beside / f"model{suffix}"
    if out.suffix != Path(f"model{suffix}").suffix:
        raise ThumbnetError(f"--out {out}: the name of this format ends in {suffix}")
    if out.name == "model.safetensors" and beside == out.parent:
        raise ThumbnetError(f"{out} is the run's own: name another file, --out FILE")
    data = _data_of_run(options, _data_settings_of_run(options))
    split = next((name for name in ("test", "val", "train") if name in data.splits), "test")
    with counting("calibrating") as count:
        export(options.run, options.format, out, data, count=count)
    with counting("checking") as count:
        check = check_export(options.run, out, data, split, count=count)
    size = out.stat().st_size
    if options.json:
        described = {
            "path": str(out),
            "format": options.format,
            "bytes": size,
            "split": split,
            **asdict(check),
        }
        say(json.dumps(described))
    else:
        say(f"written: {out}  ({size / 1e6:.2f} MB)")
        say(f"checked against the run in float32 on {check.pictures:,} pictures of {data.source}, {split}")
        say(f"largest difference  {check.largest_difference:.2g}  (of a probability)")
        say(f"same class          {percent(check.same_class)}")
        both = f"{percent(check.accuracy_run)} the run, {percent(check.accuracy_export)} the export"
        say(f"accuracy            {both}")
    if options.format != "onnx-int8" and check.largest_difference > TOLERANCE:
        raise RunError(f"{out} does not compute what the run does: do not use it")
    return 0


def _push(options: argparse.Namespace) -> int:
    from thumbnet.console import say
    from thumbnet.model_hub import model_card, push
    from thumbnet.runs import Run

    run, name = Run.open(options.run), options.repository.removeprefix("hf:")
    if options.card:
        say(model_card(run, name, options.license))
    else:
        say(f"published: {push(run, name, private=options.private, licence=options.license)}")
    return 0


# --- serve ---------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    from thumbnet.classifier import load_classifier
    from thumbnet.errors import MissingExtraError

    try:
        from thumbnet.serving.server import listen, serve
        from thumbnet.serving.service import ServiceSettings, build_service
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("thumbnet"):
            raise
        raise MissingExtraError("a service", "serve") from None
    if min(options.max_megabytes, options.max_megapixels, options.timeout) <= 0:
        raise ThumbnetError("--max-megabytes, --max-megapixels and --timeout must be more than 0")
    key = _api_key(options.api_key_file)
    classifier = load_classifier(options.run, options.device)
    with listen(options.host, options.port) as listener:
        loopback = listener.getsockname()[0] in ("127.0.0.1", "::1")
        settings = ServiceSettings(
            max_bytes=int(1e6 * options.max_megabytes),
            max_pixels=int(1e6 * options.max_megapixels),
            max_queue=options.max_queue,
            max_batch=options.max_batch,
            timeout=options.timeout,
            tta=options.tta,
            api_key=key,
            hosts=("localhost", "127.0.0.1", "::1", "[::1]", options.host) if loopback else None,
        )
        service = build_service(classifier, settings, lambda: _data_to_try(options))
        serve(service, listener, open_to_all=not loopback and key is None)
    return 0


def _api_key(file: str | None) -> str | None:
    if file is None:
        return os.environ.get("THUMBNET_API_KEY") or None
    try:
        with open(file, encoding="utf-8") as lines:
            key = lines.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ThumbnetError(f"cannot read the API key in {file}: {error}") from None
    if not key:
        raise ThumbnetError(f"the first line of {file} is empty: an API key is expected there")
    return key


def _data_to_try(options: argparse.Namespace) -> Data | None:
    if options.data == "none" or (options.data is None and _run_of(options) is None):
        return None
    return _data_of_run(options, _data_settings_of_run(options))


# --- compare -------------------------------------------------------------------------------------------


def _compare(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from thumbnet import plots
    from thumbnet.comparison import group_runs, welch_test
    from thumbnet.console import note, say
    from thumbnet.runs import Run
    from thumbnet.views import show_comparison

    target = plots.check_plot_path(options.plot) if options.plot else None
    groups = group_runs([Run.open(path) for path in options.runs])
    differences = None
    try:
        differences = [test for group in groups[1:] if (test := welch_test(groups[0], group)) is not None]
    except MissingExtraError as error:
        note(f"thumbnet: {error}")
    if target:
        plots.save(plots.curves_figure(groups), target)
    if options.json:
        described = [
            {
                "name": group.name, "runs": [str(run.path) for run in group.runs],
                "accuracies": group.accuracies, "mean": group.mean, "deviation": group.deviation,
            }
            for group in groups
        ]  # fmt: skip
        say(json.dumps({"groups": described, "differences": [asdict(one) for one in differences or []]}))
        return 0
    show_comparison(groups, differences)
    if target:
        say(f"drawn: {target}")
    return 0


# --- data, recipes, lr-find ----------------------------------------------------------------------------


def _data(options: argparse.Namespace) -> int:
    from thumbnet import plots
    from thumbnet.console import counting, say
    from thumbnet.data.inspection import inspect_data, sample_grid
    from thumbnet.data.sources import load_data
    from thumbnet.recipe import parse_image_size
    from thumbnet.views import show_inspection

    target = plots.check_plot_path(options.plot) if options.plot else None
    size = parse_image_size(options.image_size) if options.image_size else None
    fit: Fit = options.fit or "pad"
    with counting("downloading") as count:
        data = load_data(
            options.data,
            data_dir=options.data_dir,
            val_fraction=options.val_fraction or 0.0,
            progress=count,
        )
    with counting("reading") as count:
        found = inspect_data(data, size, fit, count)
    if target:
        shape = f"{found.image_size[0]}x{found.image_size[1]}"
        grid = sample_grid(data, "train", 10, found.image_size, fit)
        plots.save(plots.grid_figure(grid, f"{data.source}, train, as the network sees it ({shape})"), target)
    if options.json:
        from dataclasses import asdict

        described = {"source": data.source, "layout": data.layout, "notes": data.notes, **asdict(found)}
        say(json.dumps(described, ensure_ascii=False))
        return 0
    show_inspection(data, found, fit)
    if target:
        say(f"drawn: {target}")
    return 0


def _recipes_list(options: argparse.Namespace) -> int:
    from thumbnet.console import say, table
    from thumbnet.recipe import load_recipe, recipe_names

    recipes = [load_recipe(name) for name in recipe_names()]
    say(table(["recipe", "what it is"], [[r.name, r.description] for r in recipes], left=2))
    say("\nthumbnet recipes show NAME prints one, to begin a file of your own from.")
    return 0


def _recipes_show(options: argparse.Namespace) -> int:
    from thumbnet.console import note, say
    from thumbnet.recipe import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    if options.plot:
        from thumbnet import plots

        target = plots.check_plot_path(options.plot)
        plots.save(plots.schedule_figure(recipe), target)
        note(f"drawn: {target}")
    say(recipe.to_toml().rstrip())
    return 0


def _lr_find(options: argparse.Namespace) -> int:
    if not 0 < options.lowest < options.highest:
        raise ThumbnetError("--from and --to: expected 0 < FROM < TO")
    from dataclasses import replace

    from thumbnet import plots
    from thumbnet.console import counting, say
    from thumbnet.data.prepare import prepare
    from thumbnet.hardware import choose_device
    from thumbnet.training.listener import Listener
    from thumbnet.training.lr_find import learning_rate_range_test
    from thumbnet.training.train import build_state, choose_recipe

    target = plots.check_plot_path(options.plot) if options.plot else None
    device = choose_device(options.device)
    recipe, data = choose_recipe(
        options.data, options.recipe, _overrides(options), options.data_dir, Listener()
    )
    data = replace(data, splits={"train": data.splits["train"]})  # nothing else is looked at
    with counting("decoding") as count:
        prepared = prepare(data, recipe, device, count)
    state = build_state(recipe, prepared, data.class_names, device)
    with counting("steps") as count:
        test = learning_rate_range_test(
            state, prepared.train, lowest=options.lowest, highest=options.highest, steps=options.steps,
            progress=count,
        )  # fmt: skip
    say(f"loss falls fastest at {test.suggestion:.3g}, is least at {test.least:.3g}")
    say(f"suggestion: --set optimizer.lr={test.suggestion:.2g}  (the recipe has {recipe.optimizer.lr:g})")
    if target:
        plots.save(plots.range_test_figure(test), target)
        say(f"drawn: {target}")
    return 0


# --- completion ----------------------------------------------------------------------------------------

_FILES = frozenset({"DATA", "RUN", "PATH", "FILE", "DIR"})  # metavars of what a shell completes by itself


def _completion(options: argparse.Namespace) -> int:
    from thumbnet.console import say
    from thumbnet.errors import MissingExtraError

    try:
        import shtab
    except ImportError:
        raise MissingExtraError("a script for your shell", "completion") from None
    parser = build_parser()
    for each in _with_subparsers(parser):
        for action in each._actions:
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    say(shtab.complete(parser, options.shell))
    return 0


def _with_subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from _with_subparsers(each)
