"""Regular expressions from recipes, which may come from a stranger and take for ever. Imports no torch.

Python cannot stop a regular expression, and one such as ``(a+)+b`` takes longer than the universe lasts on a
name of 60 letters. So a pattern that could backtrack is first tried in a process of its own, with a time
limit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from thumbnet.errors import DataError

SECONDS = 20.0  # a million ordinary names take one or two
_TRY = """
import json, re, sys
pattern, names = json.load(sys.stdin)
for name in names:
    re.search(pattern, name)
"""


def compile_pattern(pattern: str, names: Sequence[str], option: str) -> re.Pattern[str]:
    """Compile ``pattern`` if it can be searched in all ``names`` within ``SECONDS``.

    Args:
        pattern: a valid regular expression.
        names: what it will be searched in.
        option: where the pattern comes from, for errors.

    Raises:
        DataError: it takes too long.
    """
    regex = re.compile(pattern)
    if not set("*+?{") & set(pattern):  # nothing is repeated, so there is nothing to backtrack
        return regex
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps([pattern, list(names)]).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{option} {pattern!r} takes more than {SECONDS:g} s on {len(names):,} names: write it without "
            "repetitions within repetitions, such as (a+)+"
        ) from None
    except OSError:  # no further process can be started: the pattern is used without the trial
        pass
    return regex
