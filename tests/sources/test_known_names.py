from __future__ import annotations

from pathlib import Path

import pytest

from thumbnet.invocation import install_command
from thumbnet.sources.known_names import explain

KNOWN = ("digits", "cifar10", "mnist")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CIFAR-10", "Did you mean 'cifar10'?"),
        ("cifra10", "Did you mean 'cifar10'?"),
        ("https://example.com/x.zip", "thumbnet does not download from addresses"),
        ("https://huggingface.co/datasets/uoft-cs/cifar10", "thumbnet train hf:uoft-cs/cifar10"),
        ("someone/pictures", "If it is on the Hugging Face Hub: hf:someone/pictures"),
        ("imagenet", "imagenet"),
        ("ILSVRC2012", ""),
    ],
)
def test_the_error_about_an_unknown_name_says_what_to_do(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = explain(name, KNOWN)
    assert message.startswith(f"there is no data set, folder or archive {name!r}.")
    assert words.lower() in message.lower()


def test_the_error_names_a_similar_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    assert "A similar path is 'pictures'" in explain("pictrues", KNOWN)
    assert "has no 'deeper'" in explain("pictures/deeper/x", KNOWN)


def test_the_error_escapes_control_characters() -> None:
    assert "\x1b" not in explain("a\x1b[31m", KNOWN)


def test_a_data_set_on_the_hub_is_named_with_the_command_that_installs_what_it_needs() -> None:
    message = explain("SVHN", KNOWN)
    assert "thumbnet train hf:ufldl-stanford/svhn:cropped_digits" in message
    assert f"(needs {install_command('hub')})" in message
