from __future__ import annotations

from pathlib import Path

import pytest

from thumbnet.cli import main
from thumbnet.runs.folder import Run


def test_the_card_alone_is_printed_and_nothing_is_sent(
    tiny_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["push", str(tiny_run.path), "hf:someone/colours", "--card"]) == 0
    card = capsys.readouterr().out
    assert card.startswith("---\n")
    assert f"{100 * tiny_run.summary['accuracy']:.2f} %" in card
    assert "thumbnet predict hf:someone/colours" in card


def test_a_run_that_is_not_there_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(tmp_path / "nothing"), "hf:a/b"]) == 2
    assert "there is no run" in capsys.readouterr().err
