from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sources.trees import meaning, some
from thumbnet.data.spelling import name_key
from thumbnet.errors import DataError
from thumbnet.sources import layout
from thumbnet.sources.split_names import split_name

CLASSES = ("cat", "dog", "owl")


def classes(folder: str, count: int = 3, names: tuple[str, ...] = CLASSES) -> list[str]:
    return [path for name in names for path in some(f"{folder}/{name}/{{}}.png", count)]


# --- splits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("Train", "Test", "test"),
        ("TRAIN", "VAL", "val"),
        ("training_set", "test_set", "test"),
        ("trainset", "testset", "test"),
        ("train_images", "val_images", "val"),
        ("images_train", "images_test", "test"),
        ("01_train", "02_valid", "val"),
        ("train-200", "test-50", "test"),
        ("TrainData", "TestData", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("training/training", "validation/validation", "val"),
        ("data/train", "data/dev", "val"),
        ("a/b/train", "a/b/eval", "test"),
        ("train", "holdout", "test"),
        ("train", "hold-out", "test"),
        ("mnist_train", "mnist_test", "test"),
        ("trainval", "test", "test"),
        ("train", "test1", "test"),
    ],
)
def test_splits_are_recognised_regardless_of_case_and_affixes(train: str, other: str, split: str) -> None:
    found = meaning(classes(train, 4) + classes(other, 2))
    assert found.layout.class_names == CLASSES
    assert found.counts == {"train": 12, split: 6}
    assert found.label_of(f"{other}/dog/1.png") == (split, "dog")


@pytest.mark.parametrize(
    "name", ["constraint", "strain", "contest", "valve", "evaluator_x", "rain", "developer", "latest", "cat"]
)
def test_words_that_merely_contain_a_splits_name_are_not_splits(name: str) -> None:
    assert split_name(name) is None


def test_unusual_names_of_splits_are_noted() -> None:
    assert "Training/ is train, Testing/ is test" in meaning(classes("Training") + classes("Testing")).notes
    assert meaning(classes("train") + classes("val") + classes("test")).notes == ""


@pytest.mark.parametrize(
    ("paths", "name", "what"),
    [
        (classes("train"), "test.zip", "an archive"),
        (some("cat/{}.png", 3) + some("dog/{}.png", 3), "owl2.tar.gz", "an archive"),
        (classes("outer/train") + classes("outer/test"), "outer/extra.7z", "an archive"),
        (classes("outer/train"), "extra.zip", "an archive"),
        (some("cat/{}.png", 3) + some("dog/{}.png", 3), "scan.dcm", "a DICOM file"),
        (classes("train") + classes("test"), "more/data.h5", "an HDF5 file"),
        (classes("train"), "test/clip.mp4", "a video"),
        (some("{}_cat.png", 2) + some("{}_dog.png", 2, 2), "rest.rar", "an archive"),
    ],
)
def test_unread_data_next_to_the_pictures_is_noted(paths: list[str], name: str, what: str) -> None:
    assert "skipped" not in meaning([*paths, "README.md", "labels.csv"]).notes
    notes = meaning([*paths, "README.md", name]).notes
    shown = name.removeprefix("outer/")
    assert f"1 file(s) skipped, each {what} by its name, such as {shown}: " in notes


def test_an_error_names_two_folders_for_the_same_split() -> None:
    with pytest.raises(
        DataError, match=r"dev/ \(9 pictures\) and val/ \(9 pictures\) both look like the val"
    ):
        meaning(classes("train") + classes("dev") + classes("val"))
    with pytest.raises(DataError, match="both look like the train split"):
        meaning(classes("train") + classes("Training"))


def test_eval_and_holdout_are_val_if_there_is_a_test_folder() -> None:
    found = meaning(classes("train") + classes("test", 2) + classes("eval", 1))
    assert found.counts == {"train": 9, "test": 6, "val": 3}
    assert "eval/ is val" in found.notes


def test_an_empty_split_folder_does_not_count_as_a_split() -> None:
    found = meaning([*classes("train"), "test/", "val/cat/", "val/dog/"])
    assert found.counts == {"train": 9}
    assert "test/ has no pictures" in found.notes
    assert "val/ has no pictures" in found.notes
    assert meaning([*classes("train"), *classes("val"), "valid/"]).counts == {"train": 9, "val": 9}


def test_pictures_next_to_the_splits_are_ignored_with_a_note() -> None:
    found = meaning(classes("Train") + classes("Test") + some("Meta/{}.png", 43) + ["Train.csv"])
    assert found.counts == {"train": 9, "test": 9}
    assert "ignored next to the splits: Meta/ (43 pictures)" in found.notes


def test_a_folder_called_train_is_a_class_if_its_siblings_are_classes() -> None:
    found = meaning([path for name in ("bus", "car", "train") for path in some(f"{name}/{{}}.png", 5)])
    assert found.layout.class_names == ("bus", "car", "train")
    assert found.counts == {"train": 15}
    assert "train/ is a class here" in found.notes
    inside = meaning(
        classes("train", names=("bus", "car", "train")) + classes("test", names=("bus", "train"))
    )
    assert inside.layout.class_names == ("bus", "car", "train")
    assert inside.label_of("test/train/0.png") == ("test", "train")


def test_a_class_called_test_is_refused_unless_the_user_says_that_it_is_a_class() -> None:
    paths = [path for name in ("blood", "test", "urine") for path in some(f"{name}/{{}}.png", 5)]
    with pytest.raises(DataError, match=r"test/ but no train/, only blood/, urine/.*--classes-from here"):
        meaning(paths)
    assert meaning(paths, classes_from="here").layout.class_names == ("blood", "test", "urine")
    both = [path for name in ("bus", "test", "train") for path in some(f"{name}/{{}}.png", 5)]
    with pytest.raises(DataError, match="classes-from here"):
        meaning(both)
    assert meaning(both, classes_from="here").layout.class_names == ("bus", "test", "train")


def test_train_and_test_alone_are_never_classes() -> None:
    with pytest.raises(DataError, match=r"no labels were recognised.*such as 0\.png, 1\.png"):
        meaning(some("train/{}.png", 5) + some("test/{}.png", 5))


def test_a_train_folder_of_classes_next_to_other_classes_is_refused() -> None:
    flat = [path for name in ("bus", "car") for path in some(f"{name}/{{}}.png", 5)]
    trains = some("train/steam/{}.png", 3) + some("train/electric/{}.png", 3)
    with pytest.raises(DataError, match="look like classes"):
        meaning(flat + trains)
    with pytest.raises(DataError, match="look like classes"):
        meaning(trains + some("bus/red/{}.png", 3) + some("bus/blue/{}.png", 3))


def test_the_error_about_a_lone_test_folder_says_what_to_name() -> None:
    with pytest.raises(DataError, match=r"has test/ but no train/.*name data/test"):
        meaning(classes("test"))


def test_splits_inside_train_or_inside_classes_are_found() -> None:
    found = meaning(classes("train/train", 4) + classes("train/val", 2) + classes("test", 1))
    assert found.counts == {"train": 12, "val": 6, "test": 3}
    outside = meaning(
        [p for name in CLASSES for s in ("train", "test") for p in some(f"{name}/{s}/{{}}.png", 2)]
    )
    assert outside.counts == {"train": 6, "test": 6}
    assert outside.label_of("dog/test/1.png") == ("test", "dog")
    assert "own splits" in outside.notes


def test_several_data_sets_in_one_folder_are_not_classes() -> None:
    with pytest.raises(
        DataError, match=r"there are splits in fold_1/, fold_2/.*Name one of them: data/fold_1"
    ):
        meaning([p for fold in (1, 2) for s in ("train", "val") for p in classes(f"fold_{fold}/{s}")])
    twice = classes("DATASET/TRAIN") + classes("DATASET/TEST") + classes("dataset/DATASET/TRAIN")
    with pytest.raises(DataError, match="there are splits in DATASET/"):
        meaning(twice)
    parts = [
        p
        for k in ("bottle", "cable")
        for s in ("train", "test", "masks")
        for p in some(f"{k}/{s}/{{}}.png", 2)
    ]
    with pytest.raises(DataError, match="there are splits in bottle/, cable/"):
        meaning(parts)
    assert meaning(parts, classes_from="1").layout.class_names == ("bottle", "cable")


def test_splits_with_classes_in_their_names_are_refused() -> None:
    paths = [p for s in ("train", "test") for c in ("pos", "neg") for p in some(f"{s}_{c}/{{}}.png", 2)]
    with pytest.raises(DataError, match="combine a split with something else"):
        meaning(paths)


def test_a_class_whose_name_contains_that_of_a_split_is_noted() -> None:
    found = meaning([p for c in ("train_station", "bus_stop", "airport") for p in some(f"{c}/{{}}.png", 2)])
    assert found.layout.class_names == ("airport", "bus_stop", "train_station")
    assert "train_station/: taken as a class, not as a split" in found.notes


def test_a_copy_of_the_class_folders_is_ignored() -> None:
    names = ("Parasitized", "Uninfected")
    found = meaning(classes("cell_images", 4, names) + classes("cell_images/cell_images", 4, names))
    assert found.layout.class_names == names
    assert found.counts == {"train": 8}
    assert (
        "ignored because it contains the same class folders again: cell_images/ (8 pictures)" in found.notes
    )


def test_looking_for_a_copy_costs_little_however_many_classes_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def key(name: str) -> str:
        asked.append(name)
        return name_key(name)

    monkeypatch.setattr(layout, "name_key", key)
    assert len(meaning([f"class{number}/{number}.png" for number in range(300)]).layout.class_names) == 300
    assert len(asked) < 30 * 300  # 300 * 300 if each folder is compared with each


def test_pictures_next_to_a_wrapping_folder_are_ignored() -> None:
    found = meaning([*classes("flowers"), "preview.png", "LICENSE"])
    assert found.layout.root == "flowers"
    assert "ignored next to flowers/: 1 picture, such as preview.png" in found.notes


def test_domains_with_the_same_classes_give_a_warning() -> None:
    domains = [p for d in ("amazon", "dslr", "webcam") for p in classes(f"{d}/images", 2)]
    found = meaning(domains)
    assert found.layout.class_names == ("amazon", "dslr", "webcam")
    assert "warning: all class folders (amazon/, dslr/, webcam/) contain the same 3 folders" in found.notes
    assert meaning(domains, classes_from="3").layout.class_names[0] == "amazon/images/cat"


def test_unlabelled_pictures_next_to_labelled_ones_are_ignored() -> None:
    found = meaning(classes("labeled") + some("unlabeled/{}.png", 10))
    assert found.layout.class_names == CLASSES
    assert "ignored next to labeled/: unlabeled/ (10 pictures)" in found.notes


# --- splits without labels -------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["test", "test/unknown", "test/test", "test/images", "Test/unlabeled"])
def test_a_note_gives_the_command_for_a_test_folder_without_labels(inner: str) -> None:
    found = meaning(classes("train") + some(f"{inner}/{{}}.png", 5))
    assert found.counts == {"train": 9}
    assert "has no labels (5 pictures" in found.notes
    assert "thumbnet predict RUN data/" + inner.partition("/")[0] in found.notes


def test_a_test_folder_with_trains_classes_in_its_file_names_is_labelled() -> None:
    found = meaning([*classes("train"), "test/cat.1.jpg", "test/dog.2.jpg", "test/cat.3.jpg"])
    assert found.counts == {"train": 9, "test": 3}
    assert found.label_of("test/dog.2.jpg") == ("test", "dog")
    assert "classes taken from the file names (CLASS.NUMBER.*)" in found.notes


def test_a_test_folder_of_classes_that_train_lacks_is_refused() -> None:
    with pytest.raises(DataError, match="data/test has classes that data/train lacks: ape, bee"):
        meaning(classes("train") + classes("test", names=("ape", "bee")))


# --- tool and hidden folders -----------------------------------------------------------------------------


def test_folders_of_tools_are_skipped_at_every_depth_and_counted() -> None:
    paths = [*classes("train"), *classes("test")]
    for where in ("", "train/", "train/cat/", "test/dog/"):
        for tool in ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", ".hidden"):
            paths += some(f"{where}{tool}/{{}}.png", 2)
    found = meaning(paths)
    assert found.layout.class_names == CLASSES
    assert found.counts == {"train": 9, "test": 9}
    assert "skipped 48 pictures in 24 hidden or tool folder(s)" in found.notes


def test_a_hidden_folder_of_pictures_is_noted_and_init_is_a_class() -> None:
    found = meaning([p for name in (".net", "__init__", "java", "rust") for p in some(f"{name}/{{}}.png", 4)])
    assert found.layout.class_names == ("__init__", "java", "rust")
    assert ".net/ (4): rename it if it is a class" in found.notes


def test_the_error_says_if_all_pictures_are_hidden() -> None:
    with pytest.raises(DataError, match="except 3 pictures in hidden or tool folders"):
        meaning(some(".cache/{}.png", 3))


# --- class names -----------------------------------------------------------------------------------------


def test_unicode_forms_of_a_class_name_are_one_class() -> None:
    nfc, nfd = "café", unicodedata.normalize("NFD", "café")
    found = meaning(classes("train", names=(nfc, "thé")) + classes("test", names=(nfd, "thé")))
    assert found.layout.class_names == ("café", "thé")
    assert found.counts == {"train": 6, "test": 6}
    assert "in another Unicode form" in found.notes
    both = meaning(classes("train", names=(nfc, nfd, "tea")))
    assert both.layout.class_names == ("café", "tea")
    assert both.label_of(f"train/{nfd}/0.png") == ("train", "café")
    assert "differ only in their Unicode form" in both.notes


def test_case_and_spaces_matter_within_a_split_but_not_across_splits() -> None:
    found = meaning(classes("train", names=("Cat", "dog")) + classes("test", names=("cat", "dog ")))
    assert found.layout.class_names == ("Cat", "dog")
    assert found.label_of("test/cat/0.png") == ("test", "Cat")
    assert found.label_of("test/dog /0.png") == ("test", "dog")
    assert "'cat' is 'Cat'" in found.notes
    two = meaning(classes("train", names=("Cat", "cat")) + classes("test", names=("cat",)))
    assert two.layout.class_names == ("Cat", "cat")
    assert two.label_of("test/cat/0.png") == ("test", "cat")
    assert "differ only in case or spaces" in two.notes
    with pytest.raises(DataError, match="CAT"):
        meaning(classes("train", names=("Cat", "cat")) + classes("test", names=("CAT",)))


@pytest.mark.parametrize("second", ["cat", "Golden  Retriever"])
def test_classes_in_names_that_look_alike_are_noted(second: str) -> None:
    first = {"cat": "Cat"}.get(second, "golden retriever")
    found = meaning([f"{name}_{number}.png" for name in (first, second, "dog") for number in range(4)])
    assert set(found.layout.class_names) == {first, second, "dog"}
    assert f"differ only in case or spaces: {' and '.join(map(repr, sorted((first, second))))}" in found.notes


def test_spaces_around_a_class_name_are_removed_unless_another_class_has_that_name() -> None:
    found = meaning(classes("train", names=("cat ", "dog")))
    assert found.layout.class_names == ("cat", "dog")
    assert "without spaces" in found.notes
    assert meaning(classes("train", names=("cat", "cat "))).layout.class_names == ("cat", "cat ")


def test_an_empty_class_is_left_out_unless_too_few_remain() -> None:
    found = meaning([*classes("train"), "train/purple/"])
    assert found.layout.class_names == CLASSES
    assert "1 class folder(s) have no pictures and were left out: purple" in found.notes
    with pytest.raises(DataError, match="no pictures in the class folder"):
        meaning([*some("train/cat/{}.png", 3), "train/purple/"])


# --- folders inside classes ------------------------------------------------------------------------------

OMNIGLOT = [
    path
    for alphabet, count in (("Greek", 3), ("Latin", 4))
    for number in range(count)
    for path in some(f"{alphabet}/character{number:02}/{{}}.png", 4)
]


def test_folders_inside_classes_are_merged_with_a_note_or_become_classes() -> None:
    merged = meaning(OMNIGLOT)
    assert merged.layout.class_names == ("Greek", "Latin")
    assert "--depth 2" in merged.notes
    assert "Latin/character00/" in merged.notes
    for value in ("leaf", "2"):
        found = meaning(OMNIGLOT, classes_from=value)
        assert len(found.layout.class_names) == 7
        assert found.label_of("Greek/character01/3.png") == ("train", "Greek/character01")
    split = meaning([f"train/{p}" for p in OMNIGLOT] + [f"test/{p}" for p in OMNIGLOT], classes_from="2")
    assert split.counts == {"train": 28, "test": 28}


def test_the_leaf_alone_names_the_class_if_it_is_unique() -> None:
    paths = some("animal/cat/{}.jpg", 3) + some("animal/dog/{}.jpg", 3) + some("plant/rose/{}.jpg", 3)
    assert meaning(paths).layout.class_names == ("animal", "plant")
    assert "animal/cat/ and animal/dog/ became 'animal'" in meaning(paths).notes
    assert meaning(paths, classes_from="leaf").layout.class_names == ("cat", "dog", "rose")
    assert meaning(paths, classes_from="2").layout.class_names == ("cat", "dog", "rose")
    archive = meaning([f"outer/{path}" for path in paths], classes_from="2")
    assert archive.layout.class_names == ("cat", "dog", "rose")


def test_a_depth_keeps_the_pictures_above_it() -> None:
    paths = some("animal/{}.jpg", 2) + some("animal/cat/{}.jpg", 3) + some("animal/cat/old/{}.jpg", 1)
    found = meaning([*paths, *some("plant/rose/{}.jpg", 3)], classes_from="2")
    assert found.counts == {"train": 9}
    assert found.label_of("animal/0.jpg") == ("train", "animal")
    assert found.label_of("animal/cat/old/0.jpg") == ("train", "cat")


# --- well-known data sets as downloaded ------------------------------------------------------------------


def test_intel_image_classification() -> None:
    found = meaning(
        classes("seg_train/seg_train", 4, ("forest", "sea"))
        + classes("seg_test/seg_test", 2, ("forest", "sea"))
        + some("seg_pred/seg_pred/{}.jpg", 7)
    )
    assert found.counts == {"train": 8, "test": 4}
    assert "seg_pred/ (7 pictures)" in found.notes


def test_chest_xray_with_a_copy_of_itself_and_a_macosx_folder_inside() -> None:
    names = ("NORMAL", "PNEUMONIA")
    once = classes("train", 4, names) + classes("val", 1, names) + classes("test", 2, names)
    paths = [f"chest_xray/{path}" for path in once]
    paths += [f"chest_xray/chest_xray/{path}" for path in once]
    paths += some("chest_xray/__MACOSX/train/NORMAL/{}.jpeg", 3)
    found = meaning(paths)
    assert found.counts == {"train": 8, "val": 2, "test": 4}
    assert "chest_xray/ (14 pictures)" in found.notes
    assert meaning([f"a/b/{path}" for path in once]).counts == {"train": 8, "val": 2, "test": 4}


def test_fruits_360() -> None:
    found = meaning(
        classes("fruits-360/Training", 4)
        + classes("fruits-360/Test", 2)
        + some("fruits-360/test-multiple_fruits/apple_{}.jpg", 5)
        + ["fruits-360/LICENSE", "fruits-360/readme.md"]
    )
    assert found.counts == {"train": 12, "test": 6}
    assert "test-multiple_fruits/ (5 pictures)" in found.notes


def test_plant_village_asks_which_version_is_meant() -> None:
    versions = [p for v in ("color", "grayscale", "segmented") for p in classes(v, names=("rust", "scab"))]
    with pytest.raises(
        DataError, match=r"color/, grayscale/, segmented/ contain the same 2 folders.*data/color"
    ):
        meaning(versions)
    assert meaning(versions, classes_from="1").layout.class_names == ("color", "grayscale", "segmented")


def test_rock_paper_scissors_in_nested_folders() -> None:
    found = meaning(classes("rps/rps", names=("paper", "rock", "scissors")))
    assert (found.layout.root, found.layout.shape) == ("rps/rps", "CLASS/*")


def test_oxford_pets() -> None:
    paths = some("images/Abyssinian_{}.jpg", 5) + some("images/american_bulldog_{}.jpg", 5)
    paths += [*some("annotations/trimaps/Abyssinian_{}.png", 5), "annotations/list.txt", "images/x.mat"]
    found = meaning(paths)
    assert found.layout.class_names == ("Abyssinian", "american_bulldog")
    assert found.counts == {"train": 10}
    assert "annotations/ (5 pictures)" in found.notes


def test_caltech_101_and_eurosat_and_svhn() -> None:
    caltech = classes("caltech-101/101_ObjectCategories", names=("BACKGROUND_Google", "Faces", "accordion"))
    assert meaning(caltech).layout.class_names == ("BACKGROUND_Google", "Faces", "accordion")
    assert meaning(classes("EuroSAT/2750", names=("Forest", "River"))).layout.class_names == (
        "Forest",
        "River",
    )
    digits = tuple("0123456789")
    found = meaning(classes("train", 2, digits) + classes("test", 1, digits) + classes("extra", 1, digits))
    assert found.counts == {"train": 20, "test": 10}
    assert "extra/ (10 pictures)" in found.notes


def test_dogs_vs_cats() -> None:
    found = meaning(
        some("train/cat.{}.jpg", 6) + some("train/dog.{}.jpg", 6) + some("test1/{}.jpg", 5) + ["sample.csv"]
    )
    assert found.layout.class_names == ("cat", "dog")
    assert found.counts == {"train": 12}
    assert "thumbnet predict RUN data/test1" in found.notes


def test_each_split_may_be_wrapped_in_a_folder_of_any_name() -> None:
    found = meaning(classes("train/animals", 3) + classes("test/animals", 2) + classes("val/photos", 1))
    assert found.counts == {"train": 9, "val": 3, "test": 6}
    assert found.label_of("test/animals/dog/0.png") == ("test", "dog")


def test_wrapping_folders_inside_a_wrapping_folder() -> None:
    found = meaning(
        classes("10-monkey/training/training", 3, ("n0", "n1"))
        + classes("10-monkey/validation/validation", 2, ("n0", "n1"))
    )
    assert found.counts == {"train": 6, "val": 4}
    assert found.layout.root == "10-monkey"


# --- properties ------------------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        "train",
        "Test",
        "val",
        "dev",
        "images",
        "cat",
        "Cat",
        "cat ",
        "dog",
        "test_set",
        ".net",
        "__MACOSX",
        "color",
        "a b",
        "0",
        "train_station",
        "café",
        unicodedata.normalize("NFD", "café"),
        "seg_pred",
    ]
)
FILES = st.sampled_from(["0.png", "1.jpg", "cat_1.png", "dog_2.png", "3_cat.png", "x.txt", ".a.png", "a.jpg"])
PATHS = st.builds(lambda folders, name: "/".join([*folders, name]), st.lists(NAMES, max_size=4), FILES)


@settings(max_examples=300)
@given(st.lists(PATHS, max_size=14, unique=True), st.sampled_from(["top", "leaf", "2", "here"]))
def test_any_names_give_a_layout_or_a_clear_error(paths: list[str], by: str) -> None:
    try:
        found = meaning(paths, classes_from=by)
    except DataError as error:
        assert "data" in str(error)  # noqa: PT017
        return
    everything = [path for split, _ in found.layout.splits.values() for path in split]
    assert len(everything) == len(set(everything))  # no picture twice
    root = found.layout.root + "/" if found.layout.root else ""
    assert {root + path for path in everything} <= set(paths)
    assert not any(part.startswith(".") for path in everything for part in path.split("/"))
    for _, labels in found.layout.splits.values():
        assert not len(labels) or labels.max() < len(found.layout.class_names)
    assert all(unicodedata.is_normalized("NFC", name) for name in found.layout.class_names)
    assert len(set(found.layout.class_names)) == len(found.layout.class_names)
    # A note mentions the pictures that are in no split.
    pictures = [p for p in paths if p.endswith(("png", "jpg")) and not p.rpartition("/")[2].startswith(".")]
    if len(everything) < len(pictures):
        assert found.notes


@given(
    st.sampled_from(["train", "Training", "TRAIN", "train_set", "01_train"]),
    st.sampled_from(["test", "Testing", "TEST", "test_set", "02-test"]),
    st.lists(st.integers(1, 5), min_size=2, max_size=5),
    st.integers(0, 3),
)
def test_splits_by_any_name_give_the_same_pictures_and_labels(
    train: str, test: str, counts: list[int], wraps: int
) -> None:
    prefix = "".join(f"w{depth}/" for depth in range(wraps))
    paths = [
        f"{prefix}{split}/c{label}/{number}.png"
        for split in (train, test)
        for label, count in enumerate(counts)
        for number in range(count)
    ]
    found = meaning(paths)
    assert found.layout.class_names == tuple(f"c{label}" for label in range(len(counts)))
    for split, folder in (("train", train), ("test", test)):
        expected = [f"{folder}/c{label}/{n}.png" for label, count in enumerate(counts) for n in range(count)]
        assert found.layout.splits[split][0] == expected
