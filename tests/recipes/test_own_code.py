"""The user's own code is imported, and what is wrong with it is said. tests/models/test_registry.py has more."""

from __future__ import annotations

import hashlib
import linecache
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch

from own_networks import OwnPackage
from thumbnet.errors import NetworkError, OwnCodeError
from thumbnet.recipes.own_code import (
    described,
    failing,
    import_module,
    import_object,
    layout_hint,
    path_of,
    source_digest,
    type_and_shape,
)


def test_an_object_is_found_in_the_current_folder(own: OwnPackage) -> None:
    own.write("mypackage/own.py", "def loss(logits, targets): ...\n")
    found = import_object("mypackage.own:loss")
    assert path_of(found) == "mypackage.own:loss"
    with pytest.raises(OwnCodeError, match=r"own\.py\) has no 'los'. Did you mean 'loss'"):
        import_object("mypackage.own:los")


def test_the_error_is_of_the_class_that_the_caller_asks_for(own: OwnPackage) -> None:
    with pytest.raises(OwnCodeError, match="no Python module mypackage.nowhere") as plain:
        import_module("mypackage.nowhere")
    assert not isinstance(plain.value, NetworkError)
    with pytest.raises(NetworkError):
        import_module("mypackage.nowhere", NetworkError)


def test_an_exception_of_the_users_code_names_its_line_and_stays_the_cause() -> None:
    says = r"it fails: KeyError: 'x' \(.*test_own_code.py, line \d+\)\. Try y"
    with pytest.raises(OwnCodeError, match=says) as caught, failing("it fails", hint=lambda _: ". Try y"):
        dict[str, int]()["x"]
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_digest_of_code_is_that_of_its_file(own: OwnPackage) -> None:
    file = own.write("mypackage/own.py", "def loss(logits, targets): ...\n")
    loss = import_object("mypackage.own:loss")
    first = source_digest(loss)
    assert first == hashlib.sha256(file.read_bytes()).hexdigest()
    own.write("mypackage/own.py", "STRENGTH = 2\ndef loss(logits, targets): ...\n")
    assert source_digest(loss) not in (None, first)
    file.unlink()
    assert source_digest(loss) is None


def test_in_a_script_the_digest_is_that_of_the_object_alone(
    own: OwnPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write("mypackage/own.py", "def loss(logits, targets): ...\n")
    module = import_module("mypackage.own")
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(module, "__name__", "__main__")
    monkeypatch.setattr(module.loss, "__module__", "__main__")
    expected = hashlib.sha256(b"def loss(logits, targets): ...\n").hexdigest()
    assert source_digest(module.loss) == f"text:{expected}"


def test_in_a_notebook_the_digest_of_a_class_is_that_of_its_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = "class Net:\n    def forward(self, x):\n        return x\n"
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    monkeypatch.setitem(linecache.cache, "<cell>", (len(cell), None, cell.splitlines(True), "<cell>"))
    exec(compile(cell, "<cell>", "exec"), vars(notebook))
    expected = hashlib.sha256("".join(cell.splitlines(True)[1:]).encode()).hexdigest()
    assert source_digest(notebook.Net) == f"text:{expected}"


def test_the_digest_of_what_a_call_has_made_is_that_of_the_file_that_makes_it(own: OwnPackage) -> None:
    nets = own.write("mypackage/nets.py", "def loss(power, logits, targets): ...\n")
    code = "import functools\nfrom mypackage.nets import loss\nfocal = functools.partial(loss, 2)\n"
    made = own.write("mypackage/own.py", code)
    focal = import_object("mypackage.own:focal")
    here, there = (hashlib.sha256(one.read_bytes()).hexdigest() for one in (made, nets))
    assert source_digest(focal, "mypackage.own:focal") == here
    assert source_digest(focal, "focal") == there
    assert source_digest(import_object("mypackage.own:loss"), "mypackage.own:loss") == there


def test_code_in_a_zip_file_has_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = b"def loss(logits, targets): ...\n"
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        packed.writestr("packed_own.py", code)
    monkeypatch.syspath_prepend(str(tmp_path / "packed.zip"))
    assert source_digest(import_object("packed_own:loss")) == hashlib.sha256(code).hexdigest()
    del sys.modules["packed_own"]


def test_code_without_a_source_has_no_digest() -> None:
    made: dict[str, object] = {"__name__": "nowhere"}
    exec("def loss(): ...", made)
    assert source_digest(made["loss"]) is source_digest(3) is source_digest(len) is None
    assert source_digest(made["loss"], "nowhere:loss") is source_digest(3, "nowhere:three") is None


def test_a_failed_allocation_stays_what_it_is() -> None:
    with pytest.raises(MemoryError), failing("it fails"):
        raise MemoryError


def test_only_the_first_line_of_a_message_is_shown() -> None:
    assert described(ValueError("one\ntwo")) == "ValueError: one"
    assert described(ValueError()) == "ValueError: "


def test_a_tensor_is_described_as_torch_writes_its_type() -> None:
    assert type_and_shape(torch.zeros(2, 3, dtype=torch.uint8)) == "uint8 [2, 3]"
    assert type_and_shape(torch.zeros(())) == "float32 []"


def test_a_view_that_does_not_fit_the_memory_of_pictures_has_a_hint() -> None:
    pictures = torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError) as caught:
        pictures.view(2, -1)
    assert layout_hint(str(caught.value)).endswith("use flatten or reshape instead of view")
    assert layout_hint("something else") == ""
