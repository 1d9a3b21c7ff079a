from __future__ import annotations

from pathlib import Path

import pytest

from thumbnet.cli import main
from thumbnet.runs.folder import Run


def test_card_prints_the_model_card_and_publishes_nothing(
    tiny_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["push", str(tiny_run.path), "hf:someone/colours", "--card"]) == 0
    card = capsys.readouterr().out
    assert card.startswith("---\n")
    assert f"{100 * tiny_run.summary['accuracy']:.2f} %" in card
    assert "thumbnet predict hf:someone/colours" in card


def test_a_missing_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(tmp_path / "nothing"), "hf:a/b"]) == 2
    assert "there is no run" in capsys.readouterr().err
