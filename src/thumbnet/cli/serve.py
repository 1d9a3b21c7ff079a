"""``thumbnet serve``."""

from __future__ import annotations

import argparse
import math
import os
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import note_mirrored_views
from thumbnet.cli.options import add_common, add_reading_of_run, add_run, add_threads, add_tta, positive
from thumbnet.cli.run_data import known_data_of_run
from thumbnet.errors import ThumbnetError, needs_extra, printable

LARGEST_BATCH = 65_536  # what an exported model takes
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?/?")

if TYPE_CHECKING:
    from thumbnet.data.splits import Data
    from thumbnet.runs.weights_info import WeightsInfo
    from thumbnet.serving.keeping import Keeper


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="classify pictures over HTTP, with a web page to try it out",
        description="Serve a trained network: a page at /, POST /predict for programs (see /openapi.json), "
        "/model, /healthz, /readyz and /metrics. To require an API key, set THUMBNET_API_KEY or give "
        "--api-key-file. SIGHUP (kill -HUP) makes it load the network again.",
    )
    add_run(parser, or_onnx=True)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="offer this data set's hardest test pictures on the page; 'none' to disable (default: the run's "
        "own data, unless others can use the service without a key)",
    )
    add_reading_of_run(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for other devices in the network (default: 127.0.0.1)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="port to listen on; 0 for any free one (default: 8000)"
    )
    parser.add_argument(
        "--accept-host",
        type=_host_name,
        action="append",
        default=[],
        metavar="NAME",
        help="also accept requests for this host name, such as that of a proxy on this machine which passes "
        "its clients' requests on; can be repeated",
    )
    parser.add_argument(
        "--allow-origin",
        type=_origin,
        action="append",
        default=[],
        metavar="URL",
        help="let pages of this origin, such as https://shop.example, use the service (CORS); * for all "
        "origins; can be repeated (default: only the service's own page)",
    )
    parser.add_argument("--api-key-file", metavar="FILE", help="file whose first line is the API key")
    parser.add_argument(
        "--max-batch",
        type=positive,
        default=64,
        metavar="N",
        help=f"largest number of pictures per forward pass (default: 64, at most {LARGEST_BATCH})",
    )
    parser.add_argument(
        "--max-queue",
        type=positive,
        default=256,
        metavar="N",
        help="largest number of requests at a time; others are refused with 429 (default: 256)",
    )
    parser.add_argument(
        "--max-megabytes",
        type=float,
        default=10.0,
        metavar="N",
        help="largest request; larger ones are refused with 413 (default: 10)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        default=25.0,
        metavar="N",
        help="largest picture; larger ones are refused with 413 (default: 25)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time limit for a request to arrive, and again for its answer (default: 30)",
    )
    parser.add_argument(
        "--access-log",
        choices=["plain", "json", "off"],
        default="plain",
        help="how to log each request on standard error (default: plain)",
    )
    parser.add_argument(
        "--keep",
        metavar="DIR",
        help="keep pictures that the network is unsure of in this folder, to label them (default: keep none)",
    )
    parser.add_argument(
        "--keep-below",
        type=float,
        metavar="P",
        help="with --keep: pictures whose most probable class is less probable than this (default: 0.8)",
    )
    parser.add_argument(
        "--keep-at-most",
        type=positive,
        metavar="N",
        help="with --keep: keep no more while the folder has N pictures (default: 1000)",
    )
    add_tta(parser)
    add_common(parser)
    add_threads(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import announce

    with needs_extra("thumbnet serve", "serve"):
        from thumbnet.serving.access_log import AccessLog
        from thumbnet.serving.addresses import address_elsewhere
        from thumbnet.serving.network import Source, check_memory
        from thumbnet.serving.protection import accepted_hosts
        from thumbnet.serving.server import listen, serve
        from thumbnet.serving.service import ServiceSettings, build_service
    limits = (options.max_megabytes, options.max_megapixels, options.timeout)
    if not all(0 < limit < math.inf for limit in limits):  # false for NaN too
        raise ThumbnetError("--max-megabytes, --max-megapixels and --timeout must be more than 0 and finite")
    if options.max_batch > LARGEST_BATCH:
        raise ThumbnetError(f"--max-batch {options.max_batch}: expected at most {LARGEST_BATCH}")
    key = _api_key(options.api_key_file)
    keeper = _keeper(options)
    source = Source(options.run, options.device, options.threads, partial(_data_to_try, options))
    network = source.load()
    check_memory(network.classifier, options.max_batch, options.tta)
    note_mirrored_views(options)
    with listen(options.host, options.port) as listener:
        hosts = accepted_hosts(listener, options.host, options.accept_host)
        if hosts is None and options.accept_host:
            raise ThumbnetError(
                f"--accept-host has no effect with --host {options.host}, where every host name is accepted: "
                "leave it out"
            )
        settings = ServiceSettings(
            max_bytes=int(1e6 * options.max_megabytes),
            max_pixels=int(1e6 * options.max_megapixels),
            max_queue=options.max_queue,
            max_batch=options.max_batch,
            timeout=options.timeout,
            tta=options.tta,
            api_key=key,
            hosts=hosts,
            origins=tuple(options.allow_origin),
        )
        reachable = hosts is None or bool(options.accept_host)
        is_open = key is None and (reachable or "*" in options.allow_origin)
        hides_own = is_open and options.data is None and _names_own_data(options.run)
        if is_open and options.data is None:
            options.data = "none"  # also for a network that replaces this one
        log = None if options.access_log == "off" else AccessLog(_write_line, options.access_log)
        service = build_service(
            network.classifier,
            settings,
            network.load_data,
            _warn,
            identity=network.identity,
            access_log=log,
            keeper=keeper,
            source=source,
            tell=announce,
        )
        del network  # so that its memory is free once another network has replaced it
        way_on = "set THUMBNET_API_KEY to require a key"
        if is_open and reachable:
            reached = ", ".join(options.accept_host) or "this machine"
            _warn(f"anyone who can reach {reached} can use the service; {way_on}")
        elif is_open:
            _warn(f"every page that is opened on this machine can use the service; {way_on}")
        if hides_own:
            _warn(
                "the page offers none of the run's test pictures, because others would see them; "
                "to offer pictures, name their data: --data DATA"
            )

        def greet(here: str) -> None:
            _greet(here, address_elsewhere(listener))
            if keeper is not None:
                announce(_about(keeper))

        serve(service, listener, greet, service.state.reload)
    return 0


def _keeper(options: argparse.Namespace) -> Keeper | None:
    """What keeps pictures as ``--keep`` says; None without it."""
    from thumbnet.serving.keeping import AT_MOST, BELOW, Keeper

    if options.keep is None:
        if options.keep_below is not None or options.keep_at_most is not None:
            raise ThumbnetError(
                "--keep-below and --keep-at-most have no effect without --keep: name the folder, --keep DIR"
            )
        return None
    below = BELOW if options.keep_below is None else options.keep_below
    return Keeper(options.keep, below, options.keep_at_most or AT_MOST, _warn)


def _names_own_data(path: str) -> bool:
    """Whether RUN is a run's folder, and the run names the data that it was trained on."""
    from thumbnet.runs.data import open_run

    run = open_run(path)
    return run is not None and run.settings.get("data") is not None


def _about(keeper: Keeper) -> str:
    """Say which pictures are kept, where, and how many there are."""
    return (
        f"keeping pictures that the network is less than {100 * keeper.below:g} % sure of in "
        f"{printable(str(keeper.folder))}: "
        f"{keeper.count():,} of at most {keeper.at_most:,}"
    )


def _greet(here: str, elsewhere: str | None) -> None:
    """Say at which addresses the service is."""
    from thumbnet.cli.console import announce

    announce(f"serving at {here}   (Ctrl-C to stop)")
    if elsewhere is not None:
        announce(f"for other devices in this network: {elsewhere}")


def _host_name(text: str) -> str:
    """Parse a host name, for argparse."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", text):
        raise argparse.ArgumentTypeError(
            f"{text}: expected a host name such as cats.example.org, without https:// and without a port"
        )
    return text


def _origin(text: str) -> str:
    """Parse an origin, for argparse, into the form that browsers send: lower case, no default port.

    A slash at the end is dropped: people copy it from the address bar.
    """
    if text == "*":
        return text
    found = ORIGIN.fullmatch(text.lower())
    port = int(found[3]) if found and found[3] else None  # a number: browsers send 03000 as 3000
    if found is None or (port is not None and not 0 < port < 65_536):
        raise argparse.ArgumentTypeError(
            f"{text}: expected an origin such as https://shop.example or http://localhost:3000, without a "
            "path, or * for all"
        )
    scheme, host = found[1], found[2]
    default = {"http": 80, "https": 443}.get(scheme)
    return f"{scheme}://{host}" + ("" if port in (None, default) else f":{port}")


def _warn(text: str) -> None:
    from thumbnet.cli.console import note

    note(f"thumbnet: {text}")


def _write_line(text: str) -> None:
    """Write a line to standard error in one system call, so that lines do not mix.

    print would hold the lock of sys.stderr while nobody reads the other end, also when the process ends.
    """
    os.write(2, f"{text}\n".encode())


def _api_key(file: str | None) -> str | None:
    """Read the API key from a file's first line, or else from the environment; None if neither is given.

    Raises:
        ThumbnetError: the key is empty, or cannot be read or sent. An empty variable is often a secret that
            is missing, and without a key the service would be open.
    """
    if file is None:
        key, where = os.environ.get("THUMBNET_API_KEY"), "THUMBNET_API_KEY"
        without = ". To serve without a key, unset the variable"
    else:
        where, without = f"the first line of {file}", ""
        try:
            with open(file, encoding="utf-8") as lines:
                key = lines.readline()
        except (OSError, UnicodeDecodeError) as error:
            raise ThumbnetError(f"cannot read the API key in {file}: {error}") from None
    if key is None:
        return None
    key = key.strip()
    if not key:
        raise ThumbnetError(f"{where} is empty: it must hold the API key{without}")
    if not (key.isascii() and key.isprintable()):
        raise ThumbnetError(f"the API key in {where} must have only letters, digits and signs of ASCII")
    return key


def _data_to_try(options: argparse.Namespace, info: WeightsInfo) -> Data | None:
    return None if options.data == "none" else known_data_of_run(options, info)
