import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.data.repeats import CopiedClass, Repeats, find_repeats, number_pictures, picture_digests


def pictures(count: int, seed: int = 0, side: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def find(images: dict[str, np.ndarray], labels: dict[str, list[int]]) -> Repeats:
    digests = {name: picture_digests(some) for name, some in images.items()}
    return find_repeats(digests, {name: np.array(some, dtype=np.int64) for name, some in labels.items()})


def test_equal_pictures_have_equal_digests_wherever_they_stand() -> None:
    images = pictures(50)
    again = images[::-1].copy()
    assert np.array_equal(picture_digests(images), picture_digests(again)[::-1])
    assert np.array_equal(picture_digests(images[17:18])[0], picture_digests(images)[17])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 146), st.integers(1, 255), st.integers(0, 146), st.integers(0, 255))
def test_any_change_of_one_or_two_bytes_changes_the_digest(
    first: int, by: int, second: int, also: int
) -> None:
    image = pictures(1)
    changed = image.copy()
    flat = changed.reshape(-1)
    flat[first] = (int(flat[first]) + by) % 256
    if second != first:
        flat[second] = (int(flat[second]) + also) % 256
    assert not np.array_equal(picture_digests(image), picture_digests(changed))


def test_changes_of_the_highest_bit_in_two_places_do_not_cancel() -> None:
    image = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    digests = {tuple(picture_digests(image)[0].tolist())}
    count = 0
    for first in range(0, 192, 4):
        for second in range(first + 4, 192, 4):
            changed = image.copy()
            changed.reshape(-1)[[first + 3, second + 3]] ^= 0x80
            digests.add(tuple(picture_digests(changed)[0].tolist()))
            count += 1
    assert len(digests) == count + 1


def test_black_pictures_of_different_shapes_have_different_digests() -> None:
    shapes = [(4, 4, 3), (4, 5, 3), (5, 4, 3), (4, 4, 1), (2, 8, 3)]
    found = {tuple(picture_digests(np.zeros((1, *s), np.uint8))[0].tolist()) for s in shapes}
    assert len(found) == len(shapes)


def test_digests_are_the_same_in_every_process_and_version() -> None:
    """They are stored with runs: a change of this number is a change of format."""
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(1, 2, 2, 3)
    assert [hex(value) for value in picture_digests(image)[0].tolist()] == [
        "0x54a63ceda61a0f9e",
        "0xe1b5a08235aef764",
    ]


def test_digests_of_floats_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        picture_digests(np.zeros((2, 4, 4, 3)))


def test_a_part_smaller_than_a_picture_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(20)
    whole = picture_digests(images)
    monkeypatch.setattr("thumbnet.data.repeats._PART_BYTES", 1)
    assert np.array_equal(picture_digests(images), whole)


def test_distinct_pictures_are_neither_leaks_nor_conflicts_nor_repeats() -> None:
    found = find(
        {"train": pictures(40), "test": pictures(40, 1)}, {"train": [0, 1] * 20, "test": [0, 1] * 20}
    )
    assert (found.leaks, found.conflicts, found.copied_classes) == ((), (), ())
    assert found.repeated == {"train": 0, "test": 0}


def test_a_leak_names_the_picture_in_train_and_the_one_in_test() -> None:
    train, test = pictures(10), pictures(10, 1)
    test[3], test[7] = train[8], train[2]
    found = find(
        {"train": train, "test": test}, {"train": [0, 1] * 5, "test": [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]}
    )
    assert found.leaks == ((("train", 8), ("test", 3)), (("train", 2), ("test", 7)))
    assert found.conflicts == ()


def test_one_picture_in_two_classes_is_a_conflict_and_a_repeat() -> None:
    train = pictures(6)
    train[5] = train[0]
    found = find({"train": train}, {"train": [0, 0, 0, 1, 1, 1]})
    assert found.conflicts == ((("train", 0), ("train", 5)),)
    assert found.repeated == {"train": 1}


def test_a_conflict_across_splits_is_also_a_leak() -> None:
    train, test = pictures(4), pictures(4, 1)
    test[0] = train[0]
    found = find({"train": train, "test": test}, {"train": [0, 0, 1, 1], "test": [1, 1, 0, 0]})
    assert found.leaks == ((("train", 0), ("test", 0)),)
    assert found.conflicts == ((("train", 0), ("test", 0)),)
    assert found.copies == ()  # it is once in each split


def test_repeats_are_counted_for_each_split_by_itself() -> None:
    train = pictures(3)[[0, 0, 0, 1, 2]]
    test = pictures(3, 1)[[0, 0, 1]]
    found = find({"train": train, "test": test}, {"train": [0, 0, 0, 1, 1], "test": [0, 0, 1]})
    assert found.repeated == {"train": 2, "test": 1}
    assert found.copies == (
        (("train", 0), ("train", 1)),
        (("train", 0), ("train", 2)),
        (("test", 0), ("test", 1)),
    )
    assert found.leaks == ()


def test_unlabelled_pictures_leak_without_a_conflict() -> None:
    images = pictures(4)
    found = find({"train": images, "test": images}, {"train": [0, 0, 1, 1], "test": [-1] * 4})
    assert len(found.leaks) == 4
    assert found.conflicts == ()


def test_a_class_whose_pictures_are_all_in_another_is_a_copy() -> None:
    images = pictures(20)
    train = np.concatenate([images, images, pictures(10, 1)])
    labels = [0] * 20 + [1] * 20 + [2] * 10
    found = find({"train": train}, {"train": labels})
    assert found.copied_classes == (CopiedClass("train", 0, 1, 20, 20),)
    assert len(found.conflicts) == 20


def test_a_class_that_shares_half_of_its_pictures_is_no_copy() -> None:
    images = pictures(20)
    train = np.concatenate([images, images[:10], pictures(10, 1)])
    found = find({"train": train}, {"train": [0] * 20 + [1] * 20})
    assert found.copied_classes == ()
    assert len(found.conflicts) == 10


def test_the_small_class_within_a_large_one_is_the_copy() -> None:
    images = pictures(40)
    found = find({"train": np.concatenate([images, images[:10]])}, {"train": [0] * 40 + [1] * 10})
    assert found.copied_classes == (CopiedClass("train", 1, 0, 10, 10),)


def test_an_empty_split_has_no_repeats() -> None:
    empty = np.zeros((0, 7, 7, 3), dtype=np.uint8)
    assert find({"train": empty}, {"train": []}).repeated == {"train": 0}
    assert find({"train": pictures(2), "test": empty}, {"train": [0, 1], "test": []}).leaks == ()


def test_a_copy_is_found_although_a_part_of_each_class_was_set_aside() -> None:
    images = pictures(20)
    train = np.concatenate([images[:15], images[5:]])
    test = np.concatenate([images[15:], images[:5]])
    labels = {"train": [0] * 15 + [1] * 15, "test": [0] * 5 + [1] * 5}
    found = find({"train": train, "test": test}, labels).copied_classes
    assert CopiedClass("train", 0, 1, 15, 15) in found


def test_equal_digests_share_a_number() -> None:
    digests = np.array([[5, 1], [2, 9], [5, 1], [5, 2], [2, 9]], dtype=np.uint64)
    assert number_pictures(digests).tolist() == [1, 0, 1, 2, 0]
    assert number_pictures(np.empty((0, 2), dtype=np.uint64)).tolist() == []
