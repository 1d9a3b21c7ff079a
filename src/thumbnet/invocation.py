"""Write commands as the user has to type them: `thumbnet`, `.venv/bin/thumbnet`, `python -m thumbnet`.

Every command in a message is built here, so that the user can paste and run it. The module also says which of
several processes this one is. Imports nothing heavy.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path  # only for type hints: it would slow `thumbnet --help` down by 10 ms

NAME = "thumbnet"


def command(*words: str | Path) -> str:
    """The command line that runs thumbnet with ``words``, quoted for the shell.

    A path that begins with a dash gets ``./`` in front, so that it is not taken for an option.

    >>> command("evaluate", "my runs/1").endswith("thumbnet evaluate 'my runs/1'")
    True
    """
    plain = [word if isinstance(word, str) else _as_word(word) for word in words]
    return " ".join([program(), *map(quoted, plain)])


def _as_word(path: Path) -> str:
    """A path as a word that argparse does not take for an option."""
    word = str(path)
    return os.path.join(".", word) if word.startswith("-") else word


def rank() -> int:
    """This process's rank under torchrun; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes torchrun has started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def program() -> str:
    """The program that starts thumbnet here, quoted for the shell.

    This is ``thumbnet`` if the shell finds this environment's script by that name, else the script's path. It
    is ``PYTHON -m thumbnet`` if thumbnet was started that way, or if there is no script.
    """
    started = sys.argv[0] if sys.argv else ""
    folder, name = os.path.split(started)
    if name == "__main__.py" and os.path.basename(folder) == NAME:
        return f"{quoted(python())} -m {NAME}"
    as_script = _stem(started) == NAME and shutil.which(started) is not None
    script = started if as_script else _script_of_environment()
    if script is None:
        return f"{quoted(python())} -m {NAME}"
    return quoted(_shortest(script))


def python() -> str:
    """The running interpreter, by the shortest name that the shell finds."""
    return _shortest(sys.executable) if sys.executable else "python"


def install_command(extra: str) -> str:
    """The command that installs an optional part of thumbnet into the running environment.

    It installs from where thumbnet itself came from: a clone, an archive, a repository, or the package index.
    """
    source = _installed_from()
    if source.startswith("-e "):
        what = ["-e", f"{source.removeprefix('-e ')}[{extra}]"]
    elif "://" in source:
        what = [f"{NAME}[{extra}] @ {source}"]
    else:
        what = [f"{source or NAME}[{extra}]"]
    if not _has_pip() and shutil.which("uv"):
        tool = ["uv", "pip", "install", "--python", python()]
    else:
        tool = [python(), "-m", "pip", "install"]
    return " ".join(map(quoted, [*tool, *what]))


def _has_pip() -> bool:
    # importlib.util.find_spec("pip") would make setuptools disable its own distutils for the rest of the
    # process. After that, setuptools cannot be imported, but torch.compile needs it.
    from importlib import metadata

    try:
        return bool(metadata.version("pip"))
    except metadata.PackageNotFoundError:
        return False


def quoted(word: str) -> str:
    r"""Quote ``word`` for the shell; control characters and undecodable bytes become ``$'\x1b'``."""
    if sys.platform == "win32":
        import subprocess

        return subprocess.list2cmdline([word])
    if word.isprintable():
        return shlex.quote(word)
    plain = [c if c.isprintable() and c not in "'\\" else _escaped(c) for c in word]
    return f"$'{''.join(plain)}'"


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _script_of_environment() -> str | None:
    """The script ``thumbnet`` in the running interpreter's folder."""
    return shutil.which(NAME, path=os.path.dirname(sys.executable)) if sys.executable else None


def _shortest(path: str) -> str:
    """The shortest way to call the program ``path``: by name if the shell finds it, else by its path.

    The path is relative to the current folder if that is shorter.
    """
    by_name = shutil.which(_stem(path))
    if by_name is not None and _same_program(by_name, path):
        return _stem(path)
    absolute = os.path.abspath(path)
    try:
        relative = os.path.relpath(absolute)
    except (OSError, ValueError):  # another drive, or the current folder is gone
        return absolute
    if os.path.dirname(relative) == "":
        relative = os.path.join(".", relative)
    return relative if len(relative) < len(absolute) else absolute


def _same_program(found: str, path: str) -> bool:
    """Whether two paths start the same program in the same environment.

    The interpreters of two environments may be links to the same file, so this compares their folders.
    """
    if _stem(found) == NAME:
        return os.path.realpath(found) == os.path.realpath(path)
    return os.path.realpath(os.path.dirname(found)) == os.path.realpath(os.path.dirname(path))


def _stem(path: str) -> str:
    """The file name without ``.exe``: ``python`` for ``bin/python`` and ``Scripts\\python.exe``.

    Other suffixes stay, as in ``python3.11``.
    """
    name = os.path.basename(path)
    return name[:-4] if name.lower().endswith(".exe") else name


def _installed_from() -> str:
    """Where thumbnet was installed from: ``-e FOLDER``, a folder or a URL.

    Empty if it came from a package index or is not installed.
    """
    import json
    from importlib import metadata

    try:
        text = metadata.distribution(NAME).read_text("direct_url.json")
        described = json.loads(text) if text else {}
        url, vcs = str(described["url"]), described.get("vcs_info")
        editable = bool(described.get("dir_info", {}).get("editable"))
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    if vcs:
        return f"{vcs.get('vcs', 'git')}+{url}@{vcs.get('commit_id', 'HEAD')}"
    if "dir_info" in described and url.startswith("file://"):
        from urllib.parse import urlsplit
        from urllib.request import url2pathname

        folder = url2pathname(urlsplit(url).path)
        return f"-e {folder}" if editable else folder
    return url
