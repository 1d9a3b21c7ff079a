"""The pages in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import coloured, coloured_data, write_class_folders, write_picture
from serving.test_service import served
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no browser: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for option in OPTIONS:
        options.add_argument(option)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_window_size(390, 900)  # the size of a phone
    yield found
    found.quit()


SCREEN = {"height": 900, "deviceScaleFactor": 1, "mobile": False}


def find(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def wait_for(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 20).until(lambda _: browser.execute_script(f"return {condition}"))


def errors(browser: Any) -> list[str]:
    return [one["message"] for one in browser.get_log("browser") if one["level"] == "SEVERE"]


def answer(browser: Any, name: str) -> None:
    """Wait until the page's first bar names this class, then check the pictures and the bar's length."""
    wait_for(browser, f"document.querySelector('#bars li span')?.textContent === '{name}'")
    assert find(browser, "#answer").is_displayed()
    for picture in ("seen", "lit"):
        wait_for(browser, f"document.getElementById('{picture}').naturalWidth === 16")
    shown = find(browser, "#bars li div i").rect["width"] / find(browser, "#bars li div").rect["width"]
    written = float(find(browser, "#bars li span:nth-child(2)").text[:-2])
    assert 100 * shown == pytest.approx(written, abs=1)
    browser.execute_script("document.getElementById('bars').replaceChildren()")


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
        answer(browser, "red")
        browser.execute_script(DROP, green)
        answer(browser, "green")
        browser.execute_script(PASTE, blue)
        answer(browser, "blue")
        find(browser, "#camera").click()  # Chromium's fake camera shows green
        wait_for(browser, "document.getElementById('video').videoWidth > 0")
        find(browser, "#shoot").click()
        answer(browser, "green")
        find(browser, "#camera").click()
        assert not find(browser, "#video").is_displayed()
        wait_for(browser, "document.querySelectorAll('#hard button').length > 0")
        hard = find(browser, "#hard button")
        assert hard.text == "green, not red"
        hard.send_keys("\ue007")  # press Enter
        answer(browser, "red")
        assert errors(browser) == []

        browser.execute_script(DROP, base64.b64encode(b"no picture").decode())
        wait_for(browser, "document.getElementById('message').textContent.includes('not a picture')")
        assert not find(browser, "#answer").is_displayed()


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
