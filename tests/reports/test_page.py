from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from helpers import TINY, coloured_data, write_class_folders
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.explain import likely_label_errors, lit, occlusion_map
from thumbnet.cli import main
from thumbnet.data.images import Preprocessing
from thumbnet.data.splits import Data
from thumbnet.recipes.settings import ModelSettings
from thumbnet.reports.page import write_report
from thumbnet.runs.folder import Run
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.training.train import train


class _SeesACorner(Classifier):
    """Says the second class by how bright a corner is, of pictures 24 wide and 16 high."""

    def __init__(self) -> None:
        pre = Preprocessing((16, 24), "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        super().__init__(WeightsInfo(ModelSettings(), ("dark", "bright"), pre, "fp32", "", ""))

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        bright = pixels[:, 2:6, 16:22].mean(axis=(1, 2, 3)) / 255
        return np.stack([np.zeros_like(bright), 8 * bright - 4], axis=1).astype(np.float32)


def test_the_heat_is_where_the_classifier_looks() -> None:
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[2:6, 16:22] = 255
    heat = occlusion_map(_SeesACorner(), pixels, 1)
    assert heat.shape == (16, 24)
    assert (heat.min(), heat.max()) == (0, 1)
    assert heat[2:6, 16:22].mean() > 0.8
    assert heat[:, :8].max() < 0.01
    # For the other class covering the corner helps, and nothing costs.
    assert occlusion_map(_SeesACorner(), pixels, 0).max() < 0.01


def test_light_falls_on_the_heat() -> None:
    pixels = np.full((4, 4, 3), 200, dtype=np.uint8)
    shown = lit(pixels, np.eye(4, dtype=np.float32))
    assert (shown[0, 0] == 200).all()
    assert (shown[0, 1] < 30).all()


def test_planted_label_errors_are_found() -> None:
    rng = np.random.default_rng(0)
    actual = rng.integers(0, 4, 2000)
    logits = rng.normal(size=(2000, 4))
    logits[np.arange(2000), actual] += 5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = actual.copy()
    planted = rng.choice(2000, 60, replace=False)
    labels[planted] = (actual[planted] + rng.integers(1, 4, 60)) % 4
    found = likely_label_errors(probabilities, labels)
    assert len(set(found[:60]) & set(planted)) >= 52  # precision of what is shown first
    assert len(set(found) & set(planted)) >= 56  # recall
    assert len(likely_label_errors(probabilities, actual)) < 40


def test_a_class_without_pictures_is_never_the_better_label() -> None:
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8]])
    assert likely_label_errors(probabilities, np.array([0, 0])).tolist() == []


def test_a_report_stands_alone(tiny_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(tiny_run, coloured_data(), "test", out)
    page = out.read_text("utf-8")
    assert not re.search(r"(?:src|href|action)=\"(?!#|data:)|@import|url\((?!#)", page)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert out.stat().st_size < 1_000_000
    names = re.findall(r'id="([^"]+)"', page)
    assert len(names) == len(set(names))
    for target in re.findall(r'(?:href="#|url\(#|xlink:href="#)([^")]+)', page):
        assert target in names
    assert page.count("<img") == page.count('<img src="data:image/webp;base64,')
    assert len(re.findall(r"<img(?![^>]*alt=)", page)) == 0


def test_names_are_text_on_the_page(tmp_path: Path) -> None:
    """Class names come from folders that strangers make."""
    evil = "</script><img src=x onerror=alert(1)>"
    plain = coloured_data()
    data = Data(evil, evil, (evil, "green", "blue"), plain.splits)
    run = train(data, "resnet18", overrides=[*TINY, "training.epochs=1"], out=tmp_path / "run", device="cpu")
    write_report(run, data, "test", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "&lt;/script&gt;&lt;img src=x" in page
    assert evil not in page
    assert page.count("</script>") == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_class_folders(tmp_path / "data", ("train", "test"))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "data"), "--out", str(run), "--epochs", "1"]) == 0
    assert main(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (run / "report.html").is_file()
    assert main(["report", str(run), "--split", "val"]) == 2
    assert main(["report", str(tmp_path / "nothing")]) == 2
