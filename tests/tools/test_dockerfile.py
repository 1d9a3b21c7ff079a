"""What can be known about the image without building it. `make test-docker-steps` runs its steps."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dockerfile import Stage, read_stages
from pins import ROOT

STAGES = read_stages(ROOT / "Dockerfile")


def test_the_service_runs_as_a_fixed_user_that_is_not_root() -> None:
    assert STAGES["serve"].last("USER") == "10001:10001"


def test_the_service_and_its_health_check_start_without_a_shell() -> None:
    serve = STAGES["serve"]
    assert serve.words("ENTRYPOINT")[:2] == ["/opt/thumbnet/bin/thumbnet", "serve"]
    assert serve.words("HEALTHCHECK")[0] == "/opt/thumbnet/bin/python"
    assert serve.words("CMD") == ["/model.onnx"]
    assert serve.last("STOPSIGNAL") == "SIGTERM"
    with pytest.raises(ValueError):
        Stage("shell", [("CMD", "thumbnet serve")]).words("CMD")


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_the_service_and_no_proxy(status: int, healthy: bool) -> None:
    asked: list[str] = []

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _, *words = STAGES["serve"].words("HEALTHCHECK")
        command = [sys.executable, *(word.replace("8000", str(server.server_port)) for word in words)]
        proxies = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        done = subprocess.run(command, env={**os.environ, **proxies, "no_proxy": ""}, timeout=30)
        server.shutdown()
    assert (done.returncode == 0) == healthy
    assert asked == ["/healthz"]


def test_every_installed_file_has_a_hash_or_was_built_in_the_image() -> None:
    commands = [
        text for keyword, text in STAGES["build"].instructions if keyword == "RUN" and " pip " in text
    ]
    assert len(commands) == 4
    for command in commands:
        locked = "--require-hashes --no-deps --only-binary :all: --requirement locks/" in command
        assert locked or "--no-index --no-deps" in command, command


def test_nothing_that_builds_or_installs_is_left() -> None:
    serve = STAGES["serve"].instructions
    assert [text for keyword, text in serve if keyword == "COPY"] == [
        "--from=build /opt/thumbnet /opt/thumbnet"
    ]
    (removed,) = (text for keyword, text in serve if keyword == "RUN")
    assert removed.startswith("rm -rf ")
    assert "site-packages/pip*" in removed


def test_caches_and_temporary_files_go_to_tmp_only() -> None:
    environment = STAGES["serve"].environment()
    assert environment["HOME"] == "/tmp"
    assert environment["THUMBNET_CACHE"].startswith("/tmp/")
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_the_context_holds_what_is_copied_and_nothing_private() -> None:
    lines = [
        one for one in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if not one.startswith("#")
    ]
    assert lines[0] == "*"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    copied = [text.split()[:-1] for keyword, text in STAGES["build"].instructions if keyword == "COPY"]
    sources = [one for each in copied for one in each]
    assert sorted(sources) == sorted(allowed)
    assert all((ROOT / one).exists() for one in sources)
    assert not any(
        fnmatch.fnmatch(one, pattern) for one in sources for pattern in (".git*", "tests*", "runs*")
    )


def test_the_wheel_can_be_built_from_what_is_copied() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    named = re.findall(r'"([^"]+)"', "".join(re.findall(r"(?m)^(?:readme|license-files) = .*", text)))
    copied = " ".join(text for keyword, text in STAGES["build"].instructions if keyword == "COPY").split()
    assert named
    assert all(Path(one).parts[0] in copied for one in named)
