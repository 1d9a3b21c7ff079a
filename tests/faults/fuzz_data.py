"""Targets of the fuzzers: the readers of data sets."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import math
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.fuzz_parts import SCRATCH, Target, folder_of, joined, npy_file, read_data, split
from helpers import coloured
from thumbnet.errors import DataError
from thumbnet.sources import tar
from thumbnet.sources.archives import unpack
from thumbnet.sources.labels import class_names


def _png(label: int = 0, side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(coloured(label, 1, side)).save(buffer, "png")
    return buffer.getvalue()


PNG = _png()
PICTURES = {f"{name}.png": PNG for name in ("a", "b", "c", "d/e", "d/f", "train/g", "train/h", "test/g")}
MULTILABEL = ("auto", True, False, "auto")

# --- arrays -----------------------------------------------------------------------------------------------


def _idx_array(values: np.ndarray) -> bytes:
    kind = 8 if values.dtype == np.uint8 else 12
    return struct.pack(f">HBB{values.ndim}I", 0, kind, values.ndim, *values.shape) + values.tobytes()


def _idx_repaired(content: bytes) -> bytes:
    """Set the first size to what the content has."""
    if len(content) < 8 or not 1 <= content[3] <= 4 or len(content) < 4 + 4 * content[3]:
        return content
    sizes = struct.unpack_from(f">{content[3]}I", content, 4)
    each = math.prod(sizes[1:]) * (4 if content[2] == 12 else 1)
    held = len(content) - 4 - 4 * content[3]
    count = held // each if each else 0
    end = 4 + 4 * content[3] + count * each
    return content[:4] + struct.pack(">I", count & 0xFFFFFFFF) + content[8:end]


def idx(data: bytes) -> object:
    flags, (images, labels, mapping) = split(data, 3)
    if flags & 1:
        images, labels = _idx_repaired(images), _idx_repaired(labels)
    prefix = "emnist-letters-" if flags & 2 else ""
    ending = ".gz" if flags & 4 else ""
    pack = (lambda content: gzip.compress(content, 1)) if flags & 4 else bytes
    files = {
        f"{prefix}train-images-idx3-ubyte{ending}": pack(images),
        f"{prefix}train-labels-idx1-ubyte{ending}": pack(labels),
    }
    if prefix:
        files[f"{prefix}mapping.txt"] = mapping
    return read_data(folder_of(files))


def _idx_seeds() -> list[bytes]:
    images = np.arange(8 * 25, dtype=np.uint8).reshape(8, 5, 5)
    labels = np.array([0, 1] * 4, dtype=np.uint8)
    eight = np.stack([labels] * 8, axis=1).astype(">i4")
    mapping = b"0 65 97\n1 66 98\n"
    return [
        joined(flags, _idx_array(images), _idx_array(one), mapping)
        for flags in (0, 1, 2, 4)
        for one in (labels, eight)
    ]


def _npy_parts(array: np.ndarray) -> tuple[bytes, bytes]:
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    return repr(header).encode(), array.tobytes()


_ARRAY_NAMES = (
    (b"x_train", b"y_train", b"x_test", b"y_test"),
    (b"arr_0", b"arr_1", b"arr_2", b"arr_3"),
    (b"images", b"labels", b"class_names", b"val_images"),
)


def npz(data: bytes) -> object:
    """Flags 1: the parts are four times name, header and values; else the raw file. Flag 2: compressed."""
    flags, parts = split(data, 12)
    if not flags & 1:
        return read_data(folder_of({"a.npz": data[1:]}) / "a.npz", multilabel=MULTILABEL[flags >> 6])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if flags & 2 else zipfile.ZIP_STORED) as zipped:
        for name, header, payload in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            if name.partition(b"\0")[0]:
                zipped.writestr(name.decode("utf-8", "replace") + ".npy", npy_file(header, payload))
    return read_data(
        folder_of({"a.npz": buffer.getvalue()}) / "a.npz",
        multilabel=MULTILABEL[flags >> 6],
        test_fraction=0.0,
    )


def npy(data: bytes) -> object:
    """Four ``.npy`` files in a folder; flag 1: with a header of the right length."""
    flags, parts = split(data, 12)
    files = {}
    for name, header, payload in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if name and b"/" not in name and b"\0" not in name and len(name) < 60:
            content = npy_file(header, payload) if flags & 1 else payload
            files[f"{name.decode('utf-8', 'replace')}.npy"] = content
    return read_data(folder_of(files), test_fraction=0.0)


def _array_seeds() -> list[bytes]:
    grey = np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4)
    several = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1]], dtype=np.uint8)
    pairs: list[tuple[np.ndarray, np.ndarray]] = [
        (grey, np.array([0, 1, 0, 1], dtype=np.int64)),
        (np.stack([grey] * 3, axis=3).astype(np.float32) / 255, np.array(["a", "b", "a", "b"])),
        (np.stack([grey] * 3, axis=1).astype(np.uint16), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]),
        (grey.reshape(4, 16), np.array([[0], [1], [1], [0]], dtype=np.uint8)),
        (grey, several),
        (grey.astype(np.int32), np.array([b"x", b"y", b"x", b"y"])),
    ]
    found = []
    for flags in (1, 3):
        for names in _ARRAY_NAMES[:2]:
            for x, y in pairs:
                if names is _ARRAY_NAMES[1] and x.ndim < 3:
                    continue  # only names tell that rows are pictures
                fields = [field for a in (x, y) for field in _npy_parts(a)]
                fields = [names[0], *fields[:2], names[1], *fields[2:]]
                test = [names[2], *fields[1:3], names[3], *fields[4:]]
                found.append(joined(flags, *fields, *test))
        titles = np.array(["cat", "dog"])
        x, y = pairs[0]
        fields = [
            f for n, a in zip(_ARRAY_NAMES[2], (x, y, titles), strict=False) for f in (n, *_npy_parts(a))
        ]
        found.append(joined(flags, *fields, b"", b"", b""))
    return found


def _npz_seeds() -> list[bytes]:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.zeros((4, 4, 4), np.uint8), y=np.array([0, 1, 0, 1]))
    return [*_array_seeds(), joined(0, buffer.getvalue())]


def _npy_seeds() -> list[bytes]:
    per_class = [f for n in (b"cat", b"dog") for f in (n, *_npy_parts(np.zeros((3, 4, 4), np.uint8)))]
    return [one for one in _array_seeds() if one[0] == 1 and b"arr_0" not in one] + [joined(1, *per_class)]


_NPY_WORDS = (
    b"'|u1'", b"'<f8'", b"'<U3'", b"'|S2'", b"'<M8[ns]'", b"'|V4'", b"'|b1'", b"'<c8'", b"'|O'", b"'<f2'",
    b"'fortran_order': True", b"(4, 1)", b"(0,)", b"(4,)", b"()", b"(4, 2, 8)", b"(2, 4, 2, 4)", b"-1",
    b"class_names", b"x_val", b"y_val", b"[('a', '<i4')]", b"99999999999",
)  # fmt: skip


def mat(data: bytes) -> object:
    """Flag 1: elements, each of which is compressed on its own (flag 2) or not; else the raw file."""
    flags, parts = split(data, 6)
    name = ("a.mat", "train_32x32.mat")[flags >> 7]
    if not flags & 1:
        return read_data(folder_of({name: data[1:]}) / name)
    content = parts[0][:124].ljust(124, b" ") + b"\x00\x01IM"
    for part in parts[1:]:
        if part:
            element = struct.pack("<II", 14, len(part)) + part
            packed = zlib.compress(element, 1)
            content += struct.pack("<II", 15, len(packed)) + packed if flags & 2 else element
    if flags & 4:  # two files that are put together
        folder = folder_of({"train_32x32.mat": content, "extra_32x32.mat": content})
        return read_data(folder / "extra_32x32.mat")
    return read_data(folder_of({name: content}) / name)


def _mat_seeds() -> list[bytes]:
    from scipy.io import savemat

    x = np.arange(4 * 4 * 3 * 6, dtype=np.uint8).reshape(4, 4, 3, 6)
    y = np.array([1, 2, 10] * 2)[:, None]
    found = []
    for values in ({"X": x, "y": y}, {"images": x.astype(float), "labels": y.astype(np.uint8)}):
        for version in ("5", "4"):
            if version == "4" and "X" in values:
                continue
            buffer = io.BytesIO()
            kept = values if version == "5" else {"images": x[0, 0].T, "labels": y[:3]}
            savemat(buffer, kept, format=version)
            raw = buffer.getvalue()
            if version == "5":
                found.append(joined(0, raw))
                elements, at = [], 128
                while at < len(raw):
                    _, size = struct.unpack_from("<II", raw, at)
                    elements.append(raw[at + 8 : at + 8 + size])
                    at += 8 + size
                found += [
                    joined(flags, raw[:116], *elements)
                    for flags in (1, 3, *((0x83, 5) if "X" in values else ()))
                ]
    return found


# --- tables -----------------------------------------------------------------------------------------------

_SUFFIXES = ("csv", "tsv", "txt", "jsonl", "ndjson", "csv", "csv", "csv")


def table(data: bytes) -> object:
    """A table next to pictures. Flags: 3 bits suffix, 2 bits multilabel, 8 within the folder, 32 skip."""
    flags, (content, second) = split(data, 2)
    name = f"train.{_SUFFIXES[flags & 7]}"
    folder = folder_of({**PICTURES, name: content, **({"test.csv": second} if second else {})})
    return read_data(
        folder if flags & 8 else folder / name,
        multilabel=MULTILABEL[flags >> 6],
        on_bad_image="skip" if flags & 32 else "error",
    )


def _table_seeds() -> list[bytes]:
    plain = b"path,label,split\na.png,x,train\nb.png,y,train\nc.png,x,test\nd/e.png,y,test\n"
    ones = b"image,red,blue\na.png,1,0\nb.png,0,1\nc.png,1,0\nd/e.png,0,1\n"
    lists = b'image,tags\na.png,"[""x"", ""y""]"\nb.png,"[\'x\']"\nc.png,"[""y""]"\nd/e.png,"[]"\n'
    lines = b'{"file_name": "a.png", "label": 1}\n{"file_name": "b.png", "label": 2}\n' * 2
    headless = b"a.png x\nb.png y\nc.png x\nd/e.png y\n"
    decided = (
        b"picture,label,split,was,decision\na.png,x,train,y,relabel\nb.png,y,train,y,confirm\n"
        b"c.png,,train,x,drop\n"
    )
    several = b"id;labels\na;x|y\nb;x\nc;y\ne;x|y\nf;x|y\n"
    return [
        joined(0, plain),
        joined(8, plain.replace(b",split", b"").replace(b",train", b"").replace(b",test", b"")),
        joined(0, ones),
        joined(0x40, ones),
        joined(0, lists),
        joined(3, lines),
        joined(2, headless),
        joined(1, plain.replace(b",", b"\t")),
        joined(0, plain.decode().encode("utf-16")),
        joined(0, several),
        joined(0, decided + b"d/e.png,x,train,x,confirm\n"),
        joined(32, plain + b"zz.png,x,train\n"),
        joined(8, b"id,label\na,1.0\nb,2\nc,1\n", b"id,label\ne,1\nf,2.0\n"),
    ]


_TABLE_WORDS = (
    b",", b";", b"\t", b"|", b'"', b"\n", b"\r\n", b"a.png", b"../a.png", b"/etc/passwd", b"C:\\a.png", b"d\\e.png",
    b"\\u0000", b"\\ud800", b"\\u2028", b"null", b"NaN", b"nan", b"1e400", b"-0", b"007", b"1_0", b"[[", b"0x1",
    b"9007199254740993", b"true", b'["x"]', b"['x', 1]", b"label", b"image_id", b"split", b"test", b"\xff", b"\0",
    b"\xef\xbb\xbf", b"1.5", b"inf", b"submission",
)  # fmt: skip


def labels(data: bytes) -> object:
    """Labels of a table's cells: classes are sorted, every label has one, and no two different words share one."""
    words = data.decode("utf-8", "replace").split("\n")
    try:
        found = class_names(words)
    except DataError:
        return None
    assert set(found) == set(words) - {""}
    assert class_names(list(reversed(words))) == found
    for name in set(found.values()):
        same = [word for word in found if found[word] == name]
        assert len(same) == 1 or len({_exactly(word) for word in same}) == 1, same
    return found


def _exactly(word: str) -> object:
    from fractions import Fraction

    return Fraction(word.strip().lower())


def pixels(data: bytes) -> object:
    flags, (content, second) = split(data, 2)
    name = ("train.csv", "a.csv", "emnist-train.csv", "train.tsv")[flags & 3]
    folder = folder_of({name: content, **({"test.csv": second} if second else {})})
    return read_data(folder if flags & 8 else folder / name)


def _pixel_seeds() -> list[bytes]:
    names = ",".join(f"p{n}" for n in range(64))
    row = ",".join(str(n) for n in range(64))
    plain = f"label,{names}\n1,{row}\n2,{row}\n1,{row}\n".encode()
    string = "".join(f"{n % 2},{row.replace(',', ' ')},{u}\n" for n, u in enumerate(("Training",) * 4))
    return [
        joined(1, plain),
        joined(2, plain),
        joined(8, plain, plain),
        joined(1, f"emotion,pixels,Usage\n{string}".encode()),
        joined(1, f"1,{row}\n2,{row}\n1,{row}\n2,{row}\n".encode()),
    ]


def parquet(data: bytes) -> object:
    """Flag 1: a description of columns from which a file is written; else the raw file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flags, parts = split(data, 8)
    settings = {"multilabel": MULTILABEL[flags >> 6]}
    if not flags & 1:
        return read_data(folder_of({**PICTURES, "train.parquet": data[1:]}) / "train.parquet", **settings)
    try:
        columns: dict[str, list[Any]] = {}
        for part in parts[1:]:
            if part:
                name, _, rest = part.decode("utf-8", "replace").partition("=")
                kind, _, values = rest.partition("=")
                columns.setdefault(name, []).append(_arrow(pa, kind, values))
        names = [name for name, found in columns.items() for _ in found]
        arrays = [one for found in columns.values() for one in found]
        length = min(map(len, arrays))
        made = pa.table([one[:length] for one in arrays], names=names)
        buffer = io.BytesIO()
        pq.write_table(made.replace_schema_metadata({b"huggingface": parts[0]}), buffer)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, KeyError, RecursionError):
        return None  # no such file can be written
    content = buffer.getvalue()
    return read_data(folder_of({**PICTURES, "train.parquet": content}) / "train.parquet", **settings)


def _arrow(pa, kind: str, values: str):  # type: ignore[no-untyped-def]
    """A column: ``png`` and ``struct`` hold pictures, other kinds what JSON says."""
    found = json.loads(values)
    if kind == "png":
        return pa.array([PNG if one else None for one in found], pa.binary())
    if kind == "struct":
        return pa.array([{"bytes": PNG if one else None, "path": "a"} for one in found])
    if kind == "text struct":
        return pa.array([{"bytes": str(one)} for one in found])
    if kind == "dictionary":
        return pa.array(found).dictionary_encode()
    kinds = {"timestamp": pa.timestamp("ns"), "decimal": pa.decimal128(5, 2), "duration": pa.duration("us")}
    kinds |= {"float16": pa.float16(), "uint64": pa.uint64(), "large": pa.large_string(), "null": pa.null()}
    kinds |= {"list": pa.list_(pa.int32()), "large list": pa.large_list(pa.string()), "binary": pa.binary()}
    kinds |= {
        "time": pa.time64("ns"),
        "date": pa.date64(),
        "int8": pa.int8(),
        "map": pa.map_(pa.string(), pa.int8()),
    }
    return pa.array(found, kinds.get(kind))


def _parquet_seeds() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = json.dumps({"info": {"features": {"label": {"names": ["x", "y"]}}}}).encode()
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [PNG] * 4, "label": [0, 1] * 2}), buffer)
    return [
        joined(0, buffer.getvalue()),
        joined(1, names, b"image=struct=[1,1,1,1]", b"label==[0,1,0,1]"),
        joined(1, b"{}", b"image=png=[1,1,1,1]", b'label==["x","y","x","y"]'),
        joined(
            1, b"{}", b"image=png=[1,1,1,1]", b'label==[["x"],["y","x"],["x"],[]]', b"id=float16=[1,2,3,4]"
        ),
        joined(1, b"{}", b'path==["a.png","b.png","c.png","d/e.png"]', b'label=dictionary=["x","y","x","y"]'),
        joined(1, b"{}", b'path=large=["a.png","b.png","c.png","d/e.png"]', b"label=list=[[1],[2],[1,2],[]]"),
        joined(1, b"{}", b'path==["a.png","b.png","c.png","d/e.png"]', b"label=int8=[1,2,1,2]"),
    ]


_PARQUET_WORDS = (
    b"=timestamp=", b"=decimal=", b"=duration=", b"=float16=", b"=uint64=", b"=null=", b"=large list=", b"=binary=",
    b"=time=", b"=date=", b"=text struct=", b"=struct=", b"=map=", b"=png=", b"null", b"[null]", b"1e300", b"NaN",
    b'"names": {"a": "x"}', b'"names": 5', b'"names": null', b'"feature"', b"\\u0000", b"\\ud800", b"-1", b"path", b"label",
    b"<|>label==[0,1,0,1]",
)  # fmt: skip


# --- lists ------------------------------------------------------------------------------------------------


def tiny_imagenet(data: bytes) -> object:
    _, (wnids, words, annotations) = split(data, 3)
    files = {f"train/n0000000{n}/images/n0000000{n}_0.JPEG": PNG for n in (1, 2, 3)}
    files |= {f"val/images/val_{n}.JPEG": PNG for n in range(3)} | {"test/images/test_0.JPEG": PNG}
    texts = {"wnids.txt": wnids, "words.txt": words, "val/val_annotations.txt": annotations}
    return read_data(folder_of({**files, **texts}))


def _tiny_imagenet_seeds() -> list[bytes]:
    wnids = b"n00000001\nn00000002\nn00000003\n"
    words = b"n00000001\tcat, kitty\nn00000002\tdog\nn00000003\tdog\n"
    return [
        joined(0, wnids, words, b"val_0.JPEG\tn00000001\t0\t0\nval_1.JPEG\tn00000002\nval_2.JPEG n00000003\n")
    ]


def listed(data: bytes) -> object:
    """Flag 1: CUB-200's four files; else train.txt and test.txt. Flag 2: labels by families."""
    flags, parts = split(data, 4)
    names = ("train.txt", "test.txt", "meta/train.txt", "meta/test.txt")
    if flags & 1:
        names = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    files = {f"images/{n % 2}_kind/p{n}.jpg": PNG for n in range(4)} | {
        "images/q1.jpg": PNG,
        "images/q2.jpg": PNG,
    }
    files |= {name: part for name, part in zip(names, parts, strict=True) if part or flags & 1}
    return read_data(folder_of(files))


def _listed_seeds() -> list[bytes]:
    paths = b"".join(b"%d %d_kind/p%d.jpg\n" % (n, n % 2, n) for n in range(4))
    classes = b"".join(b"%d %d\n" % (n, n % 2) for n in range(4))
    parts = b"0 1\n1 1\n2 0\n3 0\n"
    return [
        joined(1, paths, classes, parts, b"0 000.Cat\n1 001.Dog\n"),
        joined(0, b"0_kind/p0\n1_kind/p1\n", b"0_kind/p2\n1_kind/p3\n"),
        joined(0, b"0_kind/p0.jpg 5\n1_kind/p1.jpg 7\n", b"1_kind/p3.jpg 7\n"),
        joined(0, b"", b"", b"q1 cat one\nq2 dog\n", b"q1 cat one\n"),
    ]


def names(data: bytes) -> object:
    """File names and folders decide about splits and classes. Flag 1: in a tar file; else as files."""
    flags, (text,) = split(data, 1)
    paths = [line for line in text.split(b"\n") if line and b"\0" not in line][:60]
    if flags & 1:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            for path in paths:
                member = tarfile.TarInfo(path.decode("utf-8", "surrogateescape"))
                member.size = len(PNG)
                archive.addfile(member, io.BytesIO(PNG))
        return read_data(folder_of({"a.tar": buffer.getvalue()}) / "a.tar")
    folder = folder_of({})
    for path in paths:
        inside = [part for part in path.split(b"/") if part not in (b"", b".", b"..")]
        if not inside or max(map(len, inside)) > 200 or len(path) > 1000:
            continue
        place = folder.joinpath(*(part.decode("utf-8", "surrogateescape") for part in inside))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(PNG)
        except OSError:  # a folder of that name
            continue
    return read_data(folder)


def _name_seeds() -> list[bytes]:
    trees = [
        b"train/cat/1.png\ntrain/dog/2.png\ntest/cat/3.png\ntest/dog/4.png",
        b"a/cat/1.png\na/cat/2.png\na/dog/3.png\na/dog/4.png",
        b"cat.0.png\ndog.1.png\ncat.2.png\ndog.3.png",
        b"train/0_frog.png\ntrain/1_frog.png\ntrain/2_ship.png\ntrain/3_ship.png",
        b"x/training/cat/a.jpg\nx/training/dog/b.jpg\nx/testing/cat/c.jpg\nREADME.png",
        b"images/american_bulldog_1.jpg\nimages/beagle_2.jpg\nmasks/beagle_2.png",
    ]
    return [joined(flags, tree) for tree in trees[:5] for flags in (0, 1)]


_NAME_WORDS = (
    b"/", b"train/", b"test/", b"val/", b".png", b".JPG", b"\n", b"..", b"./", b"\\", b"__MACOSX/", b".", b" ", b"\xff",
    b"labels/", b"images/", b"cat", b"(1)", b"_", b"\xcc\x81", b"seg_train/", b"e\xcc\x81",
)  # fmt: skip


def binaries(data: bytes) -> object:
    """CIFAR's and STL-10's binary files: headers and names vary, pictures are filled up to whole records."""
    flags, (first, second, text) = split(data, 3)
    if flags & 1:

        def records(part: bytes) -> bytes:
            return b"".join(bytes([byte]) + bytes(3072) for byte in part[:8]) + part[8:]

        files = {f"data_batch_{n}.bin": records(first) for n in range(1, 6)}
        files |= {"test_batch.bin": records(second), "batches.meta.txt": text}
    elif flags & 2:

        def fine(part: bytes) -> bytes:
            return b"".join(bytes([0, byte]) + bytes(3072) for byte in part[:8]) + part[8:]

        files = {"train.bin": fine(first), "test.bin": fine(second), "fine_label_names.txt": text}
    else:
        size = 3 * 96 * 96
        files = {
            "train_X.bin": bytes(size * min(4, len(first))),
            "train_y.bin": first,
            "class_names.txt": text,
        }
        files |= {"test_y.bin": second, "test_X.bin": bytes(size * min(4, len(second)))} if second else {}
    return read_data(folder_of(files))


def _binary_seeds() -> list[bytes]:
    ten = "\n".join(f"class {n}" for n in range(10)).encode()
    return [
        joined(1, b"\0\1\2", b"\1", ten),
        joined(2, b"\0\1\2", b"\1", ten),
        joined(4, b"\1\2\1\2", b"\2\1", ten),
    ]


# --- archives ---------------------------------------------------------------------------------------------


def with_checksums(content: bytes) -> bytes:
    """Repair the checksums of all blocks that may be headers of a tar file."""
    blocks = bytearray(content)
    for at in range(0, len(blocks) - 511, 512):
        if blocks[at + 257 : at + 262] == b"ustar":
            plain = sum(blocks[at : at + 512]) - sum(blocks[at + 148 : at + 156]) + 8 * 32
            blocks[at + 148 : at + 156] = b"%06o\0 " % plain
    return bytes(blocks)


_PACKERS = (bytes, lambda c: gzip.compress(c, 1), lambda c: lzma.compress(c, preset=0), bz2.compress)


def tar_archive(data: bytes) -> object:
    """Two bits of flags: the compression; 4: raw, or else a tar whose checksums are repaired."""
    flags = data[0] if data else 0
    content = data[1:] if flags & 4 else _PACKERS[flags & 3](with_checksums(data[1:]))
    folder = folder_of({"a.tar": content})
    if not flags & 4:
        _compare_with_tarfile(folder / "a.tar")
    return read_data(folder / "a.tar")


def _compare_with_tarfile(path: Path) -> None:
    """What our reader yields is what Python's yields, if both read the archive to its end."""
    try:
        ours = [
            (one.name, None if one.content is None else one.content.read())
            for one in tar.members(path, 1 << 24)
        ]
        theirs = []
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isdir():
                    file = archive.extractfile(member) if member.isreg() else None
                    theirs.append((member.name, file.read() if file else None))
    except (*tar.DAMAGED, OSError):
        return
    plain = [(name.strip("/"), content) for name, content in theirs]
    assert [(name.strip("/"), content) for name, content in ours] == plain, (ours, theirs)


def _tar_bytes(files: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


TREE = {
    f"{split}/{name}/{'n' * 101 if name == 'dog' else ''}1.png": PNG
    for split in ("train", "test")
    for name in ("cat", "dog")
}


def _tar_seeds() -> list[bytes]:
    short = {name.replace("n" * 101, ""): content for name, content in TREE.items()}
    plain = [_tar_bytes(TREE, tarfile.GNU_FORMAT), _tar_bytes(TREE, tarfile.PAX_FORMAT)]
    plain.append(_tar_bytes(short, tarfile.USTAR_FORMAT))
    return [bytes([n]) + one for n in range(4) for one in plain] + [
        b"\4" + _PACKERS[n](plain[0]) for n in range(4)
    ]


_TAR_WORDS = (
    b"L", b"K", b"x", b"g", b"S", b"5", b"2", b"20 path=../a.png\n", b"15 size=99999\n", b"22 GNU.sparse.size=9\n",
    b"23 GNU.sparse.major=1\n", b"29 GNU.sparse.map=0,1,2,x,\n", b"\x80\0\0\0\0\0\0\0\0\0\1\0", b"ustar  \0", b"ustar\00000",
    b"27 GNU.sparse.realsize=12\n", b"30 hdrcharset=BINARY\n", b"\xff" * 12, b"7777777\0",
)  # fmt: skip


def zip_archive(data: bytes) -> object:
    """Flag 1: names and contents of members, then changes of the finished file; else the raw file."""
    flags, parts = split(data, 7)
    if not flags & 1:
        return read_data(folder_of({"a.zip": data[1:]}) / "a.zip")
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", methods[flags >> 1 & 3]) as zipped:
        for name in parts[:6]:
            if name.partition(b"\0")[0]:
                zipped.writestr(name.decode("utf-8", "replace"), PNG)
    content = bytearray(buffer.getvalue())
    directory = content.find(b"PK\1\2")
    for offset, value in zip(parts[6][::2], parts[6][1::2], strict=False):
        content[(directory + offset) % len(content)] = value
    return read_data(folder_of({"a.zip": bytes(content)}) / "a.zip")


def _zip_seeds() -> list[bytes]:
    members = [name.encode() for name in TREE]
    found = [joined(flags, *members, b"", b"", b"") for flags in (1, 3, 5, 7)]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as zipped:
            for name, content in TREE.items():
                zipped.writestr(name, content)
        found.append(joined(0, buffer.getvalue()))
    return found


def shard(data: bytes) -> object:
    """A WebDataset shard, whose checksums are repaired unless flag 1 is set."""
    flags, (content, text) = split(data, 2)
    files = {"train-0000.tar": content if flags & 1 else with_checksums(content)}
    if text:
        files["classes.txt" if flags & 2 else "dataset_info.json"] = text
    return read_data(folder_of(files))


def _shard_seeds() -> list[bytes]:
    by_cls = {f"{n:03}.{kind}": b for n in range(4) for kind, b in (("png", PNG), ("cls", b"%d" % (n % 2)))}
    by_json = {
        f"{n:03}.{kind}": b
        for n in range(4)
        for kind, b in (("jpg", PNG), ("json", json.dumps({"label": "xy"[n % 2]}).encode()))
    }
    info = json.dumps({"features": {"label": {"names": ["x", "y"]}}}).encode()
    shards = [_tar_bytes(files, form) for files in (by_cls, by_json) for form in (0, 2)]
    return [joined(flags, one, text) for one in shards[:1] for flags, text in ((0, info), (2, b"x\ny\n"))] + [
        joined(0, one) for one in shards
    ]


_SHARD_WORDS = (
    *_TAR_WORDS,
    b".cls",
    b".json",
    b".txt",
    b".pyd",
    b'{"label": null}',
    b'{"class": [1]}',
    b"1e999",
    b"names",
)


def packed(data: bytes) -> object:
    """A damaged index of an unpacked archive is not trusted: the archive is unpacked again."""
    archive = SCRATCH / "packed.tar"
    if not archive.is_file():
        archive.write_bytes(_tar_bytes(TREE))
    cache = SCRATCH / "packed"
    first = unpack(archive, cache)
    index = next(cache.glob("unpacked/*/pictures.json"))
    index.write_bytes(data)
    again = unpack(archive, cache)
    assert again.pictures.by_folder
    found = {name: again.pictures.read(place) for name, place in again.pictures.places.items()}
    index.write_text(
        json.dumps(
            {
                "names": list(first.pictures.places),
                "ends": [place.stop for place in first.pictures.places.values()],
            }
        )
    )
    return found


def _packed_seeds() -> list[bytes]:
    ends = [len(PNG) * (n + 1) for n in range(4)]
    return [json.dumps({"names": list(TREE), "ends": ends}).encode()]


_JSON_WORDS = (
    b"null",
    b"[]",
    b"{}",
    b"1e999",
    b"-1",
    b'"a"',
    b"[[[[",
    b"true",
    b"1.5",
    b"99999999999999999999",
    b"\\ud800",
)

TARGETS = {
    "idx": Target(idx, _idx_seeds),
    "npz": Target(npz, _npz_seeds, _NPY_WORDS),
    "npy": Target(npy, _npy_seeds, _NPY_WORDS),
    "mat": Target(mat, _mat_seeds),
    "table": Target(table, _table_seeds, _TABLE_WORDS),
    "labels": Target(labels, lambda: [b"a\nb", b"1\n2.0\n10", b"007\n8"], _TABLE_WORDS),
    "pixels": Target(pixels, _pixel_seeds, _TABLE_WORDS),
    "parquet": Target(parquet, _parquet_seeds, _PARQUET_WORDS),
    "tiny_imagenet": Target(
        tiny_imagenet, _tiny_imagenet_seeds, (b"n00000001", b"\t", b"\n", b"val_0.JPEG", b"\xff")
    ),
    "listed": Target(
        listed, _listed_seeds, (b"0_kind/p0.jpg", b" ", b"\n", b"\t", b",", b"q1", b"-1", b"001.", b"./")
    ),
    "names": Target(names, _name_seeds, _NAME_WORDS),
    "binaries": Target(binaries, _binary_seeds, (b"\n", b"class 1", b"\xff")),
    "tar": Target(tar_archive, _tar_seeds, _TAR_WORDS),
    "zip": Target(zip_archive, _zip_seeds, (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"../", b"\\", b"/")),
    "shard": Target(shard, _shard_seeds, _SHARD_WORDS),
    "packed": Target(packed, _packed_seeds, _JSON_WORDS),
}
