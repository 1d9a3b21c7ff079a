"""Measures predicting: the speed relative to the convolutions alone, and the latency of one picture.

    python benchmarks/predicting.py --networks fastnet resnet18 --json predicting.json

The ceiling is the speed of the network's convolutions alone on the same batches, without any other operation.
"""

from __future__ import annotations

import time
from unittest import mock

import numpy as np
import torch
from measure import matrix_rate, median, parser, report, spread, take_turns
from torch import Tensor, nn

from thumbnet.batches.batches import EvalBatches
from thumbnet.batches.engines import MemoryEngine
from thumbnet.batches.statistics import Normalise
from thumbnet.classifiers.logits import collect_logits
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.rendering import Preprocessing
from thumbnet.hardware import autocast, choose_device, compute_dtype, keep_freed_memory
from thumbnet.kernels import calls
from thumbnet.models import build_model
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.weights_info import WeightsInfo

PREPROCESSING = Preprocessing((32, 32), "pad", (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
NAMES = tuple("0123456789")


def convolutions(model: nn.Module, images: Tensor, dtype: torch.dtype) -> list[tuple[nn.Module, Tensor]]:
    """Each convolution with its input, found without the kernels, which pool within a convolution."""
    found: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda m, inputs: found.append((m, inputs[0].clone())))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with (
        mock.patch.object(calls, "load_kernels", return_value=None),
        torch.inference_mode(),
        autocast(dtype, images.device),
    ):
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    """Measure, print a table, and write JSON."""
    arguments = parser(__doc__, rounds=7)
    arguments.add_argument("--networks", nargs="+", default=["fastnet", "resnet18"])
    arguments.add_argument("--batches", type=int, default=4, help="batches of 500 pictures per round")
    options = arguments.parse_args()
    device = choose_device("cpu")
    keep_freed_memory()
    dtype = compute_dtype("auto", device)
    rows, results = [], {}
    for name in options.networks:
        settings = ModelSettings(name=name)
        weights = build_model(settings, 10).state_dict()
        predictor = Predictor(weights, WeightsInfo(settings, NAMES, PREPROCESSING, "auto", "", ""), "cpu")
        pictures = torch.randint(256, (500 * options.batches, 32, 32, 3), dtype=torch.uint8)
        engine = MemoryEngine(pictures.permute(0, 3, 1, 2), torch.zeros(len(pictures), dtype=torch.int64))
        batches = EvalBatches(engine, Normalise(PREPROCESSING, device), batch_size=500)
        layers = convolutions(predictor.model, next(batches.epoch()).images, dtype)

        def ceiling(layers: list[tuple[nn.Module, Tensor]] = layers) -> None:
            with torch.inference_mode(), autocast(dtype, device):
                for _ in range(options.batches):
                    for module, images in layers:
                        module(images)

        def evaluate(predictor: Predictor = predictor, batches: EvalBatches = batches) -> None:
            collect_logits(predictor.model, batches, dtype=dtype)

        def predict(predictor: Predictor = predictor, pictures: Tensor = pictures) -> None:
            for pixels in pictures.split(500):
                predictor.predict_pixels(pixels.numpy())

        times = take_turns(
            {"convolutions": ceiling, "evaluate": evaluate, "predict": predict}, options.rounds
        )
        one, latencies = pictures[:1].numpy(), []
        for _ in range(300):
            started = time.perf_counter()
            predictor.predict_pixels(one)
            latencies.append(1e3 * (time.perf_counter() - started))
        late = np.percentile(latencies[50:], [50, 99])
        for what in ("evaluate", "predict"):
            used = [a / b for a, b in zip(times["convolutions"], times[what], strict=True)]
            rates = [len(pictures) / t for t in times[what]]
            rows.append([
                name, what, f"{median(rates):,.0f}", spread(rates), f"{median(used):.0%}",
                f"{late[0]:.1f} / {late[1]:.1f}",
            ])  # fmt: skip
        results[name] = {"seconds": times, "latency_ms": latencies[50:]}
    title = f"predicting, product {matrix_rate():.2f} TFLOP/s, n = {options.rounds}, latency n = 250"
    header = ["network", "what", "pictures/s", "spread", "of the ceiling", "one picture, ms, p50 / p99"]
    report(title, header, rows, options.json, {"networks": results})


if __name__ == "__main__":
    main()
