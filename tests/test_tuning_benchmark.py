"""The benchmark of `thumbnet tune`: what it compares, and what it keeps."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
pytest.importorskip("jinja2", reason="the extra 'tune' is not installed")

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from resumable import Results  # noqa: E402

import tuning  # noqa: E402


def test_every_way_is_measured_once_per_case_and_seed_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    searched = {"accuracy": 0.6, "best": 0.5, "start": 0.45, "trials": 12, "seconds_total": 118.0}

    def tuned(_: object, case: str, seed: int, folder: Path) -> dict[str, float]:
        called.append(f"{folder.parent.name} tune")
        return searched

    def trained(_: object, case: str, recipe: str, seed: int, folder: Path) -> dict[str, float]:
        called.append(f"{folder.parent.name} {recipe}")
        return {"accuracy": 0.5 + 0.1 * seed, "seconds_total": 120.0}

    monkeypatch.setattr(tuning, "tuned", tuned)
    monkeypatch.setattr(tuning, "trained", trained)
    words = ["--cases", "cifar-500", "--folders", "my/pictures/", "--seeds", "2", "--work", str(tmp_path)]
    options = tuning.arguments().parse_args(words)
    file = tmp_path / "results.json"
    tuning.measure(options, Results(file, {}))
    assert len(called) == len(set(called)) == 2 * 2 * 3
    tuning.measure(options, again := Results(file, {}))
    assert len(called) == 12
    _, last = tuning.rows(again.found, ["cifar-500", "pictures"], options.seeds)
    assert last == ["pictures", "60.00 ± 0.00", "55.00 ± 7.07", "55.00 ± 7.07", "12", "+5.00", "118"]


CASES = {
    "500 of CIFAR-10, 32x32": "cifar-500",
    "2,000 of CIFAR-10, 32x32": "cifar-2000",
    "10,000 of CIFAR-10, 32x32": "cifar-10000",
    "1,119 photographs of cats and dogs": "cats-dogs",
    "245 photographs of ants and bees": "ants-bees",
}


def means(case: str, minutes: float, way: str, n: int) -> set[str]:
    """The mean accuracies of ``n`` seeds, in percent, in all records of a case and a time."""
    found = set()
    for file in (ROOT / "docs" / "records" / "tuning").glob("*.json"):
        record = json.loads(file.read_text("utf-8"))
        names = [f"{case}, seed {seed}: {way}" for seed in range(n)]
        if record["settings"]["minutes"] == minutes and set(names) <= set(record["results"]):
            accuracies = [100 * record["results"][name]["accuracy"] for name in names]
            found.add(f"{statistics.fmean(accuracies):.2f}")
    return found


def test_the_table_of_what_a_search_reaches_has_the_means_of_the_records() -> None:
    page = (ROOT / "docs" / "howto" / "tune.md").read_text("utf-8")
    _, _, table = page.partition("| pictures | minutes | tune | small | fast | n |\n")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[1:] if line.startswith("|")]
    assert {pictures for pictures, *_ in rows} == set(CASES)
    for pictures, minutes, *accuracies, n in rows:
        for way, accuracy in zip(("tune", *tuning.RIVALS), accuracies, strict=True):
            assert accuracy in means(CASES[pictures], float(minutes), way, int(n)), (
                pictures,
                way,
            )
