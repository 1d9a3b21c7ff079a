from __future__ import annotations

from pathlib import Path

import pytest

from thumbnet.cli import main
from thumbnet.cli import serve as command
from thumbnet.runs.folder import Run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--timeout", "0"], "must be more than 0"),
        (["--max-megabytes", "-1"], "must be more than 0"),
        (["--api-key-file", "nowhere"], "cannot read the API key in nowhere"),
        (["--api-key-file", "empty"], "it must hold the API key"),
        (["--port", "99999"], "cannot listen"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot listen"),
    ],
)
def test_invalid_options_are_explained(
    words: list[str],
    message: str,
    tiny_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_text("\n")
    assert main(["serve", str(tiny_run.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_api_key_is_the_first_line_of_the_file_or_else_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(" secret \nsecond line\n")
    assert command._api_key(str(tmp_path / "key")) == "secret"
    monkeypatch.setenv("THUMBNET_API_KEY", "other")
    assert command._api_key(None) == "other"
    monkeypatch.delenv("THUMBNET_API_KEY")
    assert command._api_key(None) is None
