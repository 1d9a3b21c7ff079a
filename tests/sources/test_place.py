from __future__ import annotations

from pathlib import Path

from helpers import coloured, write_picture
from thumbnet.sources.load import FORMS
from thumbnet.sources.place import Place, has_pictures


def test_a_place_lists_its_pictures_and_those_of_the_places_inside(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "b" / "1.png", coloured(0, 1))
    place = Place(tmp_path)
    assert place.index().pictures_below("") == ["a/b/1.png"]
    assert place.inside("a", "b").path == tmp_path / "a" / "b"
    assert place.inside("a").index().pictures_below("") == ["b/1.png"]


def test_has_pictures_looks_at_every_depth_and_is_false_for_a_missing_folder(tmp_path: Path) -> None:
    assert not has_pictures(Place(tmp_path))
    assert not has_pictures(Place(tmp_path / "nowhere"))
    write_picture(tmp_path / "deep" / "1.png", coloured(0, 1))
    assert has_pictures(Place(tmp_path))


def test_every_form_has_recognise_and_read() -> None:
    for form in FORMS:
        assert callable(form.recognise)
        assert callable(form.read)
