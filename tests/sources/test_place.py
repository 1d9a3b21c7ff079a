from __future__ import annotations

from pathlib import Path

from helpers import coloured, write_picture
from thumbnet.sources.load import FORMS
from thumbnet.sources.place import Place, has_pictures


def test_a_place_lists_its_pictures_and_goes_inside(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "b" / "1.png", coloured(0, 1))
    place = Place(tmp_path)
    assert place.index().pictures_below("") == ["a/b/1.png"]
    assert place.inside("a", "b").path == tmp_path / "a" / "b"
    assert place.inside("a").index().pictures_below("") == ["b/1.png"]


def test_whether_there_are_pictures(tmp_path: Path) -> None:
    assert not has_pictures(Place(tmp_path))
    assert not has_pictures(Place(tmp_path / "nowhere"))
    write_picture(tmp_path / "deep" / "1.png", coloured(0, 1))
    assert has_pictures(Place(tmp_path))


def test_every_form_has_the_two_functions() -> None:
    for form in FORMS:
        assert callable(form.recognise)
        assert callable(form.read)
