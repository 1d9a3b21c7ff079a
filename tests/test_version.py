from __future__ import annotations

import re
from importlib import metadata

import thumbnet
from thumbnet.version import __version__


def test_the_version_is_that_of_the_installed_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert thumbnet.__version__ == __version__ == metadata.version("thumbnet")
