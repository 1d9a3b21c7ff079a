"""constraints.txt, pyproject.toml and the locks agree, and everything in a lock has a hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pins import CONSTRAINTS, LOCKS, ROOT, Pin, normalised, read_pins, write_pins

NAMES = ["build", "cuda", "serve", "test", "tools", "torch-cpu", "train"]
RENEW = "run: make lock"


def lock(name: str) -> dict[str, Pin]:
    return read_pins(LOCKS / f"{name}.txt")


def required(*extras: str) -> list[Requirement]:
    """What thumbnet with these extras asks for itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    texts = list(project["dependencies"])
    for extra in extras:
        for text in project["optional-dependencies"][extra]:
            inner = Requirement(text)
            own = normalised(inner.name) == "thumbnet"
            texts += map(str, required(*inner.extras)) if own else [text]
    return [Requirement(text) for text in texts]


def test_the_locks_are_those_that_the_makefile_and_the_dockerfile_name() -> None:
    assert sorted(path.stem for path in LOCKS.iterdir()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_pin_has_the_hashes_of_its_files(name: str) -> None:
    pins = lock(name)
    assert pins
    for pin in pins.values():
        assert pin.hashes, f"{pin.name}: {RENEW}"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in pin.hashes), pin.name


@pytest.mark.parametrize("name", ["build", "serve", "test", "train"])
def test_the_locks_have_the_versions_of_constraints(name: str) -> None:
    constraints = read_pins(CONSTRAINTS)
    pins = lock(name)
    wrong = {one for one in pins.keys() & constraints if pins[one].version != constraints[one].version}
    assert not wrong, RENEW
    # What constraints.txt lacks is for other platforms than the one that it was written on.
    assert all(pins[one].marker for one in pins.keys() - constraints.keys()), RENEW


def test_the_lock_of_the_tests_has_everything_that_constraints_pin() -> None:
    elsewhere = {"timm", "torchvision"}  # `make test-timm` installs them in an environment of their own
    assert not read_pins(CONSTRAINTS).keys() - lock("test").keys() - elsewhere, RENEW


@pytest.mark.parametrize(
    ("name", "extras"), [("serve", ("onnx", "serve")), ("train", ("all",)), ("test", ("dev",))]
)
def test_a_lock_satisfies_what_pyproject_asks_for(name: str, extras: tuple[str, ...]) -> None:
    pins = lock(name)
    for one in required(*extras):
        pin = pins.get(normalised(one.name))
        assert pin is not None, f"{one.name}: {RENEW}"
        assert pin.version in one.specifier, f"{one}: {RENEW}"


def test_torch_may_be_the_build_for_the_cpu_or_the_usual_one() -> None:
    cpu = lock("torch-cpu")["torch"]
    for name in ("train", "test"):
        torch = lock(name)["torch"]
        assert cpu.version == f"{torch.version}+cpu"
        assert set(cpu.hashes) < set(torch.hashes)


def test_cuda_is_in_a_lock_of_its_own_and_what_serves_has_no_torch() -> None:
    cuda = lock("cuda")
    assert "nvidia-cublas" in cuda
    assert not cuda.keys() & (lock("train").keys() | lock("test").keys())
    assert not {"torch", "setuptools", "pip"} & lock("serve").keys()


def test_pins_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "lock.txt"
    pins = {
        "a-b": Pin("a-b", "1.0+cpu", "sys_platform == 'linux'", ["sha256:12", "sha256:34"]),
        "c": Pin("c", "2"),
    }
    write_pins(path, "Two packages.\nOne has a marker.", pins)
    assert read_pins(path) == pins
    assert read_pins(tmp_path / "missing.txt") == {}


@pytest.mark.parametrize("text", ["torch>=2\n", "torch\n", "a_b==1\na-b==2\n", "a==1 b==2\n"])
def test_a_line_that_is_no_pin_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lock.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match="expected NAME==VERSION|two versions"):
        read_pins(path)
