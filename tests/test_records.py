"""The numbers in README and docs agree with the newest records in docs/records/ (see benchmarks/records.py)."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import records  # noqa: E402
from measure import SHARED  # noqa: E402

FAST, FOUR, ONE = ("fast", 15), ("fast", 4), ("fast", 1)
DIGITS, REFERENCE = ("digits", 20), (records.REFERENCE, 8)
NUMBER = r"\d+(?:\.\d+)?"
ACCURACY = rf"(?P<accuracy>{NUMBER}) %"
PLAIN = rf"(?P<plain>{NUMBER}) %"
CLOCK = r"(?P<clock>\d+:\d\d)"
N = r"n = (?P<n>\d+)"
ROW = rf"[,，] ?{N} \| {ACCURACY} \| {PLAIN} \| {CLOCK} \|"
# A file, the runs that a sentence in it is about, and a pattern for the sentence with its numbers as groups.
CLAIMS = [
    ("README.md", FAST, rf"`fast` reaches {ACCURACY} in {CLOCK} on two CPU cores \({N}\)"),
    ("README.md", REFERENCE, rf"needs (?P<minutes>\d+) minutes on the same processor for {ACCURACY} \({N}\)"),
    ("README.md", FAST, rf"\| `fast`{ROW}"),
    ("README.md", FOUR, rf"\| `fast --epochs 4`{ROW}"),
    ("README.md", ONE, rf"\| `fast --epochs 1`{ROW}"),
    ("README.md", DIGITS, rf"\| `digits` \(`make train`\), {N} \| {ACCURACY} \| [^|]+ \| {CLOCK} \|"),
    ("README.zh.md", FAST, rf"两个 CPU 核、{CLOCK} 就达到 {ACCURACY}（{N}）"),
    ("README.zh.md", REFERENCE, rf"需要 (?P<minutes>\d+) 分钟，准确率 {ACCURACY}（{N}）"),
    ("README.zh.md", FAST, rf"\| `fast`{ROW}"),
    ("README.zh.md", FOUR, rf"\| `fast --epochs 4`{ROW}"),
    ("README.zh.md", ONE, rf"\| `fast --epochs 1`{ROW}"),
    ("docs/results.md", FAST, rf"reaches {ACCURACY} on CIFAR-10 \(JPEG copy\) in {CLOCK}"),
    ("docs/guide/6-fast.md", FAST, rf"`fast` reaches {ACCURACY} in {CLOCK}"),
    ("docs/guide/zh/6-fast.md", FAST, rf"`fast` 配方 {CLOCK} 达到 {ACCURACY}"),
    (
        "src/thumbnet/recipes/fast.toml",
        FAST,
        rf"{ACCURACY} of the test pictures right on\s+# average \({N}\)",
    ),
    ("src/thumbnet/recipes/fast.toml", FAST, rf"\({PLAIN} without test-time augmentation\), in {CLOCK}"),
    ("src/thumbnet/recipes/fast.toml", FOUR, rf"With --epochs 4: {ACCURACY} in {CLOCK} \({N}\)"),
]


def rounded(value: float, like: str) -> str:
    """``value`` with as many decimals as ``like`` has."""
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize(("file", "runs", "sentence"), CLAIMS)
def test_published_numbers_agree_with_the_newest_record(
    file: str, runs: tuple[str, int], sentence: str
) -> None:
    found = records.newest()[runs]
    matches = list(re.finditer(sentence, (ROOT / file).read_text("utf-8")))
    assert len(matches) == 1, f"{file}: expected one sentence like {sentence}"
    said = matches[0].groupdict()
    for name, text in said.items():
        measured = {
            "accuracy": rounded(found.mean, text),
            "plain": rounded(sum(found.plain) / max(1, len(found.plain)), text),
            "clock": found.clock,
            "n": str(found.n),
            "minutes": f"{median(found.seconds) / 60:.0f}",
        }[name]
        assert text == measured, f"{file} says {name} {text}, but the record says {measured}"


def test_the_results_table_agrees_with_the_records() -> None:
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    for found in records.newest().values():
        assert f"| {' | '.join(records.row(found))} |" in page


def test_every_accuracy_in_the_readmes_is_compared_with_a_record() -> None:
    """A new number in a README needs an entry in CLAIMS."""
    for file in ("README.md", "README.zh.md"):
        text = (ROOT / file).read_text("utf-8")
        for name, _, sentence in CLAIMS:
            if name == file:
                text = re.sub(sentence, "", text)
        left = re.findall(r"\b[4-9]\d\.\d+ %", text)
        # The row of digits in the Chinese table has no claim.
        assert left in ([], ["99.72 %"]), f"{file}: {left}"


def one_run(seed: int, accuracy: float, seconds: float, **more: Any) -> dict[str, Any]:
    numbers = {"accuracy": accuracy, "plain_accuracy": accuracy, "seconds": seconds, "product_tflops": 0.5}
    return {"what": "fast", "epochs": 15, "seed": seed, **numbers, **more}


def test_a_summary_has_the_mean_its_standard_error_and_the_times_of_undisturbed_runs() -> None:
    runs = [one_run(1, 0.91, 100.0), one_run(0, 0.90, 300.0), one_run(2, 0.92, 900.0, quiet=False)]
    found = records.summaries({"runs": runs})[FAST]
    assert found.accuracies == (90.0, 91.0, 92.0)
    assert (found.n, found.mean, found.deviation) == (3, 91.0, 1.0)
    assert found.error == pytest.approx(3**-0.5)
    assert (found.seconds, found.work, found.clock) == ((300.0, 100.0), (150.0, 50.0), "3:20")


def test_the_newest_record_with_a_run_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    late = {
        "commit": "a",
        "data": SHARED.name,
        "begun": "2026-02-01T00:00",
        "runs": [one_run(0, 0.92, 1.0)],
    }
    early = {
        "commit": "b",
        "data": SHARED.name,
        "begun": "2026-01-01T00:00",
        "runs": [one_run(0, 0.91, 1.0), {**one_run(0, 0.5, 1.0), "epochs": 1}],
    }
    (tmp_path / "1.json").write_text(records.to_text(late))
    (tmp_path / "2.json").write_text(records.to_text(early))
    original = {
        "commit": "c",
        "data": "cifar10",
        "begun": "2026-03-01T00:00",
        "runs": [one_run(0, 0.94, 1.0)],
    }
    (tmp_path / "3.json").write_text(records.to_text(original))
    assert json.loads(records.to_text(late)) == late
    found = records.newest()
    assert (found[FAST].mean, found[ONE].mean) == (92.0, 50.0)
    assert [record["commit"] for record in records.records("cifar10")] == ["c"]
    assert records.record_path("c", "cifar10").name.endswith("-c-cifar10.json")


def test_the_reference_runs_alternate_with_the_seeds() -> None:
    order = [job.what for job in records.jobs(10, 3, (1, 4), 3)]
    assert order[:11] == [*["fast"] * 3, records.REFERENCE] * 2 + ["fast"] * 3
    assert order.count(records.REFERENCE) == 3
    assert len(order) == 10 + 3 + 2 * 3 + 1
    assert records.REFERENCE not in [job.what for job in records.jobs(10, 0, (), 0)]
