"""The pages in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers import coloured, coloured_data, write_class_folders, write_picture
from serving_helpers import encoded, served
from thumbnet.data.listings import safe_name, safe_text
from thumbnet.reports import pictures
from thumbnet.reports.page import write_report
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data

webdriver = pytest.importorskip("selenium.webdriver")

OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # fmt: skip


@contextmanager
def chromium_with(*more: str) -> Iterator[Any]:
    """Chromium with ``OPTIONS`` and ``more``; skips the test where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no browser: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for option in (*OPTIONS, *more):
        options.add_argument(option)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_window_size(390, 900)  # the size of a phone
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium_with() as found:
        yield found


SCREEN = {"height": 900, "deviceScaleFactor": 1, "mobile": False}


@pytest.fixture(scope="module")
def address(tiny_run: Run) -> Iterator[str]:
    """The address of a service with ``tiny_run`` that needs no key."""
    with served(tiny_run) as (found, _):
        yield found


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def wait_for(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(f"return {condition}"))


def errors(browser: Any) -> list[str]:
    return [one["message"] for one in browser.get_log("browser") if one["level"] == "SEVERE"]


def newest(browser: Any, name: str) -> None:
    """Wait until the newest card's first bar names this class, then check its pictures and the bar's length."""
    first = "#cards li:first-child"
    wait_for(browser, f"document.querySelector('{first} .bars span')?.textContent === '{name}'")
    wait_for(browser, f"[...document.querySelectorAll('{first} img')].every((one) => one.naturalWidth > 0)")
    assert len(browser.find_elements("css selector", f"{first} .looked img")) == 2
    assert name in find(browser, f"{first} .words").text
    shown = find(browser, f"{first} i").rect["width"] / find(browser, f"{first} .bars div").rect["width"]
    written = float(find(browser, f"{first} .bars span:nth-child(2)").text[:-2])
    assert 100 * shown == pytest.approx(written, abs=1)
    find(browser, "#clear").click()
    assert not find(browser, "#results").is_displayed()


def encoded_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


# Scripts that make a file in the page, and drop or paste it.
TRANSFER = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0)), transfer = new DataTransfer();
transfer.items.add(new File([bytes], "a.png", { type: "image/png" }));
"""
DROP = TRANSFER + 'document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));'
PASTE = (
    TRANSFER
    + 'document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));'
)


def test_the_page_says_that_pictures_are_kept_if_they_are(
    browser: Any, tmp_path: Path, tiny_run: Run
) -> None:
    with served(tiny_run, "--keep", str(tmp_path / "unsure")) as (address, _):
        browser.get(address)
        wait_for(browser, "!document.getElementById('kept').hidden")
        assert "keeps pictures that the network is less than 80.0 % sure of" in find(browser, "#kept").text


def test_the_page_classifies_pictures_from_every_source(browser: Any, tmp_path: Path, tiny_run: Run) -> None:
    pictures = [write_picture(tmp_path / f"{label}.png", coloured(label, 99)) for label in range(3)]
    _, green, blue = (base64.b64encode(one.read_bytes()).decode() for one in pictures)
    # Wrong labels give the page hard pictures: the folder green holds red ones.
    data = write_class_folders(tmp_path / "data", ["train", "test"])
    shutil.rmtree(data / "test" / "green")
    shutil.copytree(data / "test" / "red", data / "test" / "green")
    with served(tiny_run, "--data", str(data), key="secret") as (address, _):
        browser.get(address)
        wait_for(browser, "!document.getElementById('key').hidden")
        find(browser, "#key input").send_keys("secret")
        find(browser, "#key button").click()
        wait_for(
            browser,
            "document.getElementById('model').textContent.includes('knows 3 classes: red, green, blue')",
        )
        browser.get_log("browser")  # the 401 is expected
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")

        find(browser, "#file").send_keys(str(pictures[0]))
        newest(browser, "red")
        browser.execute_script(DROP, green)
        newest(browser, "green")
        browser.execute_script(PASTE, blue)
        newest(browser, "blue")
        find(browser, "#camera").click()  # Chromium's fake camera shows green
        wait_for(browser, "document.getElementById('video').videoWidth > 0")
        find(browser, "#shoot").click()
        newest(browser, "green")
        find(browser, "#camera").click()
        assert not find(browser, "#video").is_displayed()
        wait_for(browser, "document.querySelectorAll('#hard button').length > 0")
        hard = find(browser, "#hard button")
        assert hard.text == "green, not red"
        hard.send_keys("\ue007")  # press Enter
        newest(browser, "red")
        assert errors(browser) == []

        browser.execute_script(DROP, base64.b64encode(b"no picture").decode())
        wait_for(browser, "document.getElementById('message').textContent.includes('not a picture')")
        assert "not a picture" in find(browser, "#cards .error").text
        assert browser.find_elements("css selector", "#cards .bars") == []


def test_where_the_browser_has_no_camera_for_the_page_it_says_what_to_do(browser: Any, address: str) -> None:
    browser.get(address)
    wait_for(browser, "!document.getElementById('about').hidden")
    # That is what a page finds that comes by HTTP from another computer.
    browser.execute_script("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    find(browser, "#camera").click()
    wait_for(
        browser, "document.getElementById('message').textContent.includes('over HTTPS. Choose a picture')"
    )
    assert find(browser, "#message").text.startswith("The camera cannot be used: not available to this page.")
    assert not find(browser, "#video").is_displayed()


# Drops several pictures: arguments[0] lists pairs of a file name and its bytes in base 64.
DROP_ALL = """
const transfer = new DataTransfer();
for (const [name, text] of arguments[0]) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
}
document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
"""
# Counts the requests that the page has under way, and keeps the CSV that it saves.
WATCH = """
window.most = 0;
let now = 0;
const fetch = window.fetch, address = URL.createObjectURL;
window.fetch = async (...all) => {
  window.most = Math.max(window.most, ++now);
  try { return await fetch(...all); } finally { now--; }
};
URL.createObjectURL = (blob) => {
  if (blob.type === "text/csv") blob.arrayBuffer().then((bytes) => { window.saved = String.fromCharCode(...new Uint8Array(bytes)); });
  return address.call(URL, blob);
};
"""


def test_many_pictures_are_answered_one_by_one_and_summarised(browser: Any, address: str) -> None:
    labels = [0, 1, 2, 0, 0, 1, 0]
    pictures = [
        (f"{number}.png", encoded_text(encoded(coloured(label, number))))
        for number, label in enumerate(labels)
    ]
    pictures[4] = ('=cmd(),"x".png', pictures[4][1])
    pictures.insert(2, ("broken.png", encoded_text(b"no picture")))
    browser.get(address)
    wait_for(browser, "!document.getElementById('about').hidden")
    browser.get_log("browser")
    browser.execute_script(WATCH)
    browser.execute_script(DROP_ALL, pictures)
    wait_for(browser, "document.getElementById('message').textContent.includes('7 pictures classified')")
    assert find(browser, "#message").text == "7 pictures classified, 1 picture without an answer."
    cards = browser.find_elements("css selector", "#cards li.card")
    names = [card.find_element("css selector", "h3").text for card in cards]
    assert names == [name for name, _ in pictures]
    assert len(browser.find_elements("css selector", "#cards .error")) == 1
    assert browser.execute_script("return window.most") == 3
    assert find(browser, "#summary summary").text == "By class: red (4), green (2), blue (1), no answer (1)"
    find(browser, "#summary summary").click()
    rows = [one.text for one in browser.find_elements("css selector", "#summary tbody tr")]
    assert rows == ["red 4 0", "green 2 0", "blue 1 0"]

    find(browser, "#csv").click()
    wait_for(browser, "window.saved")
    saved = browser.execute_script("return window.saved").encode("latin-1").decode("utf-8-sig")
    found = list(csv.DictReader(io.StringIO(saved)))
    assert [one["class_1"] for one in found] == ["red", "green", "", "blue", "red", "red", "green", "red"]
    assert found[5]["picture"] == './=cmd(),"x".png'
    assert "not a picture" in found[2]["error"]
    assert float(found[0]["probability_1"]) > float(found[0]["probability_2"])
    assert "red" in found[0]["answer"]

    looked = cards[0].find_element("css selector", "button")
    assert looked.get_attribute("aria-label") == "where did it look? 0.png"
    looked.send_keys("\ue007")  # press Enter
    wait_for(browser, "document.querySelectorAll('#cards li:first-child .looked img').length === 2")
    remove = browser.switch_to.active_element
    assert remove.get_attribute("aria-label") == "remove 0.png"  # the focus did not get lost
    remove.send_keys("\ue007")
    assert browser.switch_to.active_element.get_attribute("aria-label") == "remove 1.png"
    assert len(browser.find_elements("css selector", "#cards li.card")) == 7
    for message in errors(browser):
        assert "415" in message  # the broken picture's


def test_cells_of_the_saved_csv_follow_the_rules_of_all_lists(browser: Any, address: str) -> None:
    texts = [
        "=1+1.png", "./=1", "././@x", "'=1", "''-x", "-1", "+1.5", "-x", "-", "=", " =1", "\uff1d1", "\uff20", "@\n",
        "a=1", "\x1b[2J", "\t=1", "\r", "\x85", "\u202egnp.exe", "\u061c", "a\u200dz", "\U0001f438", "cats/1.png", "",
    ]  # fmt: skip
    browser.get(address)
    for function, rule in (("safeName", safe_name), ("safeText", safe_text)):
        found = browser.execute_script(f"return arguments[0].map({function})", texts)
        assert found == [rule(text) for text in texts]


# A service that is busy once, then fails once, and then answers with arguments[0].
FALTERING = """
const answers = [
  new Response('{"detail": "the queue is full"}', { status: 429, headers: { "Retry-After": "0.05" } }),
  new Response('{"detail": "no answer within 30 s"}', { status: 503 }),
  new Response(JSON.stringify(arguments[0]), { status: 200 }),
];
window.fetch = async () => answers.shift();
"""


def test_a_picture_is_sent_again_by_itself_if_the_service_is_busy_and_by_a_button_if_it_fails(
    browser: Any, address: str
) -> None:
    browser.get(address)
    wait_for(browser, "!document.getElementById('about').hidden")
    found = {"classes": [{"name": "frog", "probability": 0.8}], "words": "probably frog, or else toad"}
    found |= {"certainty": "probable", "picture": "data:,", "lit": "data:,"}
    browser.execute_script(FALTERING, found)
    browser.execute_script(DROP_ALL, [("a.png", encoded_text(encoded(coloured(0, 1))))])
    wait_for(browser, "document.querySelector('#cards .error')?.textContent === 'no answer within 30 s'")
    again = find(browser, "#cards button")
    assert again.get_attribute("aria-label") == "try again a.png"
    again.send_keys("\ue007")
    wait_for(
        browser, "document.getElementById('message').textContent === 'a.png: probably frog, or else toad.'"
    )
    assert browser.switch_to.active_element.get_attribute("aria-label") == "remove a.png"
    assert browser.find_elements("css selector", "#cards .error") == []


# Answers in place of the service.
PRETEND = """
window.fetch = async () => new Response(JSON.stringify({ predictions: [arguments[0]] }), { status: 200 });
"""


def test_each_label_is_counted_with_its_own_certainty(browser: Any, address: str) -> None:
    pretend = {
        "name": "a.png",
        "classes": [{"name": "sky", "probability": 0.99}, {"name": "dog", "probability": 0.4}],
        "words": "sky, perhaps dog",
        "certainty": "sure",
        "labels": ["sky", "dog", "a label that is not among the classes"],
    }
    browser.get(address)
    wait_for(browser, "!document.getElementById('about').hidden")
    browser.execute_script(PRETEND.replace("arguments[0]", json.dumps(pretend)))
    browser.execute_script(DROP_ALL, [("a.png", encoded_text(encoded(coloured(0, 1))))] * 2)
    wait_for(browser, "document.getElementById('message').textContent.includes('2 pictures classified')")
    browser.execute_script("document.getElementById('summary').open = true")
    rows = [one.text for one in browser.find_elements("css selector", "#summary tbody tr")]
    assert rows == ["sky 2 0", "dog 2 2", "a label that is not among the classes 2 0"]


def test_the_page_is_readable_at_any_width_in_light_and_dark(browser: Any, address: str) -> None:
    pretend = {
        "name": "a.png",
        "classes": [{"name": "frog" * 30, "probability": 0.39}, {"name": "toad", "probability": 0.31}],
        "words": "not sure: " + "frog" * 30 + " or toad",
        "certainty": "unsure",
        "unlike": True,
        "unlikeness": -2.345,
    }
    picture = encoded_text(encoded(coloured(0, 1)))
    browser.get(address)
    wait_for(browser, "!document.getElementById('about').hidden")
    browser.execute_script("document.getElementById('about').open = true")
    browser.execute_script(PRETEND.replace("arguments[0]", json.dumps(pretend)))
    browser.execute_script(DROP_ALL, [("n" * 200 + ".png", picture)] * 3)
    wait_for(browser, "document.querySelectorAll('#cards .note').length === 3")
    browser.execute_script("document.getElementById('summary').open = true")
    assert "Unlike the training pictures (score -2.35):" in find(browser, "#cards .note").text
    assert find(browser, "#summary tbody tr").text.endswith(" 3 3")
    try:
        for width in (320, 768, 1280, 1920):
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            assert browser.execute_script(LEAST_CONTRAST) >= 4.5
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_report_works_offline_and_is_readable(browser: Any, tmp_path: Path, tiny_run: Run) -> None:
    write_report(tiny_run, coloured_data(), "test", tmp_path / "report.html")
    for log in ("browser", "performance"):  # drop the entries of the test before
        browser.get_log(log)
    browser.get((tmp_path / "report.html").as_uri())
    assert errors(browser) == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return [...document.images].every((one) => one.naturalWidth > 0)")
    cell = find(browser, "[data-cell='1-1']")
    assert cell.get_attribute("aria-label") == "green classified as green: 20"
    cell.send_keys("\ue007")
    assert cell.get_attribute("aria-pressed") == "true"
    assert len(browser.find_elements("css selector", "#cell img")) == 8
    asked = [
        one["message"]
        for one in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in one["message"]
    ]
    assert asked
    assert not any('"url":"http' in one for one in asked)
    for scheme in ("light", "dark"):  # WCAG AA: text needs a contrast of at least 4.5
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        assert browser.execute_script(LEAST_CONTRAST) >= 4.5
    for width in (320, 768, 1280, 1920):
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**SCREEN, "width": width})
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_report_links_to_the_pictures_behind_a_cell(
    browser: Any, tmp_path: Path, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "HEAT_MAPS", 0)
    data = load_data(write_class_folders(tmp_path / "my data", ["train", "test"]))
    (tmp_path / "run").mkdir()
    write_report(tiny_run, data, "test", tmp_path / "run" / "report.html")
    browser.get((tmp_path / "run" / "report.html").as_uri())
    green = data.class_names.index("green")
    find(browser, f"[data-cell='{green}-{green}']").send_keys("\ue007")
    links = browser.find_elements("css selector", "#cell li a")
    assert {link.text for link in links} == {f"test/green/{number}.png" for number in range(6)}
    links[0].click()
    wait_for(browser, "document.images.length === 1 && document.images[0].naturalWidth === 16")
    assert browser.current_url.startswith((tmp_path / "my data" / "test" / "green").as_uri())
    assert errors(browser) == []


LEAST_CONTRAST = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  const layers = [];
  for (let one = element; one; one = one.parentElement) layers.unshift(numbers(getComputedStyle(one).backgroundColor));
  return layers.reduce((below, [r, g, b, a = 1]) => [r, g, b].map((v, i) => a * v + (1 - a) * below[i]), [255, 255, 255]);
};
let least = 99;
for (const element of document.body.querySelectorAll("*")) {
  const written = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!written || element.closest("script, style, svg") || !element.checkVisibility()) continue;
  const [a, b] = [light(numbers(getComputedStyle(element).color)), light(behind(element))].sort((x, y) => y - x);
  least = Math.min(least, (a + 0.05) / (b + 0.05));
}
return least;
"""
