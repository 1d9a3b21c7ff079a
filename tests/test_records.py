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
XEON = "vendor_id GenuineIntel, cpu family 6, model 167"
EPYC = "vendor_id AuthenticAMD, cpu family 25, model 17"
# A file, the processor and the runs that a sentence in it is about, and a pattern for the sentence with its
# numbers as groups.
CLAIMS = [
    ("README.md", XEON, FAST, rf"`fast` reaches {ACCURACY} in {CLOCK} on two CPU cores \({N}\)"),
    ("README.md", EPYC, FAST, rf"and in {CLOCK} on two without matrix units \({ACCURACY}, {N}\)"),
    ("README.md", XEON, REFERENCE, rf"needs (?P<minutes>\d+) minutes\s+for {ACCURACY} \({N}\) on the first"),
    ("README.md", EPYC, REFERENCE, rf"and (?P<minutes>\d+) for {ACCURACY} \({N}\) on the\s+second"),
    ("README.md", XEON, FAST, rf"\| `fast`{ROW}"),
    ("README.md", XEON, FOUR, rf"\| `fast --epochs 4`{ROW}"),
    ("README.md", XEON, ONE, rf"\| `fast --epochs 1`{ROW}"),
    ("README.md", XEON, DIGITS, rf"\| `digits` \(`make train`\), {N} \| {ACCURACY} \| [^|]+ \| {CLOCK} \|"),
    ("README.zh.md", XEON, FAST, rf"两个 CPU 核、{CLOCK} 就达到 {ACCURACY}（{N}）"),
    ("README.zh.md", EPYC, FAST, rf"没有矩阵单元的两个核需要 {CLOCK}（{ACCURACY}，{N}）"),
    ("README.zh.md", XEON, REFERENCE, rf"前者上需要 (?P<minutes>\d+) 分钟，准确率 {ACCURACY}（{N}）"),
    ("README.zh.md", EPYC, REFERENCE, rf"后者上需要 (?P<minutes>\d+) 分钟，准确率 {ACCURACY}（{N}）"),
    ("README.zh.md", XEON, FAST, rf"\| `fast`{ROW}"),
    ("README.zh.md", XEON, FOUR, rf"\| `fast --epochs 4`{ROW}"),
    ("README.zh.md", XEON, ONE, rf"\| `fast --epochs 1`{ROW}"),
    ("README.zh.md", XEON, DIGITS, rf"\| `digits`（`make train`），{N} \| {ACCURACY} \| [^|]+ \| {CLOCK} \|"),
    ("docs/results.md", XEON, FAST, rf"reaches {ACCURACY} on CIFAR-10 \(JPEG copy\) in {CLOCK}"),
    ("docs/results.md", EPYC, FAST, rf"and {ACCURACY} in {CLOCK} on two without"),
    ("docs/guide/6-fast.md", XEON, FAST, rf"`fast` reaches {ACCURACY} in {CLOCK}"),
    ("docs/guide/6-fast.md", EPYC, FAST, rf"On two cores without matrix units it takes {CLOCK}"),
    ("docs/guide/zh/6-fast.md", XEON, FAST, rf"`fast` 配方 {CLOCK} 达到 {ACCURACY}"),
    ("docs/guide/zh/6-fast.md", EPYC, FAST, rf"没有矩阵单元时需要 {CLOCK}"),
    (
        "src/thumbnet/recipes/fast.toml",
        XEON,
        FAST,
        rf"{ACCURACY} of the test\s+# pictures right on average \({N}\)",
    ),
    (
        "src/thumbnet/recipes/fast.toml",
        XEON,
        FAST,
        rf"\({PLAIN} without test-time augmentation\), in {CLOCK}",
    ),
    ("src/thumbnet/recipes/fast.toml", XEON, FOUR, rf"With --epochs 4: {ACCURACY} in {CLOCK} \({N}\)"),
    ("src/thumbnet/recipes/fast.toml", EPYC, FAST, rf"On two cores of an AMD EPYC: {ACCURACY} in {CLOCK}"),
    (
        "src/thumbnet/recipes/digits.toml",
        EPYC,
        DIGITS,
        rf"{ACCURACY} of\s+# 359 test pictures right, in {CLOCK} \({N}\)",
    ),
]


# Sentences about the time and accuracy of `fast` and of the reference.
COMPARISONS = [
    (
        "docs/results.md",
        XEON,
        r"`fast` takes\s+(?P<share>\d+) % of the reference's time, and is (?P<below>[\d.]+) points below it, "
        r"which is uncertain by (?P<error>[\d.]+)\.",
    ),
    (
        "docs/results.md",
        EPYC,
        r"So `fast` takes \*\*(?P<share>\d+) %\*\* of the reference's time (?s:.{1,200}?)its accuracy is\s+"
        r"\*\*(?P<below>[\d.]+) ± (?P<error>[\d.]+) points below",
    ),
    (
        "docs/notebook/references.md",
        EPYC,
        r"`fast` takes \*\*(?P<share>\d+) %\*\* of the\s+time of these runs, (?s:.{1,200}?)its accuracy is\s+"
        r"\*\*(?P<below>[\d.]+) ± (?P<error>[\d.]+) points below",
    ),
    (
        "docs/notebook/references.md",
        XEON,
        r"`fast` takes \*\*(?P<share>\d+) %\*\* of the reference's time (?s:.{1,200}?)Its mean accuracy\s+"
        r"is (?P<below>[\d.]+) points below the reference's, uncertain by (?P<error>[\d.]+)\.",
    ),
]


def rounded(value: float, like: str) -> str:
    """``value`` with as many decimals as ``like`` has."""
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize(("file", "processor", "runs", "sentence"), CLAIMS)
def test_published_numbers_agree_with_the_newest_record(
    file: str, processor: str, runs: tuple[str, int], sentence: str
) -> None:
    found = records.newest(processor)[runs]
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


@pytest.mark.parametrize(("file", "processor", "sentence"), COMPARISONS)
def test_published_comparisons_agree_with_the_newest_records(
    file: str, processor: str, sentence: str
) -> None:
    ours, reference = (records.newest(processor)[runs] for runs in (FAST, REFERENCE))
    matches = list(re.finditer(sentence, (ROOT / file).read_text("utf-8")))
    assert len(matches) == 1, f"{file}: expected one sentence like {sentence}"
    assert matches[0].groupdict() == {
        "share": f"{100 * median(ours.seconds) / median(reference.seconds):.0f}",
        "below": f"{reference.mean - ours.mean:.2f}",
        "error": f"{(ours.error**2 + reference.error**2) ** 0.5:.2f}",
    }


def test_the_notebooks_table_of_the_reference_agrees_with_the_newest_record() -> None:
    page = (ROOT / "docs" / "notebook" / "references.md").read_text("utf-8")
    found = [records.newest(XEON)[runs] for runs in (REFERENCE, FAST)]

    def cells(bold: list[str], runs: list[str]) -> str:
        return " | ".join(f"**{one}**{every}" for one, every in zip(bold, runs, strict=True))

    means = cells(
        [f"{one.mean:.2f} ± {one.error:.2f} %" for one in found],
        [": " + ", ".join(f"{value:.2f}" for value in one.accuracies) for one in found],
    )
    seconds = cells(
        [f"{median(one.seconds):,.0f}" for one in found],
        [": " + ", ".join(f"{value:.0f}" for value in one.seconds) for one in found],
    )
    work = cells([f"{median(one.work):,.0f}" for one in found], ["", ""])
    for name, row in (
        ("test accuracy with TTA", means),
        ("seconds in all, median", seconds),
        ("machine work, TFLOP, median", work),
    ):
        assert f"| {name} | {row} |" in page


def test_the_results_tables_agree_with_the_records() -> None:
    page = (ROOT / "docs" / "results.md").read_text("utf-8")
    others = set(records.processors()) - {XEON, EPYC}
    assert not others, (
        f"docs/results.md has no table for {others}. Add what `python benchmarks/records.py --show` prints, "
        "and name the processor in this test"
    )
    for processor in records.processors():
        for found in records.newest(processor).values():
            assert f"| {' | '.join(records.row(found))} |" in page
    for processor, where in ((XEON, "On the Xeon, with"), (EPYC, "On the EPYC, without")):
        (head,) = re.findall(rf"{where}.*\n\n(.*)\n", page)
        assert head == f"| {' | '.join(records.HEADER)} |", processor


def test_every_accuracy_in_the_readmes_is_compared_with_a_record() -> None:
    """A new number in a README needs an entry in CLAIMS."""
    for file in ("README.md", "README.zh.md"):
        text = (ROOT / file).read_text("utf-8")
        for name, _, _, sentence in CLAIMS:
            if name == file:
                text = re.sub(sentence, "", text)
        text = re.sub(MINUTES_5[file], "", text)
        assert not re.findall(r"\b[4-9]\d\.\d+ %", text), file


RIVALS = ("thumbnet", "fastai", "timm", "ultralytics-32", "keras")  # as the READMEs name them, in this order
IN_FOUR_MINUTES = {
    "README.md": r"thumbnet reaches (\d+) %, fastai (\d+) %, timm's training script (\d+) %, Ultralytics\s+(\d+) %, "
    r"and the network of Keras's guide (\d+) %",
    "README.zh.md": r"thumbnet 达到 (\d+) %，fastai (\d+) %，timm 的训练脚本 (\d+) %，Ultralytics (\d+) %，"
    r"Keras 指南里的网络 (\d+) %",
}


@pytest.mark.parametrize("file", IN_FOUR_MINUTES)
def test_the_readmes_compare_libraries_by_the_record_of_the_epyc(file: str) -> None:
    runs = json.loads((records.RECORDS / "rivals" / "2026-11-29-cb81c6e.json").read_text("utf-8"))["runs"]
    (said,) = re.findall(IN_FOUR_MINUTES[file], (ROOT / file).read_text("utf-8"))
    assert list(said) == [f"{100 * runs[rival]['4']['accuracy']:.0f}" for rival in RIVALS]


MINUTES_5 = {  # what each README says that `--minutes 5` reaches on the Xeon
    "README.md": r"ends within five minutes on your computer; on the first processor, that reaches\s+"
    rf"{ACCURACY} \({N}\)",
    "README.zh.md": rf"在 5 分钟内完成；在第一种处理器上，这样达到 {ACCURACY}（{N}）",
}


@pytest.mark.parametrize("file", MINUTES_5)
def test_the_readmes_say_what_five_minutes_reach_by_the_record_of_the_xeon(file: str) -> None:
    record = json.loads((records.RECORDS / "minutes" / "2026-12-01-95cc62d.json").read_text("utf-8"))
    found = [run["accuracy"] for name, run in record["results"].items() if ", 5 minute(s)," in name]
    (said,) = re.finditer(MINUTES_5[file], (ROOT / file).read_text("utf-8"))
    mean = rounded(100 * sum(found) / len(found), said["accuracy"])
    assert said.groupdict() == {"accuracy": mean, "n": str(len(found))}


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

    def written(commit: str, month: int, runs: list[dict[str, Any]], **other: Any) -> dict[str, Any]:
        begun = f"2026-0{month}-01T00:00"
        record: dict[str, Any] = {
            "commit": commit,
            "data": SHARED.name,
            "begun": begun,
            "machine": {"processor": "one"},
        }
        record |= {**other, "runs": runs}
        (tmp_path / f"{commit}.json").write_text(records.to_text(record))
        return record

    late = written("a", 2, [one_run(0, 0.92, 1.0)])
    assert json.loads(records.to_text(late)) == late
    written("b", 1, [one_run(0, 0.91, 1.0), {**one_run(0, 0.5, 1.0), "epochs": 1}])
    written("c", 3, [one_run(0, 0.94, 1.0)], data="cifar10")
    written("d", 4, [one_run(0, 0.93, 1.0)], machine={"processor": "another"})
    assert records.processors() == ["another", "one"]
    found = records.newest("one")
    assert (found[FAST].mean, found[ONE].mean) == (92.0, 50.0)
    assert records.newest("another").keys() == {FAST}
    assert [record["commit"] for record in records.records("cifar10")] == ["c"]
    assert records.record_path("c", "cifar10").name.endswith("-c-cifar10.json")


def test_processors_of_one_name_have_records_of_their_own_and_steppings_have_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    zen_5 = "vendor_id AuthenticAMD, cpu family 26, model 2"
    identities = [EPYC, f"{EPYC}, stepping 1", f"{zen_5}, stepping 1"]
    for day, identity in enumerate(identities, 1):
        machine = {"processor": "AMD EPYC", "identity": identity}
        record = {"data": SHARED.name, "begun": f"2026-01-0{day}T00:00", "machine": machine}
        runs = [one_run(0, 0.9 + day / 100, 1.0)]
        (tmp_path / f"{day}.json").write_text(records.to_text({**record, "runs": runs}))
    assert records.processors() == [zen_5, EPYC]
    assert records.newest(EPYC)[FAST].mean == pytest.approx(92)
    assert records.newest(zen_5)[FAST].mean == pytest.approx(93)


def test_a_record_continues_only_on_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "processor", lambda: f"{EPYC}, stepping 2")
    file = Path("record.json")
    records.check_processor({"machine": {"processor": "AMD EPYC", "identity": f"{EPYC}, stepping 1"}}, file)
    with pytest.raises(SystemExit, match="record.json was measured on another processor .*model 167; here: "):
        records.check_processor({"machine": {"processor": "Xeon", "identity": XEON}}, file)


def test_the_reference_keeps_its_accuracy_without_test_time_augmentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def program(command: list[str], **_: Any) -> None:
        found = {"accuracy": 0.9, "plain_accuracy": 0.89, "seconds": 5.0, "seconds_in_all": 7.0}
        Path(command[command.index("--json") + 1]).write_text(json.dumps({**found, "product_tflops": 0.4}))

    monkeypatch.setattr("subprocess.run", program)
    found = records.run(records.Job(records.REFERENCE, 8, 0), "pictures", Path("airbench94_muon.py"))
    kept = ("accuracy", "plain_accuracy", "seconds", "product_tflops")
    assert [found[key] for key in kept] == [0.9, 0.89, 7.0, 0.4]


def test_the_reference_runs_alternate_with_the_seeds() -> None:
    order = [job.what for job in records.jobs(10, 3, (1, 4), 3)]
    assert order[:11] == [*["fast"] * 3, records.REFERENCE] * 2 + ["fast"] * 3
    assert order.count(records.REFERENCE) == 3
    assert len(order) == 10 + 3 + 2 * 3 + 1
    assert records.REFERENCE not in [job.what for job in records.jobs(10, 0, (), 0)]
    assert [job.what for job in records.jobs(0, 0, (), 0, 2)] == ["digits", "resnet18", "resnet18"]
