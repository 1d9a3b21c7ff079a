"""The bill of materials names every package of the lock once, and how they depend on each other."""

from __future__ import annotations

from typing import Any

import pytest

from pins import LOCKS, Pin, read_pins
from sbom import bill, component


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return bill()


def test_it_names_the_packages_of_the_lock(content: dict[str, Any]) -> None:
    pins = read_pins(LOCKS / "train.txt")
    found = {one["name"]: one for one in content["components"]}
    everywhere = {name for name, pin in pins.items() if not pin.marker}
    assert everywhere <= found.keys() <= pins.keys()
    assert {"torch", "numpy", "onnxruntime"} < set(found)
    assert found["torch"]["purl"] == f"pkg:pypi/torch@{pins['torch'].version}"
    assert content["metadata"]["component"]["name"] == "thumbnet"


def test_every_dependency_is_a_component(content: dict[str, Any]) -> None:
    known = {one["bom-ref"] for one in content["components"]}
    root = content["metadata"]["component"]["bom-ref"]
    graph = {one["ref"]: one["dependsOn"] for one in content["dependencies"]}
    assert graph.keys() == known | {root}
    assert {other for others in graph.values() for other in others} <= known
    names = {one.partition("@")[0] for one in graph[root]}
    assert {"pkg:pypi/torch", "pkg:pypi/pillow", "pkg:pypi/fastapi"} < names
    reached: set[str] = set()
    todo = [root]
    while todo:
        todo += [one for one in graph[todo.pop()] if one not in reached]
        reached |= set(todo)
    assert known - reached <= {next(one for one in known if "/setuptools@" in one)}


def test_the_same_commit_gives_the_same_bill(content: dict[str, Any]) -> None:
    assert bill() == content
    assert content["serialNumber"].startswith("urn:uuid:")


def test_licences_are_ids_expressions_or_names() -> None:
    pin = Pin("a", "1")
    assert component(pin, "MIT")["licenses"] == [{"license": {"id": "MIT"}}]
    assert component(pin, "MIT AND Zlib")["licenses"] == [{"expression": "MIT AND Zlib"}]
    assert component(pin, "BSD")["licenses"] == [{"license": {"name": "BSD"}}]
