"""The page offers the hardest test pictures, and the search for them gets in nobody's way."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from helpers import coloured_data
from serving_helpers import LIMITS, Slow, client_of, data_to_read, grey, wait_until
from thumbnet.classifiers.load import load_run
from thumbnet.data.splits import Data
from thumbnet.errors import UnreadableImageError
from thumbnet.runs.folder import Run
from thumbnet.serving.service import build_service


def test_the_hardest_pictures_are_mistakes_most_confident_first(tiny_run: Run) -> None:
    data = coloured_data()
    swapped = Data(
        data.source, data.layout, ("green", "red", "blue"), data.splits
    )  # so that predictions are mistakes
    with client_of(build_service(load_run(tiny_run.path), LIMITS, lambda: swapped)) as client:
        while not (answer := client.get("/hardest").json())["ready"]:
            time.sleep(0.05)
        assert answer["pictures"]
        assert {(one["label"], one["predicted"]) for one in answer["pictures"]} == {
            ("red", "green"),
            ("green", "red"),
        }
        confidences = [one["confidence"] for one in answer["pictures"]]
        assert confidences == sorted(confidences, reverse=True)


def test_data_with_unknown_classes_only_cause_a_warning(tiny_run: Run) -> None:
    data = coloured_data()
    other = Data(data.source, data.layout, ("fork", "knife", "spoon"), data.splits)
    warnings: list[str] = []
    app = build_service(load_run(tiny_run.path), LIMITS, lambda: other, warnings.append)
    with client_of(app) as client:
        wait_until(lambda: client.get("/hardest").json()["ready"])
        assert client.get("/hardest").json()["pictures"] == []
        assert client.get("/readyz").status_code == 200
    assert len(warnings) == 1
    assert "classes that the network does not know: fork" in warnings[0]


def test_a_search_for_hard_pictures_that_fails_ends_and_is_reported(tiny_run: Run) -> None:
    def broken() -> Data:
        raise ZeroDivisionError("broken data")

    warnings: list[str] = []
    app = build_service(load_run(tiny_run.path), LIMITS, broken, warnings.append)
    with client_of(app) as client:
        wait_until(lambda: client.get("/hardest").json()["ready"])
        assert client.get("/hardest").json()["pictures"] == []
    assert warnings == ["the page offers no test pictures: ZeroDivisionError('broken data')"]


def test_a_service_that_stops_does_not_wait_for_data_that_are_still_loading() -> None:
    may_end = threading.Event()

    def slow() -> Data:
        may_end.wait(60)
        return coloured_data()

    with client_of(build_service(Slow(), LIMITS, slow)) as client:
        assert client.get("/hardest").json() == {"ready": False, "pictures": []}
        start = time.monotonic()
    assert time.monotonic() - start < 20
    may_end.set()


def test_requests_are_answered_while_the_search_for_hard_pictures_reads_them() -> None:
    reading, may_go_on = threading.Event(), threading.Event()

    def read(index: int) -> None:
        reading.set()
        may_go_on.wait(60)

    data = data_to_read(3, read)
    with client_of(build_service(Slow(), replace(LIMITS, timeout=10.0), lambda: data)) as client:
        assert reading.wait(20)
        assert client.post("/predict", files={"file": grey(0)}).status_code == 200
        assert client.get("/hardest").json() == {"ready": False, "pictures": []}
        start = time.monotonic()
    assert time.monotonic() - start < 20
    may_go_on.set()


def test_pictures_that_cannot_be_read_are_not_among_the_hardest() -> None:
    def read(index: int) -> None:
        if index != 2:
            raise UnreadableImageError(f"{index}.png", "damaged")

    warnings: list[str] = []
    app = build_service(Slow(), replace(LIMITS, max_batch=2), lambda: data_to_read(5, read), warnings.append)
    with client_of(app) as client:
        wait_until(lambda: client.get("/hardest").json()["ready"])
        (found,) = client.get("/hardest").json()["pictures"]
    assert (found["label"], found["predicted"], warnings) == ("dark", "bright", [])
