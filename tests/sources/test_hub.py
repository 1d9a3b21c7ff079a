from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers import coloured
from sources.hub_standin import HubStandIn

datasets: Any = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")

NAMES = ["red", "green", "blue"]
CARD = b"""---
configs:
- config_name: plain_text
  data_files:
  - split: train
    path: plain_text/train-*
  - split: test
    path: plain_text/test-*
---
"""


def encoded(label: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(coloured(label, seed)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(count: int, features: dict[str, Any] | None = None, **columns: list[Any]) -> bytes:
    kinds = features or {"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    made = {"img": [{"bytes": encoded(i % 3, i), "path": None} for i in range(count)], **columns}
    made.setdefault("label", [i % 3 for i in range(count)])
    table = datasets.Dataset.from_dict(made, features=datasets.Features(kinds))
    buffer = io.BytesIO()
    table.to_parquet(buffer)
    return buffer.getvalue()


def load(hub: HubStandIn, source: str, home: Path) -> subprocess.CompletedProcess[str]:
    """``load_data(source)`` in a process of its own, whose Hub is ``hub``."""
    code = (
        "import json, sys; from thumbnet.sources.load import load_data\n"
        "from thumbnet.errors import ThumbnetError\n"
        "try: data = load_data(sys.argv[1])\n"
        "except ThumbnetError as error: sys.exit(f'refused: {error}')\n"
        "print(json.dumps([data.class_names, {k: s.labels.tolist() for k, s in data.splits.items()},\n"
        "    [list(data.splits['train'].read(i).getpixel((3, 3))) for i in range(3)]]))"
    )
    with hub.serve() as address:
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [sys.executable, "-c", code, source]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_data_set_in_parquet_is_read_as_cifar10s_mirror_is(tmp_path: Path) -> None:
    files = {
        "README.md": CARD,
        "plain_text/train-00000-of-00001.parquet": parquet(9),
        "plain_text/test-00000-of-00001.parquet": parquet(3),
    }
    done = load(HubStandIn("uoft-cs/tiny", files), "hf:uoft-cs/tiny", tmp_path)
    assert done.returncode == 0, done.stderr
    names, labels, pixels = json.loads(done.stdout.splitlines()[-1])
    assert names == NAMES
    assert labels == {"train": [0, 1, 2] * 3, "test": [0, 1, 2]}
    assert pixels == [coloured(i, i)[3, 3].tolist() for i in range(3)]


def test_a_data_set_in_folders_of_pictures_is_read(tmp_path: Path) -> None:
    files = {
        f"{split}/{name}/{number}.png": encoded(label, number)
        for split in ("train", "validation")
        for label, name in enumerate(NAMES)
        for number in range(2)
    }
    done = load(HubStandIn("someone/pictures", files), "hf:someone/pictures", tmp_path)
    assert done.returncode == 0, done.stderr
    names, labels, _ = json.loads(done.stdout.splitlines()[-1])
    assert names == sorted(NAMES)
    assert sorted(labels["train"]) == [0, 0, 1, 1, 2, 2]
    assert set(labels) == {"train", "val"}


def test_a_data_set_of_another_kind_or_none_at_all_is_explained(tmp_path: Path) -> None:
    other = parquet(3, {"img": datasets.Image(), "label": datasets.Value("string")}, label=["a", "b", "c"])
    hub = HubStandIn("someone/other", {"data/train-00000-of-00001.parquet": other})
    done = load(hub, "hf:someone/other", tmp_path)
    assert "refused" in done.stderr
    assert "no image-classification data set" in done.stderr
    done = load(hub, "hf:someone/missing", tmp_path)
    assert "refused: cannot load hf:someone/missing" in done.stderr


def test_one_of_several_label_columns_can_be_chosen(tmp_path: Path) -> None:
    two = parquet(
        3,
        {
            "img": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "coarse": datasets.ClassLabel(names=["warm", "cold"]),
        },
        coarse=[0, 1, 1],
    )
    hub = HubStandIn("x/y", {f"data/{s}-00000-of-00001.parquet": two for s in ("train", "test")})
    done = load(hub, "hf:x/y#coarse", tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])[:2] == [
        ["warm", "cold"],
        {"train": [0, 1, 1], "test": [0, 1, 1]},
    ]
