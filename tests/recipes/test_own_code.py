"""The user's own code is imported, and what is wrong with it is said. tests/models/test_registry.py has more."""

from __future__ import annotations

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
