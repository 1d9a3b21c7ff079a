"""Fail every call of every scenario once, and write a line of JSON for each failure.

    python tests/faults/nth_run.py --out full.jsonl
    python tests/faults/nth_run.py --out full.jsonl --scenario train --stride 10

What is in the file already is not done again. In the end, a table and everything that was wrong are printed; see
nth.py for what is checked. The exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.nth import Bench, Failure, Trial, table
from faults.nth_scenarios import SCENARIOS, named, scratch, start_server


def main() -> int:
    """Run the scenarios; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the file of results")
    parser.add_argument("--scenario", action="append", help="only this one; may be given several times")
    parser.add_argument("--operation", action="append", help="only these calls; may be given several times")
    parser.add_argument("--stride", type=int, default=1, help="only every STRIDE-th failure")
    options = parser.parse_args()
    scenarios = [named(name) for name in options.scenario] if options.scenario else SCENARIOS
    done = read(options.out)
    known = {one.key for one in done}
    place = Path(tempfile.mkdtemp(prefix="thumbnet-nth-", dir=scratch()))
    try:
        with start_server(place / "server") as server, options.out.open("a") as out:
            bench = Bench(server, place / "root")
            for scenario in scenarios:
                trial = Trial(bench, scenario)
                for number, (failure, fault) in enumerate(trial.failures()):
                    if number % options.stride or failure.key in known:
                        continue
                    if options.operation and failure.operation not in options.operation:
                        continue
                    done.append(trial.fail(failure, fault))
                    out.write(json.dumps(asdict(done[-1])) + "\n")
                    out.flush()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(table(done))
    wrong = [one for one in done if one.problem]
    for one in wrong:
        print(f"{' '.join(map(str, one.key))} at {one.path}: {shortened(one.problem)}")
    return 1 if wrong else 0


def shortened(problem: str) -> str:
    """The first and the last line of a problem."""
    lines = problem.strip().splitlines()
    return " ... ".join(dict.fromkeys(line[-300:] for line in (lines[0], lines[-1])))


def read(path: Path) -> list[Failure]:
    """The failures in a file of results; a line that was cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        path.write_text("".join(lines[:-1]))
    return [Failure(**json.loads(line)) for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    sys.exit(main())
