"""ONNX Runtime Web, which runs a network in a browser: two files of its package on npm.

They are part of thumbnet's wheel: ``make web-runtime`` fetches them when it is built. A source checkout
without them fetches them at the first ``thumbnet export --format web``, into the cache folder.
"""

from __future__ import annotations

import base64
import gzip
import os
import sys
import tarfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from thumbnet.errors import DataError, RunError, ThumbnetError
from thumbnet.files import cache_folder, remove_file, write_file
from thumbnet.sources.download import DownloadProgress, download

VERSION = "1.30.0"
# As the registry states it: npm view onnxruntime-web@1.30.0 dist.integrity
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
REGISTRY = "https://registry.npmjs.org"
SCRIPT, WASM = f"ort-{VERSION}.mjs", f"ort-{VERSION}.wasm.gz"
_MEMBERS = {
    "package/dist/ort.wasm.bundle.min.mjs": SCRIPT,
    "package/dist/ort-wasm-simd-threaded.wasm": WASM,
}


@dataclass(frozen=True)
class WebRuntime:
    """ONNX Runtime Web.

    Attributes:
        script: its JavaScript, a module.
        wasm: its WebAssembly, compressed by gzip.
    """

    script: str
    wasm: bytes


def packaged_folder() -> Path:
    """The folder in the package that holds the runtime in a wheel, and after ``make web-runtime``."""
    return Path(str(resources.files("thumbnet.publish"))) / "web" / "runtime"


def is_in(folder: Path) -> bool:
    """Whether ``folder`` holds the runtime."""
    return all((folder / name).is_file() for name in _MEMBERS.values())


def load_runtime(progress: DownloadProgress | None = None) -> WebRuntime:
    """Read the runtime from the package or the cache folder. Fetch it into the cache if it is in neither.

    Raises:
        DataError: it cannot be downloaded.
        RunError: it cannot be read or written.
    """
    folder = packaged_folder()
    if not is_in(folder):
        folder = cache_folder() / "onnxruntime-web"
        if not is_in(folder):
            fetch_runtime(folder, progress)
    try:
        return WebRuntime((folder / SCRIPT).read_text("utf-8"), (folder / WASM).read_bytes())
    except OSError as error:
        raise RunError(f"cannot read ONNX Runtime Web in {folder}: {error.strerror or error}") from None


def fetch_runtime(folder: Path, progress: DownloadProgress | None = None) -> None:
    """Download the package from npm's registry, verify it, and write its two files to ``folder``.

    The environment variable ``npm_config_registry`` names another registry, as it does for npm.

    Raises:
        DataError: the package cannot be downloaded.
        RunError: the files cannot be written.
    """
    registry = _setting("NPM_CONFIG_REGISTRY") or REGISTRY
    url = f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    package = folder / f"onnxruntime-web-{VERSION}.tgz"
    sha512 = base64.b64decode(INTEGRITY.removeprefix("sha512-")).hex()
    try:
        download(url, package, sha512, progress, algorithm="sha512")
    except DataError as error:
        raise DataError(
            f"{error}\nThe page contains ONNX Runtime Web {VERSION} (33 MB to download, once). If this "
            f"computer has no network, copy the folder {folder} from one that has written such a page"
        ) from None
    unpack(package, folder)
    remove_file(package)


def _setting(name: str) -> str | None:
    """An environment variable of npm, which reads its name in both cases."""
    return os.environ.get(name.lower()) or os.environ.get(name)


def unpack(package: Path, folder: Path) -> None:
    """Write the two files of a verified package to ``folder``, the WebAssembly compressed by gzip.

    Raises:
        RunError: the package is damaged, or the files cannot be written.
    """
    try:
        with tarfile.open(package, "r|gz") as tar:
            for member in tar:
                name = _MEMBERS.get(member.name)
                file = tar.extractfile(member) if name and member.isreg() else None
                if name is None or file is None:
                    continue
                content = file.read()
                write_file(folder / name, gzip.compress(content, 9, mtime=0) if name == WASM else content)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise RunError(f"cannot unpack {package}: {error}") from None
    if not is_in(folder):
        raise RunError(f"{package} is not ONNX Runtime Web: delete it, and run the same command again")


def install(folder: Path) -> None:
    """Fetch the runtime into ``folder``, unless it is there, and remove other versions.

    Raises:
        DataError, RunError: as for :func:`fetch_runtime`.
    """
    if not is_in(folder):
        fetch_runtime(folder)
    for path in folder.glob("ort-*"):
        if path.name not in _MEMBERS.values():
            remove_file(path)


if __name__ == "__main__":
    try:
        install(packaged_folder())
    except ThumbnetError as error:
        sys.exit(str(error))
