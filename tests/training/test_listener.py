from __future__ import annotations

import inspect
from typing import Any

import pytest

from thumbnet.training.listener import Listener, Listeners, StoppableListener

EVENTS = [name for name, _ in inspect.getmembers(Listener, inspect.isfunction) if name.startswith("on_")]


class Recording(Listener):
    """Notes every event."""

    def __init__(self, stops: bool = False) -> None:
        self.heard: list[tuple[str, tuple[Any, ...]]] = []
        self.stops = stops

    def should_stop(self) -> bool:
        return self.stops


def record(name: str) -> Any:
    return lambda self, *values: self.heard.append((name, values))


for _event in EVENTS:
    setattr(Recording, _event, record(_event))


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_reaches_every_listener_with_its_values(event: str) -> None:
    first, second = Recording(), Recording()
    count = len(inspect.signature(getattr(Listener, event)).parameters) - 1
    values = tuple(object() for _ in range(count))
    getattr(Listeners(first, second), event)(*values)
    assert first.heard == second.heard == [(event, values)]


@pytest.mark.parametrize("stops", [(False, False), (True, False), (False, True), (True, True)])
def test_one_listener_is_enough_to_stop(stops: tuple[bool, bool]) -> None:
    assert Listeners(*map(Recording, stops)).should_stop() is any(stops)


def test_a_stoppable_listener_stops_on_request_and_knows_when_there_is_something_to_save() -> None:
    listener: Any = StoppableListener()
    assert (listener.started, listener.should_stop()) == (False, False)
    listener.on_start(None, None, None)
    listener.stop_requested = True
    assert (listener.started, listener.should_stop()) == (True, True)
