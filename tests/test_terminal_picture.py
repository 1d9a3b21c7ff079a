"""The picture of the terminal in README.md shows what the program prints today."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from thumbnet import invocation
from thumbnet.cli import main
from thumbnet.kernels import library

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import terminal  # noqa: E402


def form(words: list[str]) -> str:
    """What is printed apart from the numbers, the number of epochs, and how this computer computes."""
    text = re.sub(r"\d[\d.,:]*(?:e-?\d+)?", "#", " ".join(words))
    text = re.sub(r"# s\b", "#", text)  # a duration: 59.9 s, but 1:00
    text = re.sub(r"(epoch #/#(?: (?!epoch)\S+)+ test # % )\1*", r"\1", text)
    text = re.sub(r"(?:bf|fp)# on \w+(?: with kernels)?", "PRECISION on DEVICE", text)
    return re.sub(r" without the faster CPU kernels: .*?(?= no val split)", "", text)


def test_the_form_leaves_out_numbers_and_repeated_epochs_only() -> None:
    one = "in bf16 on cpu with kernels no val split epoch 1/1 loss 1.6 3.0 s test 95.8 % test accuracy 9 %"
    two = (
        "in fp32 on cpu without the faster CPU kernels: no gcc here no val split "
        "epoch 1/2 loss 1,600 1:00 test 9 % epoch 2/2 loss 2e-05 3 s test 95.8 % test accuracy 1 %"
    )
    assert form(one.split()) == form(two.split())
    for other in (one.replace("loss", "error"), one.replace("test 95.8 %", "val 95.8 %"), f"{one} s"):
        assert form(other.split()) != form(one.split())


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Switch the kernels off: compiling them takes longer than the training."""
    monkeypatch.setenv("THUMBNET_KERNELS", "0")
    library.forget()
    yield
    monkeypatch.undo()
    library.forget()


@pytest.mark.usefixtures("no_kernels")
def test_the_picture_shows_what_the_program_prints_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``make picture`` draws it anew. A narrow network and a single epoch print the same, but for numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(invocation, "program", lambda: "thumbnet")
    assert terminal.COMMAND.startswith("thumbnet train digits ")
    assert main([*terminal.COMMAND.split()[1:], "--epochs", "1", "--set", "model.width=0.25"]) == 0
    stdout, stderr = capsys.readouterr()
    now = ["$", *terminal.COMMAND.split(), *stderr.split(), *stdout.split()]
    assert form(terminal.words(terminal.IMAGE)) == form(now)


def test_the_picture_is_readable_where_the_readmes_show_it() -> None:
    """GitHub shows a README in a column of 830 pixels."""
    picture = ElementTree.parse(terminal.IMAGE).getroot()
    width = float(picture.attrib["viewBox"].split()[2])
    (size,) = re.findall(r"\.terminal-matrix \{[^}]*font-size: (\d+)px", terminal.IMAGE.read_text())
    assert float(size) * 830 / width > 15
    for page in ("README.md", "README.zh.md"):
        assert "(docs/images/terminal.svg)" in (ROOT / page).read_text("utf-8")
