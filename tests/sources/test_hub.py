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
from sources.hub_standin import HubStandIn, serve_all
from thumbnet.errors import DataError, UnreadableImageError
from thumbnet.sources import hub as hub_source
from thumbnet.sources.load import load_data

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
IMAGE, TEXT, NUMBER, BYTES = "image", "string", "int64", "binary"


def library() -> Any:
    """The library ``datasets``. Importing it takes seconds, and every worker imports this module."""
    return pytest.importorskip("datasets", reason="the extra 'hub' is not installed")


def kind_of(kind: Any) -> Any:
    """A column's type: ``IMAGE``, the name of a type of values, the names of classes, or a type already."""
    if isinstance(kind, list):
        return library().ClassLabel(names=kind)
    if isinstance(kind, str):
        return library().Image() if kind == IMAGE else library().Value(kind)
    return kind


def table_of(columns: dict[str, list[Any]], kinds: dict[str, Any]) -> Any:
    """A table of the library with these columns; see :func:`kind_of`."""
    features = library().Features({name: kind_of(kind) for name, kind in kinds.items()})
    return library().Dataset.from_dict(columns, features=features)


def encoded(label: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(coloured(label, seed)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(count: int, kinds: dict[str, Any] | None = None, **columns: list[Any]) -> bytes:
    made = {"img": [{"bytes": encoded(i % 3, i), "path": None} for i in range(count)], **columns}
    made.setdefault("label", [i % 3 for i in range(count)])
    buffer = io.BytesIO()
    table_of(made, kinds or {"img": IMAGE, "label": NAMES}).to_parquet(buffer)
    return buffer.getvalue()


PROGRAM = """
import json, sys
from thumbnet.errors import ThumbnetError
from thumbnet.sources.load import load_data

found = {}
for source in sys.argv[1:]:
    try:
        data = load_data(source)
    except ThumbnetError as error:
        found[source] = f"refused: {error}"
        continue
    labels = {name: split.labels.tolist() for name, split in data.splits.items()}
    pixels = [list(data.splits["train"].read(i).getpixel((3, 3))) for i in range(3)]
    found[source] = [data.class_names, labels, pixels]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``load_data`` gives for each source: class names, labels by split and three pixels, or the error.

    All are loaded in one new process, which uses a stand-in for the Hub, because it takes seconds to start.
    """
    like_cifar10 = {
        "README.md": CARD,
        "plain_text/train-00000-of-00001.parquet": parquet(9),
        "plain_text/test-00000-of-00001.parquet": parquet(3),
    }
    in_folders = {
        f"{split}/{name}/{number}.png": encoded(label, number)
        for split in ("train", "validation")
        for label, name in enumerate(NAMES)
        for number in range(2)
    }
    lists = library().Sequence(library().Value(NUMBER))
    other = parquet(3, {"img": IMAGE, "label": lists}, label=[[1], [2], [3]])
    two = parquet(3, {"img": IMAGE, "label": NAMES, "coarse": ["warm", "cold"]}, coarse=[0, 1, 1])
    hubs = (
        HubStandIn("uoft-cs/tiny", like_cifar10),
        HubStandIn("someone/pictures", in_folders),
        HubStandIn("someone/other", {"data/train-00000-of-00001.parquet": other}),
        HubStandIn("x/y", {f"data/{s}-00000-of-00001.parquet": two for s in ("train", "test")}),
    )
    names = ("uoft-cs/tiny", "someone/pictures", "someone/other", "someone/missing", "x/y#coarse")
    with serve_all(*hubs) as address:
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        command = [sys.executable, "-c", PROGRAM, *(f"hf:{name}" for name in names)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_data_set_in_parquet_laid_out_like_cifar10_is_read(loaded: dict[str, Any]) -> None:
    names, labels, pixels = loaded["hf:uoft-cs/tiny"]
    assert names == NAMES
    assert labels == {"train": [0, 1, 2] * 3, "test": [0, 1, 2]}
    assert pixels == [coloured(i, i)[3, 3].tolist() for i in range(3)]


def test_a_data_set_in_folders_of_pictures_is_read(loaded: dict[str, Any]) -> None:
    names, labels, _ = loaded["hf:someone/pictures"]
    assert names == sorted(NAMES)
    assert sorted(labels["train"]) == [0, 0, 1, 1, 2, 2]
    assert set(labels) == {"train", "val"}


def test_the_error_explains_a_data_set_of_another_kind_or_a_missing_one(loaded: dict[str, Any]) -> None:
    refused = loaded["hf:someone/other"]
    assert "refused" in refused
    assert "cannot tell which column has the labels: none looks like labels" in refused
    assert "Its columns: img (Image), label (" in refused
    assert "refused: cannot load hf:someone/missing" in loaded["hf:someone/missing"]


def test_one_of_several_label_columns_can_be_chosen(loaded: dict[str, Any]) -> None:
    assert loaded["hf:x/y#coarse"][:2] == [["warm", "cold"], {"train": [0, 1, 1], "test": [0, 1, 1]}]


def saved(path: Path, splits: dict[str, Any]) -> Path:
    """A folder saved by the library; reading it needs no Hub."""
    made = {name: table_of(columns, kinds) for name, (columns, kinds) in splits.items()}
    library().DatasetDict(made).save_to_disk(str(path))
    return path


def columns(count: int, start: int = 0, **labels: list[Any]) -> dict[str, list[Any]]:
    pictures = [{"bytes": encoded((start + i) % 3, start + i), "path": None} for i in range(count)]
    return {"image": pictures, **labels}


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
    features = {"image": IMAGE, "label": NAMES}
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
    features = {"image": IMAGE, "mask": IMAGE, "label": NAMES}
    folder = saved(tmp_path / "d", {"train": (made, features)})
    data = load_data(folder)
    assert any("pictures: column 'image'; choose another (mask)" in note for note in data.notes)
    other = load_data(folder, path_column="mask")
    assert other.splits["train"].content(0) != data.splits["train"].content(0)


def test_a_column_of_bytes_is_read_as_pictures(tmp_path: Path) -> None:
    made = {"jpg": [encoded(i % 3, i) for i in range(12)], "label": ["a", "b", "c"] * 4}
    data = load_data(saved(tmp_path / "d", {"all": (made, {"jpg": BYTES, "label": TEXT})}))
    assert len(data.splits["train"]) + len(data.splits["test"]) == 12
    made["jpg"] = [b"no picture"] * 12
    bad = load_data(saved(tmp_path / "bad", {"all": (made, {"jpg": BYTES, "label": TEXT})}))
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


def naming(folder: Path, *paths: str | None) -> Path:
    """A saved folder, written by hand: its rows name files in place of the bytes of pictures."""
    pictures = library().Features(bytes=library().Value(BYTES), path=library().Value(TEXT))
    rows = [{"bytes": None, "path": path} for path in paths]
    table = ({"image": rows, "label": ["a", "b", "c"]}, {"image": dict(pictures), "label": TEXT})
    return saved(folder, {"train": table})


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes by name on Windows")
@pytest.mark.parametrize("how", ["absolute", "relative", "link", "pipe", "device", "none", "NUL"])
def test_a_row_that_names_a_file_of_the_users_or_none_is_refused_by_its_name(
    how: str, tmp_path: Path
) -> None:
    own = tmp_path / "own.png"
    own.write_bytes(encoded(0, 0))
    folder = tmp_path / "d"
    named = {
        "absolute": str(own),
        "relative": "../own.png",
        "device": "/dev/zero",
        "none": None,
        "NUL": "a\0.png",
    }.get(how, "x.png")
    naming(folder, "a.png", named, "a.png")
    (folder / "a.png").write_bytes(encoded(1, 1))
    if how == "link":
        (folder / "x.png").symlink_to(own)
    elif how == "pipe":
        os.mkfifo(folder / "x.png")
    with pytest.raises(DataError) as error:
        load_data(folder)
    reason = {"pipe": "names a folder, a device or a pipe", "none": "has no picture", "NUL": "null"}
    assert reason.get(how, "names a file outside") in str(error.value)
    assert how == "NUL" or "[1]" in str(error.value)


def test_rows_may_name_files_in_the_saved_folder_and_in_the_caches_of_the_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    cache, hub = tmp_path / "downloads", tmp_path / "hub"
    monkeypatch.setattr(library().config, "DOWNLOADED_DATASETS_PATH", cache)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    folder = naming(tmp_path / "d", "a.png", str(cache / "b.png"), str(hub / "c.png"))
    for number, place in enumerate((folder / "a.png", cache / "b.png", hub / "c.png")):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(encoded(number, number))
    train = load_data(folder, test_fraction=0.0).splits["train"]
    assert [train.content(number) for number in range(3)] == [encoded(number, number) for number in range(3)]
    (hub / "c.png").unlink()
    with pytest.raises(DataError, match=r"c\.png: No such file"):
        load_data(folder)


def test_a_lack_of_memory_is_not_taken_for_a_data_set_that_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(library(), "load_dataset", refuse)
    with pytest.raises(MemoryError):
        hub_source.load_hub("someone/pictures", "hf:someone/pictures", None)
