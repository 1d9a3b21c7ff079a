"""Writes locks/*.txt, which hold the hash of every file that `make` may install: make lock

uv resolves pyproject.toml within constraints.txt for all platforms at once. It asks the index for hashes and
downloads no packages, so this takes seconds. `make upgrade` renews constraints.txt first.

The index's torch for Linux needs gigabytes of CUDA. The build for the CPU comes from elsewhere, with its
hashes in locks/torch-cpu.txt. The locks accept both builds. What only the CUDA build needs is in
locks/cuda.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

from pins import CONSTRAINTS, LOCKS, ROOT, Pin, read_pins, write_pins

TOOLS = ROOT / "build" / "tools" / "bin"
OLDEST_PYTHON = "3.11"
EXTRAS = {"train": ["all"], "test": ["dev"], "serve": ["onnx", "serve"]}
# What most of the tests need. The other tools ask for newer packages than the oldest that thumbnet allows.
TEST_TOOLS = "pytest pytest-timeout pytest-xdist hypothesis httpx scikit-learn".replace(" ", "\n")
WRITTEN_BY = "Written by `make lock` from pyproject.toml and constraints.txt. Do not edit."


def compiled(
    *inputs: str, stdin: str = "", options: tuple[str, ...] = (), out: Path | None = None
) -> dict[str, Pin]:
    """Let uv resolve inputs (files, or - for ``stdin``); the versions in ``out`` are kept where they fit."""
    path = out or ROOT / "build" / "resolved.txt"
    command: list[str | Path] = [
        TOOLS / "uv",
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--output-file",
        path,
    ]
    command += ["--python-version", OLDEST_PYTHON, "--only-binary", ":all:", *options, *inputs]
    environment = dict(os.environ)
    if "PIP_CERT" in environment:
        environment.setdefault("SSL_CERT_FILE", environment["PIP_CERT"])
    try:
        subprocess.run(command, cwd=ROOT, env=environment, input=stdin, text=True, check=True)
        return read_pins(path)
    finally:
        if out is None:
            path.unlink(missing_ok=True)


def locked(name: str, *inputs: str, stdin: str = "", options: tuple[str, ...] = ()) -> dict[str, Pin]:
    """Resolve for all platforms, with hashes; ``name`` is the lock whose versions are kept where they fit."""
    every = ("--universal", "--generate-hashes", "--constraint", str(CONSTRAINTS), *options)
    return compiled(*inputs, stdin=stdin, options=every, out=LOCKS / f"{name}.txt")


def lock(torch_index: str | None) -> None:
    """Write every lock."""
    torch = read_pins(CONSTRAINTS)["torch"].version
    cpu = cpu_builds(torch, torch_index)
    only_cuda = for_cuda(torch)
    cuda = {
        name: pin for name, pin in locked("cuda", "-", stdin=f"torch=={torch}").items() if name in only_cuda
    }
    write_pins(LOCKS / "cuda.txt", f"What torch's build for CUDA needs, too. {WRITTEN_BY}", cuda)
    for name, extras in EXTRAS.items():
        options = tuple(f"--extra={extra}" for extra in extras)
        pins = locked(name, "pyproject.toml", "-", stdin="setuptools", options=options)
        pins = {one: pin for one, pin in pins.items() if one not in only_cuda}
        if "torch" in pins:
            pins["torch"].hashes = sorted({*pins["torch"].hashes, *cpu.hashes})
        if name == "serve":  # setuptools builds the wheel, and is not part of what serves
            build = {"setuptools": pins.pop("setuptools")}
            write_pins(LOCKS / "build.txt", f"What builds the wheel. {WRITTEN_BY}", build)
        extra = " and ".join(extras)
        write_pins(LOCKS / f"{name}.txt", f"What thumbnet with {extra} needs. {WRITTEN_BY}", pins)
    tools = locked("tools", options=("--group", "tools"))
    write_pins(LOCKS / "tools.txt", f"What `make lock`, `audit` and `lint-docker` run. {WRITTEN_BY}", tools)


def for_cuda(version: str) -> set[str]:
    """Names of the packages that torch needs only for CUDA: on Linux, but not on Windows."""
    names = [
        set(compiled("-", stdin=f"torch=={version}", options=(f"--python-platform={platform}",)))
        for platform in ("linux", "windows")
    ]
    return names[0] - names[1]


def cpu_builds(version: str, index: str | None) -> Pin:
    """The CPU builds of torch: those known, the one that pip would install here, and those of ``index``."""
    path = LOCKS / "torch-cpu.txt"
    known = read_pins(path).get("torch")
    pin = Pin("torch", f"{version}+cpu", "sys_platform == 'linux'")
    if known is not None and known.version == pin.version:
        pin.hashes += known.hashes
    pin.hashes += _of_pip(version)
    if index is not None:
        options = ("--no-deps", "--generate-hashes", "--index-url", index)
        pin.hashes += compiled("-", stdin=f"torch=={pin.version}", options=options)["torch"].hashes
    pin.hashes = sorted(set(pin.hashes))
    pins = {"torch": pin} if pin.hashes else {}
    write_pins(
        path, f"The build of torch for the CPU, which the usual index does not have. {WRITTEN_BY}", pins
    )
    return pin


def _of_pip(version: str) -> list[str]:
    """The hash of the file that pip would install here, if it is a CPU build from elsewhere."""
    command: list[str | Path] = [
        TOOLS / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--dry-run",
    ]
    command += [
        "--ignore-installed",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--report",
        "-",
        f"torch=={version}",
    ]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    (install,) = report["install"]
    if install["metadata"]["version"] != f"{version}+cpu":
        return []
    return [f"sha256:{install['download_info']['archive_info']['hashes']['sha256']}"]


def upgrade(torch: str | None) -> None:
    """Write the newest versions that pyproject.toml allows into constraints.txt; torch stays unless given."""
    torch = torch or read_pins(CONSTRAINTS)["torch"].version
    options = ("--extra=dev", "--upgrade", "--python-platform=linux")
    pins = compiled("pyproject.toml", "-", stdin=f"torch=={torch}\nsetuptools\n", options=options)
    only_cuda = for_cuda(torch)
    comment = (
        "Exact versions of everything that `make train` and `make test` install. `make upgrade` renews them."
    )
    write_pins(CONSTRAINTS, comment, {name: pin for name, pin in pins.items() if name not in only_cuda})


def resolve(which: str, extras: str, torch: str | None, out: Path) -> None:
    """Write the oldest or newest versions that pyproject.toml allows of what some extras need, as pins.

    The test tools are as new as these let them be; the tests that need others are skipped. torch is the
    pinned one, unless another is given.
    """
    torch = torch or read_pins(CONSTRAINTS)["torch"].version
    common = ("--python-platform=linux", *(f"--extra={extra}" for extra in extras.split(",")))
    resolution = "--resolution=lowest-direct" if which == "oldest" else "--upgrade"
    pins = compiled("pyproject.toml", "-", stdin=f"torch=={torch}", options=(*common, resolution))
    write_pins(out, f"The {which} versions that pyproject.toml allows.", pins)
    within = (*common, "--constraint", str(out))
    tools = f"torch=={torch}\nsetuptools\n{TEST_TOOLS}"
    pins = compiled("pyproject.toml", "-", stdin=tools, options=within)
    only_cuda = for_cuda(torch)
    pins = {name: pin for name, pin in pins.items() if name not in only_cuda}
    write_pins(
        out, f"The {which} versions that pyproject.toml allows, and the test tools. Written by `make`.", pins
    )


def main() -> None:
    """Write the locks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="renew constraints.txt first")
    parser.add_argument("--torch", metavar="VERSION", help="the version of torch (default: as pinned)")
    parser.add_argument("--torch-index", metavar="URL", help="also accept this index's CPU builds of torch")
    parser.add_argument(
        "--resolve", choices=["oldest", "newest"], help="write such versions to --out, and no lock"
    )
    parser.add_argument("--extras", default="all", help="with --resolve: of these, as train,formats")
    parser.add_argument("--out", type=Path, metavar="FILE", help="with --resolve: where to")
    options = parser.parse_args()
    if options.resolve:
        resolve(options.resolve, options.extras, options.torch, options.out)
        return
    if options.upgrade:
        upgrade(options.torch)
    lock(options.torch_index)


if __name__ == "__main__":
    main()
