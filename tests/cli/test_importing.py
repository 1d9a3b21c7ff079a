from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from thumbnet.cli.importing import importing


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process look as if torch were not imported yet."""
    with monkeypatch.context() as changed:
        changed.delitem(sys.modules, "torch")
        yield
    gc.unfreeze()


@pytest.mark.usefixtures("_fresh")
def test_the_collector_pauses_during_imports_and_then_ignores_what_they_made() -> None:
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > 10_000
    cycle: list[object] = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() >= 1


@pytest.mark.usefixtures("_fresh")
def test_after_an_import_that_fails_the_collector_is_on_and_ignores_nothing() -> None:
    with pytest.raises(ModuleNotFoundError), importing():
        raise ModuleNotFoundError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("_fresh")
def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_objects_of_a_program_that_uses_torch_already_are_collected_as_before() -> None:
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == 0
