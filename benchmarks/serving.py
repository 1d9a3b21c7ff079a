"""Measures the service under load: wrk sends one picture per request, with dynamic batching and without.

    python benchmarks/serving.py /tmp/cifarrun cats.onnx --json serving.json

Both servers run all the time and receive load in turns, so that noise on the machine affects both alike. wrk
(apt install wrk) runs on the same machine and takes its share of the processors.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from measure import matrix_rate, median, parser, report, spread
from PIL import Image

from thumbnet.hardware import choose_device

SERVERS = {"batched": "64", "unbatched": "1"}
UNIT_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


def main() -> None:
    """Measure, print a table, and write JSON."""
    arguments = parser(__doc__, rounds=5, device="auto")
    arguments.add_argument("models", nargs="+", metavar="MODEL", help="runs, or ONNX files")
    arguments.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    arguments.add_argument("--seconds", type=int, default=4, help="seconds per measurement")
    options = arguments.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt install wrk")
    device = choose_device(options.device)
    rows, results = [], {}
    for model in options.models:
        rates: dict[str, list[float]] = {}
        late: dict[str, list[tuple[float, float]]] = {}
        with ExitStack() as stack:
            script = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".lua"))
            script.write(_script())
            script.flush()
            addresses = {name: _serve(stack, model, batch, options.device) for name, batch in SERVERS.items()}
            for round_ in range(options.rounds + 1):
                for clients in options.clients:
                    for name, address in addresses.items():
                        found = _load(address, clients, options.seconds if round_ else 1, script.name)
                        if round_:  # the first round warms up
                            rates.setdefault(f"{name} {clients}", []).append(found[0])
                            late.setdefault(f"{name} {clients}", []).append(found[1:])
        for clients in options.clients:
            ratio = median(
                [
                    a / b
                    for a, b in zip(rates[f"batched {clients}"], rates[f"unbatched {clients}"], strict=True)
                ]
            )
            for name in SERVERS:
                key = f"{name} {clients}"
                p50, p99 = (median([one[n] for one in late[key]]) for n in (0, 1))
                rows.append([
                    Path(model).name, str(clients), name, f"{median(rates[key]):,.0f}", spread(rates[key]),
                    f"{p50:.1f}", f"{p99:.1f}", f"{ratio:.2f}" if name == "batched" else "",
                ])  # fmt: skip
        results[str(model)] = {"rates": rates, "p50_p99_ms": late}
    title = f"serving, product {matrix_rate(device):.2f} TFLOP/s, n = {options.rounds} of {options.seconds} s"
    header = ["model", "clients", "server", "requests/s", "spread", "p50, ms", "p99, ms", "ratio"]
    report(title, header, rows, options.json, {"models": results}, device)


def _script() -> str:
    """A Lua script by which wrk sends a JPEG of 32x32 pixels."""
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((32, 32), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    body = "".join(f"\\{byte:03d}" for byte in stream.getvalue())
    return f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "image/jpeg"\nwrk.body = "{body}"\n'


def _serve(stack: ExitStack, model: str, batch: str, device: str) -> str:
    command = [sys.executable, "-m", "thumbnet", "serve", model, "--data", "none", "--port", "0"]
    command += ["--access-log", "off"]
    if not model.endswith(".onnx"):  # which runs only on the CPU
        command += ["--device", device]
    process = subprocess.Popen([*command, "--max-batch", batch], stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    assert process.stdout
    line = process.stdout.readline()
    found = re.search(r"http://\S+", line)
    if not found:
        raise SystemExit(f"the service did not start: {line}")
    return found.group()


def _load(address: str, clients: int, seconds: int, script: str) -> tuple[float, float, float]:
    """Requests per second, and the median and the 99th percentile of their latency in milliseconds."""
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "-s", script, f"{address}/predict"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"requests failed:\n{text}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", text)
    tails = [re.search(rf"{percent}%\s+([\d.]+)(us|ms|s|m)", text) for percent in (50, 99)]
    assert found
    p50, p99 = (float(one[1]) * UNIT_MS[one[2]] for one in tails if one)
    return float(found[1]), p50, p99


if __name__ == "__main__":
    main()
