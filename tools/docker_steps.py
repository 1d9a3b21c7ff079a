"""Tries out the steps of the Dockerfile where there is no container engine: make test-docker-steps

In a mount namespace, this runs the build stage on this machine's Python instead of the base image. Then
it starts what the image would start: as the image's user, without capabilities and without a network, on
a read-only file system of which only /tmp is writable. It asks for the health and for predictions, and
stops the service in the middle of a request. It cannot try the base image itself, nor the removal of that
image's pip.

Needs Linux, root and util-linux (unshare, setpriv, mount).
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dockerfile import Stage, read_stages

ROOT = Path(__file__).parents[1]
PREFIX = Path("/opt/thumbnet")
PORT = 8000


def main() -> None:
    """Make a model, and go on in a mount namespace."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", metavar="FILE", help="an exported model (default: trains one on the digits)"
    )
    parser.add_argument(
        "--python", default=sys.base_prefix, metavar="PREFIX", help="stands for the base image"
    )
    parser.add_argument(
        "--phase", choices=["start", "build", "serve"], default="start", help=argparse.SUPPRESS
    )
    parser.add_argument("--scratch", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if sys.platform != "linux" or os.geteuid() != 0:
        sys.exit(
            "docker_steps: needs Linux and root, to mount a read-only file system in a namespace of its own"
        )
    if options.phase == "build":
        build(Path(options.python), Path(options.model), options.scratch)
    elif options.phase == "serve":
        serve()
    else:
        with tempfile.TemporaryDirectory(prefix="thumbnet-docker-") as folder:
            model = Path(options.model or a_model(Path(folder))).resolve()
            scratch = Path(folder, "opt")
            scratch.mkdir()
            more = ["--python", options.python, "--model", str(model), "--scratch", str(scratch)]
            again("build", ["--mount"], *more)


def again(phase: str, namespaces: list[str], *options: str) -> None:
    """Run a phase of this program in new namespaces; end if it fails."""
    command = ["unshare", *namespaces, sys.executable, __file__, "--phase", phase, *options]
    if status := subprocess.run(command).returncode:
        sys.exit(status)


def a_model(folder: Path) -> Path:
    """Train and export a small network, with the Python that runs this."""
    thumbnet = [sys.executable, "-m", "thumbnet"]
    run, model = folder / "run", folder / "model.onnx"
    subprocess.run([*thumbnet, "train", "digits", "--epochs", "2", "--quiet", "--out", run], check=True)
    subprocess.run([*thumbnet, "export", run, "--format", "onnx", "--out", model], check=True)
    return model


def build(python: Path, model: Path, scratch: str) -> None:
    """Run the build stage below an /opt of our own, and then the other stage."""
    mount("-t", "tmpfs", "none", scratch)
    upper, work = Path(scratch, "upper"), Path(scratch, "work")
    upper.mkdir(mode=0o755)
    work.mkdir()
    mount("-t", "overlay", "overlay", "-o", f"lowerdir=/opt,upperdir={upper},workdir={work}", "/opt")
    base = Path("/opt/base")
    base.mkdir()
    mount("--bind", str(python), str(base))  # the image's user may not look into /root
    subprocess.run([base / "bin" / "python3", "-m", "venv", "/opt/image"], check=True)
    run_build(read_stages(ROOT / "Dockerfile")["build"])
    shutil.copyfile(model, "/opt/model.onnx")
    report_size()
    make_read_only()
    again("serve", ["--mount", "--net"])


def mount(*arguments: str) -> None:
    """Call mount."""
    subprocess.run(["mount", *arguments], check=True)


def run_build(stage: Stage) -> None:
    """Do what WORKDIR, COPY and RUN say. `python` is that of a fresh environment instead of the image's."""
    place = Path("/opt")
    environment = {
        **os.environ,
        "PATH": f"/opt/image/bin:{os.environ['PATH']}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    environment.pop("PYTHONPATH", None)
    for keyword, arguments in stage.instructions:
        began = time.monotonic()
        if keyword == "WORKDIR":
            place = Path(arguments)
            place.mkdir(parents=True)
        elif keyword == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                copy(ROOT / source, place / target)
        elif keyword == "RUN":
            subprocess.run(
                arguments, shell=True, cwd=place, env=environment, check=True, stdout=subprocess.DEVNULL
            )
            print(f"{time.monotonic() - began:5.1f} s  {arguments[:90]}", flush=True)
        else:
            sys.exit(f"docker_steps: does not know {keyword}")


def copy(source: Path, target: Path) -> None:
    """COPY: a file into a folder, or a folder's contents."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    else:
        target.mkdir(exist_ok=True)
        shutil.copyfile(source, target / source.name)


def report_size() -> None:
    """Print what is installed, and how large it is."""
    (packages,) = PREFIX.glob("lib/python3.*/site-packages")
    sizes = {one.name: size_of(one) for one in packages.iterdir()}
    number = len(list(packages.glob("*.dist-info")))
    largest = [f"{name} {sizes[name]:.0f}" for name in sorted(sizes, key=lambda name: -sizes[name])[:5]]
    print(
        f"site-packages: {sum(sizes.values()):.0f} MB in {number} packages; {', '.join(largest)}", flush=True
    )
    for module in ("torch", "pip", "setuptools"):
        found = subprocess.run(
            [PREFIX / "bin/python", "-I", "-c", f"import {module}"], capture_output=True, cwd="/"
        )
        assert b"ModuleNotFoundError" in found.stderr, f"{module} can be imported"


def size_of(path: Path) -> float:
    """The size of a file, or of all files in a folder, in MB."""
    return sum(one.stat().st_size for one in [path, *path.rglob("*")] if one.is_file()) / 1e6


def make_read_only() -> None:
    """Make every mounted file system read-only in this namespace, and /tmp an empty one in memory."""
    mount("--make-rprivate", "/")
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in points:
        if not point.startswith(("/proc", "/sys", "/dev")):
            mount("-o", "remount,bind,ro", point)
    mount("-t", "tmpfs", "-o", "mode=1777,noexec,nosuid,nodev,size=64m", "none", "/tmp")


def serve() -> None:
    """Start the service as the image does, and use it."""
    stage = read_stages(ROOT / "Dockerfile")["serve"]
    loopback_up()
    command = [*as_user(stage), *stage.words("ENTRYPOINT"), "/opt/model.onnx"]
    server = subprocess.Popen(
        command, env=environment(stage), cwd=stage.last("WORKDIR"), stdin=subprocess.DEVNULL
    )
    try:
        wait_until_ready(server)
        writes_nothing(stage)
        health = [*as_user(stage), *stage.words("HEALTHCHECK")]
        behind_proxy = {**environment(stage), "http_proxy": "http://127.0.0.1:9"}  # where nothing listens
        assert subprocess.run(health, env=behind_proxy).returncode == 0, "the health check fails"
        assert predict(picture(8)) == 200
        assert predict(picture(1600)) == 200, "a large upload is refused"
        finishes_what_it_accepted(server)
    finally:
        server.kill()
    print("docker_steps: 1 passed, 0 failed", flush=True)


def environment(stage: Stage) -> dict[str, str]:
    """What ENV sets, and where this machine's Python, at a place it was not built for, finds its library."""
    return {**stage.environment(), "LD_LIBRARY_PATH": "/opt/base/lib"}


def as_user(stage: Stage) -> list[str]:
    """What starts a command as the stage's user, without any capability."""
    user, group = stage.last("USER").split(":")
    drop = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    return ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *drop]


def loopback_up() -> None:
    """Switch on the loopback device of a new network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = 0x1 | 0x40  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", up))  # SIOCSIFFLAGS


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    """Wait until /readyz says yes, for at most a minute."""
    for _ in range(600):
        assert server.poll() is None, f"the service ended with status {server.returncode}"
        try:
            if get("/readyz") == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service is not ready after a minute")


def writes_nothing(stage: Stage) -> None:
    """See that the service's user can write only in /tmp, and that the service has left nothing there."""
    for place in ("/", "/opt/thumbnet", "/var/tmp", "/opt"):
        touch = subprocess.run([*as_user(stage), "touch", f"{place}/x"], capture_output=True)
        assert touch.returncode != 0, f"{place} can be written to"
    assert not list(Path("/tmp").iterdir()), "the service has written to /tmp"


def get(path: str) -> int:
    """The status of a GET request."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    connection.request("GET", path)
    return connection.getresponse().status


def picture(side: int) -> bytes:
    """A noisy picture, so that it does not compress."""
    from PIL import Image

    noise = os.urandom(3 * side * side)
    data = io.BytesIO()
    Image.frombytes("RGB", (side, side), noise).save(data, "png")
    return data.getvalue()


def upload(data: bytes) -> tuple[http.client.HTTPConnection, bytes]:
    """A connection that has sent the head of a request for predictions, and the body to send."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        + data
        + b"\r\n--x--\r\n"
    )
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders()
    return connection, body


def predict(data: bytes) -> int:
    """The status of a request for predictions; a 200 must hold classes."""
    connection, body = upload(data)
    connection.send(body)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    assert answer.status != 200 or content["predictions"][0]["classes"]
    return answer.status


def finishes_what_it_accepted(server: subprocess.Popen[bytes]) -> None:
    """Ask the service to stop while a request is on its way; it must answer, and end with status 0."""
    connection, body = upload(picture(100))
    connection.send(body[:100])
    time.sleep(0.5)
    server.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    connection.send(body[100:])
    assert connection.getresponse().status == 200, "a request was lost"
    assert server.wait(timeout=25) == 0, f"status {server.returncode}"


if __name__ == "__main__":
    main()
