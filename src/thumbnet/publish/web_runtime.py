"""ONNX Runtime Web, which runs a network in a browser: two files of its package on npm.

They are part of thumbnet's wheel: ``make web-runtime`` downloads them when it is built. A source checkout
without them downloads them at the first ``thumbnet export --format web``, into the cache folder. npm is not
needed; if it is installed, the registry that it is set to use counts here too.
"""

from __future__ import annotations

import base64
import gzip
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from thumbnet.errors import DataError, RunError, ThumbnetError
from thumbnet.files import cache_folder, file_digest, remove_file, write_file
from thumbnet.sources.download import DownloadProgress, download

VERSION = "1.30.0"
# As npm states it: npm view onnxruntime-web@1.30.0 dist.integrity
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
PACKAGE = f"onnxruntime-web-{VERSION}.tgz"
REGISTRY = "https://registry.npmjs.org"
VARIABLE = "NPM_CONFIG_REGISTRY"
NPM_SECONDS = 30  # for npm to say which registry it uses
_ADDRESS = re.compile(r"https?://[\w.-]+(:\d+)?(/[\w.~%@:+/-]*)?", re.ASCII | re.IGNORECASE)
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


def cached_folder() -> Path:
    """The folder in the cache that holds the runtime of a source checkout."""
    return cache_folder() / "onnxruntime-web"


def is_in(folder: Path) -> bool:
    """Whether ``folder`` holds the runtime."""
    return all((folder / name).is_file() for name in _MEMBERS.values())


def find_runtime() -> Path | None:
    """The folder that holds the runtime: in the package, or in the cache; None if neither does."""
    folders = (packaged_folder(), cached_folder())
    return next((folder for folder in folders if is_in(folder)), None)


def load_runtime() -> WebRuntime:
    """Read the runtime from the package or the cache folder. Fetch it into the cache if it is in neither.

    Raises:
        RunError: it cannot be fetched, read or written.
    """
    folder = find_runtime()
    if folder is None:
        folder = cached_folder()
        fetch_runtime(folder)
    try:
        return WebRuntime((folder / SCRIPT).read_text("utf-8"), (folder / WASM).read_bytes())
    except OSError as error:
        raise RunError(f"cannot read ONNX Runtime Web in {folder}: {error.strerror or error}") from None


def fetch_runtime(folder: Path, progress: DownloadProgress | None = None) -> None:
    """Download the package, verify it, and write its two files to ``folder``.

    If the package is in ``folder`` already, it is verified and used: npm, or another computer, may reach a
    registry that this program does not.

    Raises:
        RunError: the package cannot be downloaded, or is not the expected one, which is removed; or the files
            cannot be written.
    """
    package = folder / PACKAGE
    try:
        if package.is_file():
            _verify(package)
        else:
            _download(package, progress)
        unpack(package, folder)
        remove_file(package)
    except RunError:
        if not is_in(folder):  # else another process has fetched it meanwhile, and removed the package
            raise


def _download(package: Path, progress: DownloadProgress | None) -> None:
    url = f"{registry()}/onnxruntime-web/-/{PACKAGE}"
    try:
        download(url, package, _digest(), progress, "sha512")
    except (DataError, UnicodeError, OverflowError) as error:  # the latter two: no host name, no port
        reason = str(error) if isinstance(error, DataError) else f"cannot download {url}: {error}"
        raise RunError(
            f"cannot fetch ONNX Runtime Web: {reason}\n"
            f"The page contains ONNX Runtime Web {VERSION} (33 MB to download, once). If this computer "
            f"gets npm packages from another address, set {VARIABLE} to it. Or get {PACKAGE} in another way, "
            f"such as `npm pack onnxruntime-web@{VERSION}`, and copy it into the folder {package.parent}"
        ) from None


def _verify(package: Path) -> None:
    """Check the digest of a package that was there, and remove it if that is wrong."""
    try:
        found = file_digest(package, "sha512")
    except OSError as error:
        raise RunError(f"cannot read {package}: {error.strerror or error}") from None
    if found != _digest():
        remove_file(package)
        raise RunError(
            f"{package} has SHA-512 {found}, expected {_digest()}: it is damaged, or not ONNX Runtime Web "
            f"{VERSION}. It was deleted; run the same command again"
        )


def _digest() -> str:
    """``INTEGRITY`` in hexadecimal."""
    return base64.b64decode(INTEGRITY.removeprefix("sha512-")).hex()


def registry() -> str:
    """The address of the npm registry, without a slash at the end.

    It is the value of ``NPM_CONFIG_REGISTRY``, which may be in lower case as for npm; else what npm is set to
    use, if it is installed; else the public registry. npm's passwords for private registries are not used.

    Raises:
        RunError: it is not an address of the web.
    """
    named = [value for name, value in os.environ.items() if name.upper() == VARIABLE and value]
    where, address = f"the environment variable {VARIABLE}", named[0] if named else None
    if address is None:
        where, address = "what `npm config get registry` prints", _registry_of_npm()
    if address is None:
        return REGISTRY
    if not _ADDRESS.fullmatch(address):  # which may hold a password: do not print it
        raise RunError(
            f"cannot fetch ONNX Runtime Web: {where} is not an address such as {REGISTRY}, without a password"
        )
    return address.rstrip("/")


def _registry_of_npm() -> str | None:
    """The registry that npm is set to use; None if npm is not installed, or does not say."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    try:
        asked = subprocess.run(
            [npm, "config", "get", "registry"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=NPM_SECONDS,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None


def unpack(package: Path, folder: Path) -> None:
    """Write the two files of a verified package to ``folder``, the WebAssembly compressed by gzip.

    Raises:
        RunError: the package is damaged, or the files cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
        raise RunError(f"{package} does not contain ONNX Runtime Web")


def install(folder: Path) -> None:
    """Fetch the runtime into ``folder``, unless it is there, and remove other versions.

    Raises:
        RunError: as for :func:`fetch_runtime`.
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
