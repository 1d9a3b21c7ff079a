from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from thumbnet.cli import build_parser, main
from thumbnet.cli import serve as command
from thumbnet.errors import ThumbnetError
from thumbnet.runs.folder import Run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--timeout", "0"], "must be more than 0"),
        (["--max-megabytes", "-1"], "must be more than 0"),
        (["--timeout", "nan"], "must be more than 0"),
        (["--max-megapixels", "inf"], "must be more than 0"),
        (["--max-batch", "100000000000000000000"], "expected at most 65536"),
        (["--max-batch", "65537"], "expected at most 65536"),
        (["--api-key-file", "foreign"], "the API key in the first line of foreign must have only"),
        (["--api-key-file", "nowhere"], "cannot read the API key in nowhere"),
        (["--api-key-file", "empty"], "it must hold the API key"),
        (["--port", "99999"], "cannot listen"),
        (["--host", "192.0.2.1", "--port", "0"], "cannot listen"),
        (["--accept-host", "a.example", "--host", "0.0.0.0", "--port", "0"], "no effect with --host 0.0.0.0"),
        (["--keep-below", "0.5"], "no effect without --keep: name the folder"),
        (["--keep-at-most", "5"], "no effect without --keep: name the folder"),
        (["--keep", "new", "--keep-below", "2"], "below 2: expected a probability above 0 and up to 1"),
        (["--keep", "empty"], "cannot keep pictures in empty: File exists. Name a folder"),
        (["--keep", "."], "cannot keep pictures in .: it has other files, such as empty"),
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
    (tmp_path / "foreign").write_text("schl\u00fcssel", "utf-8")
    assert main(["serve", str(tiny_run.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_api_key_is_the_first_line_of_the_file_or_else_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(" secret \nsecond line\n")
    assert command._api_key(str(tmp_path / "key")) == "secret"
    monkeypatch.setenv("THUMBNET_API_KEY", " other\n")
    assert command._api_key(None) == "other"
    monkeypatch.setenv("THUMBNET_API_KEY", "two\nlines")
    with pytest.raises(ThumbnetError, match="the API key in THUMBNET_API_KEY"):
        command._api_key(None)
    monkeypatch.delenv("THUMBNET_API_KEY")
    assert command._api_key(None) is None


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_an_empty_api_key_does_not_start_an_open_service(
    value: str, tiny_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THUMBNET_API_KEY", value)
    assert main(["serve", str(tiny_run.path), "--port", "0", "--data", "none"]) == 2
    error = capsys.readouterr().err
    assert "THUMBNET_API_KEY is empty: it must hold the API key" in error
    assert "unset the variable" in error


def test_a_full_pipe_on_standard_error_delays_neither_requests_nor_the_end_of_the_process() -> None:
    pytest.importorskip("starlette", reason="the extra 'serve' is not installed")
    code = """
from thumbnet.cli.serve import _write_line
from thumbnet.serving.access_log import AccessLog, Entry

log = AccessLog(_write_line)
for _ in range(400):
    log.add(Entry(0.0, "client", "GET", "/" + "a" * 290, 404, 0, 0.0))
log.close()
"""
    # 400 lines are 140 kB, a pipe holds 64 KiB, and nobody reads this one.
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        assert process.wait(30) == 0
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
        assert 100 < len(lines) < 400
        assert set(lines) == {
            b"1970-01-01T00:00:00.000Z client GET /" + b"a" * 290 + b" 404 pictures=0 ms=0.0"
        }
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://shop.example", "https://shop.example"),
        ("https://Shop.example:443/", "https://shop.example"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:0080", "http://localhost"),
        ("http://localhost:03000", "http://localhost:3000"),
        ("https://localhost:80", "https://localhost:80"),
        ("http://[::1]:5173/", "http://[::1]:5173"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("*", "*"),
    ],
)
def test_origins_are_written_as_browsers_send_them(given: str, origin: str) -> None:
    words = ["serve", "RUN", "--allow-origin", given, "--allow-origin", "https://b.example"]
    assert build_parser().parse_args(words).allow_origin == [origin, "https://b.example"]


@pytest.mark.parametrize(
    "given",
    [
        "shop.example",
        "https://shop.example/page",
        "null",
        "https://*",
        "**",
        "http://localhost:99999",
        "http://localhost:0",
    ],
)
def test_what_is_no_origin_is_explained(given: str) -> None:
    with pytest.raises(ThumbnetError, match=r"expected an origin such as https://shop\.example"):
        build_parser().parse_args(["serve", "RUN", f"--allow-origin={given}"])


def test_the_options_reach_the_service_and_open_services_are_warned_about(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service, server = (
        pytest.importorskip(f"thumbnet.serving.{name}", reason="the extra 'serve' is not installed")
        for name in ("service", "server")
    )
    seen: list[Any] = []
    original = service.build_service

    def recorded(classifier: Any, settings: Any, *more: Any, **named: Any) -> Any:
        seen.append(settings)
        return original(classifier, settings, *more, **named)

    monkeypatch.delenv("THUMBNET_API_KEY", raising=False)
    monkeypatch.setattr(service, "build_service", recorded)
    monkeypatch.setattr(server, "serve", lambda *_: None)
    words = ["serve", str(tiny_run.path), "--port", "0", "--data", "none", "--access-log", "off"]
    assert main([*words, "--allow-origin", "https://shop.example"]) == 0
    assert "can use the service" not in capsys.readouterr().err
    assert main([*words, "--allow-origin", "*"]) == 0
    assert "every page that is opened on this machine can use the service" in capsys.readouterr().err
    assert main(words) == 0
    assert [one.origins for one in seen] == [("https://shop.example",), ("*",), ()]


def test_mirrored_views_of_a_network_that_was_trained_without_them_are_warned_about(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = pytest.importorskip("thumbnet.serving.server", reason="the extra 'serve' is not installed")
    monkeypatch.setattr(server, "serve", lambda *_: None)
    run = Path(shutil.copytree(tiny_run.path, tmp_path / "run"))
    (run / "recipe.toml").write_text(tiny_run.recipe.override(["augment.flip=none"]).to_toml(), "utf-8")
    words = ["serve", str(run), "--port", "0", "--data", "none", "--access-log", "off"]
    assert main([*words, "--tta", "mirror"]) == 0
    assert "warning: --tta mirror shows mirrored pictures" in capsys.readouterr().err
    assert main(words) == 0
    assert "shows mirrored" not in capsys.readouterr().err


def test_a_runs_own_pictures_are_offered_only_where_others_cannot_see_them(
    trained: tuple[Path, str, str],
    folder: Path,
    tiny_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    service, server = (
        pytest.importorskip(f"thumbnet.serving.{name}", reason="the extra 'serve' is not installed")
        for name in ("service", "server")
    )
    offered: list[bool] = []
    original = service.build_service

    def recorded(
        classifier: Any, settings: Any, load_data: Any, *more: Any, source: Any, **named: Any
    ) -> Any:
        after_reload = source.load().load_data()
        offered.append(load_data() is not None)
        assert (after_reload is not None) == offered[-1]
        return original(classifier, settings, load_data, *more, source=source, **named)

    def said(run: Path, *options: str) -> bool:
        assert main(["serve", str(run), "--port", "0", "--access-log", "off", *options]) == 0
        return "offers none of the run's test pictures" in capsys.readouterr().err

    monkeypatch.setattr(service, "build_service", recorded)
    monkeypatch.setattr(server, "serve", lambda *_: None)
    monkeypatch.delenv("THUMBNET_API_KEY", raising=False)
    run, open_to_others = trained[0], ["--accept-host", "cats.example.org"]
    assert not said(run)
    assert not said(run, "--allow-origin", "https://shop.example")
    assert offered == [True, True]
    assert said(run, *open_to_others)
    assert said(run, "--allow-origin", "*")
    assert not said(run, *open_to_others, "--data", "none")
    assert not said(tiny_run.path, *open_to_others)  # it was trained on data in memory
    alone = tmp_path / "weights"
    alone.mkdir()
    shutil.copy(run / "model.safetensors", alone)
    assert not said(alone, *open_to_others)  # no run
    assert offered == [True, True, *[False] * 5]
    assert not said(run, *open_to_others, "--data", str(folder))
    monkeypatch.setenv("THUMBNET_API_KEY", "secret")
    assert not said(run, *open_to_others)
    assert offered[-2:] == [True, True]


def test_the_address_for_other_devices_is_printed_if_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    command._greet("http://127.0.0.1:8000", None)
    command._greet("http://127.0.0.1:8000", "http://192.168.1.23:8000")
    first = "serving at http://127.0.0.1:8000   (Ctrl-C to stop)"
    assert capsys.readouterr().out.splitlines() == [
        first, first, "for other devices in this network: http://192.168.1.23:8000",
    ]  # fmt: skip
