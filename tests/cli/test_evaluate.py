from __future__ import annotations

import json
from pathlib import Path

from cli_helpers import run_cli
from thumbnet.runs.folder import Run


def test_evaluating_a_run_gives_the_accuracy_that_training_reported(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    out, _, _ = trained
    accuracy = Run(out).summary["accuracy"]
    plot = tmp_path / "confusion.png"
    status, stdout, _ = run_cli("evaluate", out, "--plot", plot)
    assert status == 0
    assert f"accuracy           {100 * accuracy:.2f} %" in stdout
    for word in (
        "95 % interval",
        "loss",
        "calibration error",
        "precision",
        "recall",
        "F1",
        "confusion",
        "green",
    ):
        assert word in stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    status, stdout, _ = run_cli("evaluate", out, "--json")
    values = json.loads(stdout)
    assert values["accuracy"] == accuracy
    assert sum(map(sum, values["confusion"])) == values["pictures"] == 60
    assert {"interval", "loss", "calibration_error", "classes", "top5"} <= set(values)


def test_other_data_another_split_and_test_time_augmentation_can_be_chosen(
    trained: tuple[Path, str, str], folder: Path
) -> None:
    out, _, _ = trained
    status, stdout, _ = run_cli(
        "evaluate", out / "model.safetensors", folder, "--split", "train", "--tta", "mirror"
    )
    assert status == 0
    assert "train: 60 pictures (test-time augmentation: mirror)" in stdout
    status, _, stderr = run_cli("evaluate", out / "model.safetensors")
    assert status == 2
    assert "name the data (DATA)" in stderr
    status, _, stderr = run_cli("evaluate", out, "--split", "val")
    assert status == 2
    assert "no split 'val'" in stderr


def test_a_run_is_evaluated_in_batches_of_its_own_size(
    small_batches: Run, folder: Path, batch_sizes: list[int]
) -> None:
    for place in (small_batches.path, small_batches.weights_path):
        status, _, stderr = run_cli("evaluate", place, folder, "--device", "cpu")
        assert status == 0, stderr
    assert batch_sizes == [7, 7]
