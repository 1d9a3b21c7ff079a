"""The review's page in a real browser: Debian's Chromium, headless."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from review_helpers import item, load, made_review
from serving.test_browser import LEAST_CONTRAST, browser, errors, find, wait_for
from thumbnet.data.corrections import read_corrections
from thumbnet.data.rendering import Rendering
from thumbnet.reviewing.service import Heading, Tokens, build_review
from thumbnet.reviewing.session import Review
from thumbnet.serving.server import listen

uvicorn = pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
__all__ = ["browser"]  # the fixture

COMMAND = "thumbnet train a-folder-with-a-long-name --labels runs/2026-11-27-pictures-small-1/labels.csv"
SHOW_MORE = "thumbnet review a-folder-with-a-long-name --run runs/2026-11-27-pictures-small-1 --first 1576"
LEFT, RIGHT, ENTER, ESCAPE = "\ue012", "\ue014", "\ue007", "\ue00c"


@contextmanager
def served(review: Review) -> Iterator[str]:
    """Serve a review from a thread of this process; yield the address that opens its page."""
    title = "Review of 2026-11-27-pictures-small-1"
    heading = Heading(title, COMMAND, show_more=SHOW_MORE)
    tokens = Tokens()
    app = build_review(review, heading, load, Rendering(), tokens)
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token={tokens.printed}"
        finally:
            server.should_exit = True
            thread.join(20)


def visit(browser: Any, address: str) -> None:
    browser.get("about:blank")  # a new fragment alone would not load the page again
    browser.get(address)
    wait_for(browser, "document.getElementById('done').textContent.includes('decided')")


def press(browser: Any, keys: str) -> None:
    browser.switch_to.active_element.send_keys(keys)


def hold(browser: Any, key: str, times: int = 4, **more: Any) -> None:
    """Press a key and keep it down until it has come ``times`` times."""
    event = {"key": key, "text": key, **more}
    for number in range(times):
        down = {"type": "keyDown", "autoRepeat": number > 0, **event}
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", down)
    browser.execute_cdp_cmd("Input.dispatchKeyEvent", {**event, "type": "keyUp", "text": ""})


def done(browser: Any, decided: int, of: int) -> None:
    wait_for(browser, f"document.getElementById('done').textContent === '{decided} of {of} decided'")


def shown(browser: Any, name: str) -> None:
    wait_for(browser, f"document.getElementById('name').textContent === '{name}'")
    wait_for(browser, "document.getElementById('picture').naturalWidth === 16")


def rows(review: Review) -> list[tuple[str, str, str]]:
    return [(one.name, one.label, one.decision) for one in read_corrections(review.path)]


def choose(browser: Any, field: str, value: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(find(browser, f"#{field}")).select_by_value(value)


def test_a_person_decides_by_keys_and_by_buttons(browser: Any, tmp_path: Path) -> None:
    review = made_review(tmp_path)
    with served(review) as address:
        visit(browser, address)
        assert browser.current_url == address.partition("?")[0]  # without the token
        assert browser.execute_script("return document.cookie") == ""
        shown(browser, "0.png")
        assert find(browser, "#suggested").text == "green (75 %)"
        assert find(browser, "#why").text == "the network contradicts the label"
        assert "3.png" in find(browser, "#copies").text
        press(browser, "cd3")  # faster than the service answers
        shown(browser, "3.png")
        expected = [("0.png", "red", "confirm"), ("1.png", "", "drop"), ("2.png", "blue", "relabel")]
        assert rows(review) == expected
        assert find(browser, "progress").get_attribute("value") == "3"
        assert "2.png: relabelled blue. Next: 3.png: given red" in find(browser, "#message").text
        press(browser, "zz")
        done(browser, 1, 6)
        shown(browser, "1.png")
        assert rows(review) == expected[:1]
        press(browser, "s")
        shown(browser, "2.png")
        find(browser, "#unsure").click()
        shown(browser, "3.png")
        find(browser, "#choices button:nth-child(3)").click()
        shown(browser, "4.png")
        press(browser, LEFT)
        shown(browser, "3.png")
        assert find(browser, "#decided").text == "relabelled blue"
        assert rows(review)[1:] == [
            ("1.png", "green", "relabel"),
            ("2.png", "", "unsure"),
            ("3.png", "blue", "relabel"),
        ]

        # Closed and opened again, it goes on with the first undecided picture.
        visit(browser, address)
        shown(browser, "4.png")
        press(browser, "/")
        find(browser, "#search").send_keys("cdBLU")  # in the field, letters are no commands
        assert find(browser, "#matches").is_displayed() is False
        find(browser, "#search").clear()
        find(browser, "#search").send_keys("BLU")
        assert find(browser, "#matches [aria-selected=true]").text == "blue"
        find(browser, "#search").send_keys(ENTER)
        shown(browser, "5.png")
        press(browser, "u")
        done(browser, 6, 6)
        assert "All pictures of this list are decided" in find(browser, "#message").text
        assert rows(review)[4:] == [("4.png", "blue", "relabel"), ("5.png", "", "unsure")]
        assert errors(browser) == []


def test_a_key_that_is_held_down_decides_about_one_picture_but_moves_on_and_on(
    browser: Any, tmp_path: Path
) -> None:
    review = made_review(tmp_path)
    with served(review) as address:
        visit(browser, address)
        shown(browser, "0.png")
        hold(browser, "d")
        done(browser, 1, 6)
        shown(browser, "1.png")
        browser.execute_script("document.getElementById('unsure').focus()")
        hold(browser, "Enter", text="\r", code="Enter", windowsVirtualKeyCode=13)
        done(browser, 2, 6)
        shown(browser, "2.png")
        hold(browser, "n", 3)
        shown(browser, "5.png")
        assert rows(review) == [("0.png", "", "drop"), ("1.png", "", "unsure")]
        assert errors(browser) == []


def click(browser: Any, place: str, number: int) -> None:
    """The ``number``th of several quick clicks at one place, as the browser tells the page of it."""
    browser.execute_script(
        "document.querySelector(arguments[0]).dispatchEvent("
        "new MouseEvent('click', { bubbles: true, detail: arguments[1] }))",
        place,
        number,
    )


def test_a_double_click_decides_about_no_picture_that_nobody_has_seen(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    review = made_review(tmp_path)
    with served(review) as address:
        visit(browser, address)
        shown(browser, "0.png")
        ActionChains(browser).double_click(find(browser, "#drop")).perform()
        shown(browser, "1.png")
        for place in ("#confirm", "#suggest", "#drop", "#unsure", "#choices button"):
            click(browser, place, 2)
            click(browser, place, 3)
        click(browser, "#next", 2)  # moving decides nothing
        shown(browser, "2.png")
        click(browser, "#choices button:nth-child(3)", 1)
        done(browser, 2, 6)
        assert rows(review) == [("0.png", "", "drop"), ("2.png", "blue", "relabel")]
        assert find(browser, "#more").is_displayed() is False
        assert errors(browser) == []


TYPE_AT_ONCE = (
    "for (const key of arguments[0]) document.getElementById('main').dispatchEvent("
    "new KeyboardEvent('keydown', { key, bubbles: true }))"
)


def test_a_suggestion_that_is_not_shown_yet_cannot_be_taken(browser: Any, tmp_path: Path) -> None:
    review = made_review(tmp_path)
    with served(review) as address:
        visit(browser, address)
        shown(browser, "0.png")
        browser.execute_script(TYPE_AT_ONCE, "us")
        shown(browser, "1.png")
        press(browser, "s")
        shown(browser, "2.png")
        assert rows(review) == [("0.png", "", "unsure"), ("1.png", "green", "relabel")]
        assert errors(browser) == []


def test_a_digit_typed_ahead_is_dropped_if_it_means_a_class_of_a_list_not_seen(
    browser: Any, tmp_path: Path
) -> None:
    names = [f"class {number}" for number in range(11)]
    review = made_review(tmp_path, [item(number) for number in range(3)], classes=names)
    with served(review) as address:
        visit(browser, address)
        shown(browser, "0.png")
        browser.execute_script(TYPE_AT_ONCE, "u2")
        shown(browser, "1.png")
        press(browser, "d")
        done(browser, 2, 3)
        assert rows(review) == [("0.png", "", "unsure"), ("1.png", "", "drop")]
        press(browser, "2")
        done(browser, 3, 3)
        assert rows(review)[2] == ("2.png", "class 0", "confirm")
        assert errors(browser) == []


def test_filters_the_grid_and_copies(browser: Any, tmp_path: Path) -> None:
    review = made_review(
        tmp_path,
        [item(0, reasons=()), item(1, 2, 0), item(2, 2, 0), item(3, copies=(4,)), item(4)],
        shown=4,
        beyond=[("train", "4.png"), ("train", "9.png")],
    )
    with served(review) as address:
        visit(browser, address)
        assert find(browser, "#reason").is_displayed()  # there is one reason, but not all pictures have it
        choose(browser, "cell", "2 0")
        shown(browser, "1.png")
        assert find(browser, "#place").text == "test, 1 of 2"
        press(browser, ESCAPE)  # leaves the field, so that keys are commands again
        press(browser, "g")
        wait_for(browser, "document.querySelectorAll('#tiles button').length === 2")
        press(browser, RIGHT + "d")
        wait_for(browser, "document.querySelector('#tiles button:last-child .drop')")
        assert rows(review) == [("2.png", "", "drop")]
        choose(browser, "decision", "undecided")
        press(browser, ESCAPE)
        wait_for(browser, "document.querySelectorAll('#tiles button').length === 1")
        visit(browser, browser.current_url)  # the address keeps the filters
        wait_for(browser, "document.querySelectorAll('#tiles button').length === 1")
        find(browser, "#tiles button").send_keys("c")
        wait_for(browser, "!document.getElementById('empty').hidden")
        assert browser.execute_script("return document.activeElement.id") == "main"  # not a hidden button
        done(browser, 2, 4)
        press(browser, "z")
        done(browser, 1, 4)
        choose(browser, "cell", "")
        find(browser, "#tiles button:last-child").send_keys(ENTER)
        shown(browser, "3.png")
        find(browser, "#copy-tiles button").click()
        shown(browser, "4.png")
        assert find(browser, "#place").text == "train, not in this list"
        assert find(browser, "#remaining").text == "2 more without a label"
        press(browser, "d")  # the copy does not count, but it is decided
        wait_for(browser, "document.getElementById('message').textContent.startsWith('4.png: dropped')")
        done(browser, 1, 4)
        assert find(browser, "#remaining").text == "1 more without a label"
        assert rows(review)[-1] == ("4.png", "", "drop")
        assert errors(browser) == []


def test_new_pictures_and_many_classes(browser: Any, tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(30)]
    items = [item(number, given=None) for number in range(3)]
    review = made_review(tmp_path, items, classes=names)
    with served(review) as address:
        visit(browser, address)
        shown(browser, "0.png")
        assert not find(browser, "#given").is_displayed()
        assert not find(browser, "#confirm").is_displayed()
        press(browser, "c2")  # c means nothing here; 2 is the second most probable class
        shown(browser, "1.png")
        press(browser, "/")
        find(browser, "#search").send_keys("class 27" + ENTER)
        shown(browser, "2.png")
        press(browser, "s")
        done(browser, 3, 3)
        assert [row[1] for row in rows(review)] == ["class 0", "class 27", "class 1"]
        assert find(browser, "#decided").text == "labelled class 1"
        assert errors(browser) == []


def test_the_page_says_when_a_decision_is_not_saved(browser: Any, tmp_path: Path) -> None:
    review = made_review(tmp_path)
    with served(review) as address:
        visit(browser, address)
        review.path.write_text("picture,label,split,was,decision\n")
        press(browser, "c")
        wait_for(
            browser, "document.getElementById('error').textContent.includes('another program has changed')"
        )
    browser.get_log("browser")  # the refusal is expected
    press(browser, "c")
    wait_for(browser, "document.getElementById('error').textContent.includes('The review has stopped')")
    assert find(browser, "#done").text == "0 of 6 decided"
    browser.get_log("browser")


def test_it_fits_narrow_and_wide_windows_is_readable_and_asks_no_other_server(
    browser: Any, tmp_path: Path
) -> None:
    long = "a-folder/" + "a-name-without-any-space-in-it" * 3 + ".png"
    items = [item(0, copies=(1,)), item(1, copies=(0,)), *(item(number) for number in range(2, 70))]
    items[0] = type(items[0])(**{**vars(items[0]), "name": long})
    beyond = [("train", f"{number}.png") for number in range(70, 1576)]
    review = made_review(tmp_path, items, beyond=beyond)
    review.decide(5, "drop")
    browser.get_log("performance")
    size = browser.get_window_size()
    with served(review) as address:
        visit(browser, address)
        assert find(browser, "#more").text == (
            f"Not shown: 1,506 more without a label. To review them too: {SHOW_MORE}"
        )
        try:
            for width in (320, 1280):
                browser.execute_cdp_cmd(
                    "Emulation.setDeviceMetricsOverride",
                    {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
                )
                for view in ("single", "grid"):
                    wait_for(browser, f"!document.getElementById('{view}').hidden")
                    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
                    for scheme in ("light", "dark"):  # WCAG AA: text needs a contrast of at least 4.5
                        feature = {"name": "prefers-color-scheme", "value": scheme}
                        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
                        assert browser.execute_script(LEAST_CONTRAST) >= 4.5, (width, view, scheme)
                    press(browser, "g")
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
            browser.set_window_size(size["width"], size["height"])
        unnamed = browser.execute_script(
            "return [...document.querySelectorAll('button, select, input, img')].filter((one) => "
            "!one.closest('[hidden]') && !one.textContent.trim() && !one.ariaLabel && !one.labels?.length "
            "&& one.getAttribute('alt') === null).length"
        )
        assert unnamed == 0
        assert errors(browser) == []
        asked = [
            one["message"]
            for one in browser.get_log("performance")
            if '"Network.requestWillBeSent"' in one["message"] and '"url":"http' in one["message"]
        ]
        assert asked
        here = address.partition("?")[0]
        assert all(f'"url":"{here}' in one for one in asked)
