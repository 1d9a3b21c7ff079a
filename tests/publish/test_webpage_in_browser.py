"""The page in a real browser without network, Debian's Chromium: it gives the answers of `predict`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from helpers import coloured, noise, write_picture
from serving.test_browser import (
    DROP,
    LEAST_CONTRAST,
    PASTE,
    chromium_with,
    encoded_text,
    errors,
    find,
    wait_for,
)
from thumbnet.classifiers.onnx_classifier import OnnxClassifier
from thumbnet.classifiers.unlike import fit_unlikeness, looks
from thumbnet.classifiers.words import in_words
from thumbnet.publish.web_runtime import is_in, load_runtime, packaged_folder
from thumbnet.publish.webpage import described_in, web_page

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
pytestmark = pytest.mark.skipif(not is_in(packaged_folder()), reason="no ONNX Runtime Web: make web-runtime")

# The page must not look up a name, and the network is switched off as well.
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"
# Keeps the CSV that the page saves.
KEEP_CSV = """
const address = URL.createObjectURL;
URL.createObjectURL = (blob) => {
  if (blob.type === "text/csv") blob.text().then((text) => { window.saved = text; });
  return address.call(URL, blob);
};
"""
# Refuses what Chrome before 112 refuses.
OLD_CHROME = """
const decode = window.createImageBitmap;
window.createImageBitmap = async (file, how) => {
  if (how?.imageOrientation === "from-image") throw new TypeError("not a valid enum value");
  return decode(file, how);
};
"""
# The first pixel of a picture (in base 64), with its colours converted by its profile.
FIRST_CONVERTED = """
const [text, done] = arguments, bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
createImageBitmap(new Blob([bytes])).then((bitmap) => {
  const context = document.createElement("canvas").getContext("2d");
  context.drawImage(bitmap, 0, 0);
  done([...context.getImageData(0, 0, 1, 1).data]);
});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium_with(OFFLINE) as found:
        found.execute_cdp_cmd("Network.enable", {})
        off = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        found.execute_cdp_cmd("Network.emulateNetworkConditions", off)
        yield found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of many shapes, one of them turned by EXIF, one partly transparent, one grey."""
    folder = tmp_path_factory.mktemp("pictures")
    shapes = [(16, 16), (16, 31), (47, 16), (90, 20), (33, 60), (7, 5), (300, 41)]
    made = [
        write_picture(folder / f"{i}.png", Image.fromarray(coloured(i, i, 60)).resize(shape))
        for i, shape in enumerate(shapes)
    ]
    made.append(write_picture(folder / "noise.png", noise(5, 29, 43)))
    clear = np.dstack([noise(1, 40, 30), np.arange(1200).reshape(40, 30) % 256]).astype(np.uint8)
    made.append(write_picture(folder / "clear.png", clear))
    exif = Image.Exif()
    exif[0x0112] = 6
    upside = Image.fromarray(np.repeat(np.repeat(coloured(2, 3, 12), 4, 0), 3, 1))
    made.append(write_picture(folder / "turned.jpg", upside, exif=exif, quality=90))
    made.append(write_picture(folder / "turned.webp", upside, exif=exif, lossless=True))
    made.append(write_picture(folder / "grey.png", noise(2, 20, 50)[..., 0]))
    return made


def visit(browser: Any, page: Path) -> None:
    browser.get(page.as_uri())
    wait_for(browser, "!document.getElementById('about').hidden")


def ask(browser: Any, pictures: list[Path]) -> dict[str, dict[str, str]]:
    """Classify pictures by the page; return the rows of its CSV by the picture's name."""
    browser.execute_script(KEEP_CSV)
    find(browser, "#file").send_keys("\n".join(map(str, pictures)))
    wait_for(browser, f"document.querySelectorAll('#cards .bars, #cards .error').length === {len(pictures)}")
    find(browser, "#csv").click()
    wait_for(browser, "window.saved")
    saved = browser.execute_script("return window.saved").lstrip("\ufeff")
    return {row["picture"]: row for row in csv.DictReader(io.StringIO(saved))}


def same_as_predict(
    found: dict[str, dict[str, str]], classifier: OnnxClassifier, pictures: list[Path]
) -> None:
    """Check probabilities, words and unlikeness of the page's answers."""
    for picture, expected in zip(pictures, classifier.predict(pictures), strict=True):
        row = found[picture.name]
        assert [row[f"class_{n}"] for n in (1, 2, 3)] == list(expected.labels), picture.name
        given = [float(row[f"probability_{n}"]) for n in (1, 2, 3)]
        # The CSV has six decimals. A canvas keeps colours multiplied by their alpha, rounded to one level.
        allowed = 1e-3 if picture.name == "clear.png" else 2e-6
        assert given == pytest.approx(expected.probabilities, abs=allowed), picture.name
        words = in_words(
            expected.labels, expected.probabilities, unlike=bool(expected.unlike), found=expected.found
        )
        assert row["answer"] == words
        if expected.unlikeness is not None:
            assert float(row["unlikeness"]) == pytest.approx(expected.unlikeness, rel=1e-3, abs=1e-3)
            assert row["unlike"] == json.dumps(expected.unlike)


def with_unlike(classifier: OnnxClassifier, score: str) -> OnnxClassifier:
    known = np.stack([coloured(i, i) for i in range(60)])
    how = fit_unlikeness(classifier.logits(known, tta="none"), looks(known), looks(known), score)
    classifier.info = replace(classifier.info, unlike=how)
    return classifier


def variant(onnx_file: Path, **changed: Any) -> OnnxClassifier:
    """The same graph under another description; ``fit`` and ``background`` are of its preprocessing."""
    classifier = OnnxClassifier(onnx_file)
    pre = {key: changed.pop(key) for key in ("fit", "background") if key in changed}
    info = replace(classifier.info, **changed)
    classifier.info = replace(info, preprocessing=replace(info.preprocessing, **pre))
    classifier.class_names = classifier.info.class_names
    return classifier


def written(out: Path, onnx_file: Path, classifier: OnnxClassifier) -> Path:
    out.write_text(web_page(onnx.load(onnx_file), classifier.info, "ab" * 32, load_runtime()))
    return out


def test_the_page_answers_like_predict_without_network(
    browser: Any, onnx_file: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    names = ("<i>red</i>", "gr\u00fcn \U0001f600", "blue")
    classifier = with_unlike(variant(onnx_file, fit="crop", tta="adaptive", class_names=names), "logit")
    page = written(tmp_path / "page.html", onnx_file, classifier)
    assert page.stat().st_size < 15_000_000
    for log in ("browser", "performance"):
        browser.get_log(log)
    visit(browser, page)
    assert "resnet20 knows 3 classes: <i>red</i>, grün \U0001f600, blue." in find(browser, "#model").text
    same_as_predict(ask(browser, pictures), classifier, pictures)
    events = [one["message"] for one in browser.get_log("performance")]
    asked = [one for one in events if '"Network.requestWillBeSent"' in one]
    assert asked
    assert not any('"url":"http' in one for one in asked)
    assert errors(browser) == []
    find(browser, "#licences summary").click()
    wait_for(
        browser, "document.querySelector('#licences pre').textContent.includes('Copyright (c) Microsoft')"
    )
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        assert browser.execute_script(LEAST_CONTRAST) >= 4.5
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_pictures_are_turned_upright_whatever_their_format(
    browser: Any, onnx_file: Path, tmp_path: Path
) -> None:
    picture, exif, made = Image.fromarray(noise(3, 24, 40)), Image.Exif(), []
    for orientation in range(10):  # 1 to 8 mean something
        exif[0x0112] = orientation
        content = exif.tobytes()
        plain = content.removeprefix(b"Exif\0\0")
        made += [
            write_picture(tmp_path / f"{orientation}.png", picture, exif=content),
            write_picture(tmp_path / f"{orientation}.webp", picture, exif=content, lossless=True),
            write_picture(tmp_path / f"{orientation}-plain.webp", picture, exif=plain, lossless=True),
        ]
    made.append(write_picture(tmp_path / "cut.webp", picture, exif=plain[:12], lossless=True))
    classifier = variant(onnx_file, fit="squash", tta="none")
    visit(browser, written(tmp_path / "page.html", onnx_file, classifier))
    found = ask(browser, made)
    same_as_predict(found, classifier, made)
    assert len({found[f"{orientation}.webp"]["probability_1"] for orientation in range(10)}) == 8


def test_colours_are_not_converted_by_a_profile(browser: Any, onnx_file: Path, tmp_path: Path) -> None:
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    changed = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}  # red and green change places
    profile = re.sub(b"[rg]XYZ", lambda found: changed[found[0]], plain)
    pixels = noise(6)
    pixels[0, 0] = (200, 30, 90)
    picture = write_picture(tmp_path / "tagged.png", pixels, icc_profile=profile)
    classifier = variant(onnx_file, fit="squash", tta="none")
    visit(browser, written(tmp_path / "page.html", onnx_file, classifier))
    red, green, _, _ = browser.execute_async_script(FIRST_CONVERTED, encoded_text(picture.read_bytes()))
    assert red < green  # so the browser does heed the profile by default
    browser.execute_script(OLD_CHROME)
    same_as_predict(ask(browser, [picture]), classifier, [picture])


def test_a_browser_that_computes_other_logits_than_the_export_is_named(
    browser: Any, onnx_file: Path, tmp_path: Path
) -> None:
    warning = "This browser computes other numbers than the network that was exported"
    page = written(tmp_path / "page.html", onnx_file, variant(onnx_file))
    visit(browser, page)
    assert warning not in find(browser, "#model").text
    text = page.read_text()
    first, *others = described_in(text)["known_logits"]
    page.write_text(text.replace(json.dumps([first, *others]), json.dumps([first + 1, *others])))
    visit(browser, page)
    assert warning in find(browser, "#model").text


def test_several_labels_views_and_a_background_are_as_in_predict(
    browser: Any, onnx_file: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    changed = {"multilabel": True, "label_thresholds": (0.2, 0.6, 0.8), "tta": "adaptive", "temperature": 1.7}
    classifier = variant(onnx_file, fit="pad", background=(200, 10, 60), **changed)
    visit(browser, written(tmp_path / "page.html", onnx_file, with_unlike(classifier, "energy")))
    same_as_predict(ask(browser, pictures), classifier, pictures)


def test_pictures_are_dropped_pasted_and_taken_and_other_files_are_refused(
    browser: Any, onnx_file: Path, tmp_path: Path, pictures: list[Path]
) -> None:
    classifier = with_unlike(variant(onnx_file, fit="squash", tta="mirror"), "probability")
    visit(browser, written(tmp_path / "page.html", onnx_file, classifier))
    for number, script in enumerate((DROP, PASTE), 1):
        browser.execute_script(script, encoded_text(pictures[0].read_bytes()))
        wait_for(browser, f"document.querySelectorAll('#cards .bars').length === {number}")
    find(browser, "#camera").click()  # Chromium's fake camera
    wait_for(browser, "document.getElementById('video').videoWidth > 0")
    find(browser, "#shoot").click()
    wait_for(browser, "document.querySelectorAll('#cards .bars').length === 3")
    find(browser, "#clear").click()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    found = ask(browser, [broken, *pictures])
    assert found["broken.png"]["error"] == "not a picture that this browser can read"
    same_as_predict(found, classifier, pictures)
