from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import coloured
from sources.hub_standin import HubStandIn
from thumbnet.errors import DataError, UnreadableImageError
from thumbnet.sources import hub as hub_source
from thumbnet.sources.load import load_data

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
    """Run ``load_data(source)`` in a new process that uses ``hub`` as its Hub."""
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


def test_a_data_set_in_parquet_laid_out_like_cifar10_is_read(tmp_path: Path) -> None:
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


def test_the_error_explains_a_data_set_of_another_kind_or_a_missing_one(tmp_path: Path) -> None:
    lists = datasets.Sequence(datasets.Value("int64"))
    other = parquet(3, {"img": datasets.Image(), "label": lists}, label=[[1], [2], [3]])
    hub = HubStandIn("someone/other", {"data/train-00000-of-00001.parquet": other})
    done = load(hub, "hf:someone/other", tmp_path)
    assert "refused" in done.stderr
    assert "cannot tell which column has the labels: none looks like labels" in done.stderr
    assert "Its columns: img (Image), label (" in done.stderr
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


def saved(path: Path, splits: dict[str, Any]) -> Path:
    """A folder saved by the library; reading it needs no Hub."""
    made = {
        name: datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        for name, (columns, features) in splits.items()
    }
    datasets.DatasetDict(made).save_to_disk(str(path))
    return path


def columns(count: int, start: int = 0, **labels: list[Any]) -> dict[str, list[Any]]:
    pictures = [{"bytes": encoded((start + i) % 3, start + i), "path": None} for i in range(count)]
    return {"image": pictures, **labels}


IMAGE, TEXT, NUMBER = datasets.Image(), datasets.Value("string"), datasets.Value("int64")


def test_words_and_numbers_are_labels_too(tmp_path: Path) -> None:
    words = columns(12, label=[("frog", "cat", "dog")[i % 3] for i in range(12)])
    data = load_data(saved(tmp_path / "words", {"train": (words, {"image": IMAGE, "label": TEXT})}))
    assert data.class_names == ("cat", "dog", "frog")
    numbers = columns(12, label=[(10, 2, 7)[i % 3] for i in range(12)])
    data = load_data(saved(tmp_path / "numbers", {"train": (numbers, {"image": IMAGE, "label": NUMBER})}))
    assert data.class_names == ("2", "7", "10")
    train = data.splits["train"]
    colours = {
        int(train.labels[i]): np.asarray(train.read(i))[..., :].mean((0, 1)).argmax() for i in range(9)
    }
    assert colours == {2: 0, 0: 1, 1: 2}  # 10 is red, 2 is green, 7 is blue


def test_a_label_column_is_found_by_its_values_or_can_be_named(tmp_path: Path) -> None:
    made = columns(12, kind=["a", "b", "c"] * 4, note=[f"text {i}" for i in range(12)])
    folder = saved(tmp_path / "one", {"train": (made, {"image": IMAGE, "kind": TEXT, "note": TEXT})})
    data = load_data(folder)
    assert data.class_names == ("a", "b", "c")
    assert any("column 'kind'" in note for note in data.notes)
    made["place"] = ["x", "y"] * 6
    two = saved(
        tmp_path / "two", {"train": (made, {"image": IMAGE, "kind": TEXT, "note": TEXT, "place": TEXT})}
    )
    with pytest.raises(DataError, match=r"several columns may be the label \(kind, place\)"):
        load_data(two)
    assert load_data(two, label_column="place").class_names == ("x", "y")


def test_splits_may_have_any_usual_name_and_a_note_lists_those_without_labels(tmp_path: Path) -> None:
    features = {"image": IMAGE, "label": datasets.ClassLabel(names=NAMES)}
    folder = saved(
        tmp_path / "d",
        {
            "Training": (columns(12, label=[0, 1, 2] * 4), features),
            "dev": (columns(3, 20, label=[0, 1, 2]), features),
            "testing": (columns(4, 30, label=[-1] * 4), features),
            "unsupervised": (columns(2, 40, label=[-1] * 2), features),
        },
    )
    data = load_data(folder)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "val": 3}
    assert "test: 4 of 4 pictures were left out because they have no label" in data.notes
    assert "the split 'unsupervised' was left out" in data.notes


def test_a_note_says_which_of_several_columns_of_pictures_is_read(tmp_path: Path) -> None:
    made = columns(12, label=[0, 1, 2] * 4)
    made["mask"] = list(reversed(made["image"]))
    features = {"image": IMAGE, "mask": IMAGE, "label": datasets.ClassLabel(names=NAMES)}
    folder = saved(tmp_path / "d", {"train": (made, features)})
    data = load_data(folder)
    assert any("pictures: column 'image'; choose another (mask)" in note for note in data.notes)
    other = load_data(folder, path_column="mask")
    assert other.splits["train"].content(0) != data.splits["train"].content(0)


def test_a_column_of_bytes_is_read_as_pictures(tmp_path: Path) -> None:
    made = {"jpg": [encoded(i % 3, i) for i in range(12)], "label": ["a", "b", "c"] * 4}
    data = load_data(saved(tmp_path / "d", {"all": (made, {"jpg": datasets.Value("binary"), "label": TEXT})}))
    assert len(data.splits["train"]) + len(data.splits["test"]) == 12
    made["jpg"] = [b"no picture"] * 12
    bad = load_data(
        saved(tmp_path / "bad", {"all": (made, {"jpg": datasets.Value("binary"), "label": TEXT})})
    )
    with pytest.raises(UnreadableImageError):
        bad.splits["train"].read(0)


def test_a_damaged_folder_saved_by_the_library_is_refused(tmp_path: Path) -> None:
    folder = saved(
        tmp_path / "d", {"train": (columns(3, label=["a", "b", "c"]), {"image": IMAGE, "label": TEXT})}
    )
    for path in folder.rglob("*.arrow"):
        path.write_bytes(b"ARROW1" + bytes(40))
    with pytest.raises(DataError, match="cannot load"):
        load_data(folder)


def test_a_lack_of_memory_is_not_taken_for_a_data_set_that_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MemoryError):
        hub_source.load_hub("someone/pictures", "hf:someone/pictures", None)
