"""Lists the licences of what thumbnet installs, and refuses those that are not allowed: make licences

Reads the metadata of the packages installed in .venv and writes docs/licences.md. The page names no
versions, so it changes only when a package is added, removed or relicensed.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys

from pins import LOCKS, ROOT, normalised, read_pins

PAGE = ROOT / "docs" / "licences.md"
# These let anyone use, change and sell what contains the package. MPL-2.0 asks for changes of its own files.
ALLOWED = {
    *(
        "0BSD",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BSL-1.0",
    ),
    *("CC0-1.0", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python Software Foundation License", "Zlib"),
}
# What older metadata says, as it is in SPDX. "BSD" says only which family it is.
SPDX = {
    **{"MIT License": "MIT", "Apache 2.0": "Apache-2.0", "Apache Software License": "Apache-2.0"},
    **{"BSD License": "BSD", "BSD 3-Clause License": "BSD-3-Clause", "3-Clause BSD License": "BSD-3-Clause"},
}
HEAD = """# Licences

thumbnet itself is under the MIT licence. This page lists the packages that `thumbnet[all]` installs.
Those marked "serve, onnx" are also in the [container](serving.md#in-a-container). `make licences` writes
the page from the packages' metadata, and fails if a licence is not among those that `tools/licences.py`
allows.

Some wheels contain libraries under licences of their own, such as GCC's runtime in NumPy's and SciPy's
(GPL with an exception for such use). Each wheel brings their texts. torch's build for CUDA also installs
NVIDIA's libraries, which are proprietary and come under NVIDIA's terms; the build for the CPU does not.

| package | licence | needed by |
| --- | --- | --- |
"""


def licence(package: str) -> str:
    """The licence of an installed package: an SPDX expression, or else what its metadata says.

    Raises:
        PackageNotFoundError: the package is not installed.
    """
    metadata = importlib.metadata.metadata(package)

    def texts(field: str) -> list[str]:
        return metadata.get_all(field) or []

    if expressions := texts("License-Expression"):
        return expressions[0]
    of_classifiers = [text.rpartition(" :: ")[2] for text in texts("Classifier") if "License ::" in text]
    free_text = "".join(texts("License")).partition("\n")[0]  # some packages put the whole licence here
    found = [SPDX.get(text, text) for text in (free_text, " AND ".join(of_classifiers)) if text]
    return next(filter(is_allowed, found), " or ".join(found) or "unknown")


def is_allowed(expression: str) -> bool:
    """Whether every licence of an expression is allowed, or one of each choice."""
    parts = re.sub(r"[()]", "", expression).split(" AND ")
    return all(any(one.strip() in ALLOWED for one in part.split(" OR ")) for part in parts)


def installed_licences() -> dict[str, str]:
    """The licences of what locks/train.txt installs on this platform, by name.

    Raises:
        PackageNotFoundError: a package is not installed.
    """
    from packaging.markers import Marker

    pins = read_pins(LOCKS / "train.txt").values()
    return {pin.name: licence(pin.name) for pin in pins if not pin.marker or Marker(pin.marker).evaluate()}


def page(licences: dict[str, str]) -> str:
    """The text of docs/licences.md."""
    served = read_pins(LOCKS / "serve.txt")
    rows = [
        f"| {name} | {licences[name]} | {'serve, onnx' if name in served else 'all'} |"
        for name in sorted(licences)
    ]
    return HEAD + "\n".join(rows) + "\n"


def main() -> int:
    """Write the page; 1 if a licence is not allowed."""
    licences = installed_licences()
    PAGE.write_text(page(licences), "utf-8")
    refused = [f"{normalised(name)}: {text}" for name, text in licences.items() if not is_allowed(text)]
    print(f"{len(licences)} packages, listed in {PAGE.relative_to(ROOT)}")
    if refused:
        print("not allowed in tools/licences.py:\n" + "\n".join(refused), file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
