from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import coloured_data, coloured_labels, write_class_folders
from thumbnet.batches import decoding
from thumbnet.classifiers.load import load_run
from thumbnet.cli import main
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import InterruptedRunError, NetworkError, RecipeError, RunError, ThumbnetError
from thumbnet.models.fastnet import FastNet
from thumbnet.models.resnet import ResNet, resnet18
from thumbnet.recipes.recipe import load_recipe
from thumbnet.reports.summary import optimism
from thumbnet.reviewing.scores import fold_recipe
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, write_weights
from thumbnet.training.linear import L2, Problem, held_out, last_layer, with_network_of_init
from thumbnet.training.listener import Listener
from thumbnet.training.mirror_names import named_keys
from thumbnet.training.train import resume, train
from thumbnet.training.transfer import read_initial
from training_helpers import Noting, refuse_seeds


class Notes(Listener):
    def __init__(self, stop: bool = False) -> None:
        self.stop, self.notes, self.steps = stop, list[str](), 0

    def on_note(self, text: str) -> None:
        self.notes.append(text)

    def on_step(self, step: object) -> None:
        self.steps += 1

    def should_stop(self) -> bool:
        return self.stop


def other_classes() -> Data:
    """Coloured pictures that the tiny run was not trained on, under names that it does not know."""
    data = coloured_data(splits=("known", "train", "test"))
    del data.splits["known"]
    return replace(data, class_names=("fire", "grass", "sea"))


def linear(
    source: Run, out: Path, *more: str, data: Data | None = None, listener: Listener | None = None
) -> Run:
    return train(
        other_classes() if data is None else data,
        "linear",
        overrides=[f'training.init="{source.path}"', *more],
        out=out,
        device="cpu",
        listener=listener,
    )


@pytest.fixture(scope="module")
def linear_run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return linear(tiny_run, tmp_path_factory.mktemp("linear") / "run")


def test_only_the_last_layer_changes_and_the_result_is_a_run_like_any_other(
    tiny_run: Run, linear_run: Run
) -> None:
    before, info = read_weights(tiny_run.weights_path)
    after, mine = read_weights(linear_run.weights_path)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) != name.startswith("head."), name
    assert mine.model == info.model
    assert mine.preprocessing == info.preprocessing
    assert mine.class_names == ("fire", "grass", "sea")
    assert linear_run.summary["accuracy"] > 0.95
    assert load_run(linear_run.path, "cpu").evaluate(other_classes(), "test").accuracy > 0.95
    (row,) = map(json.loads, (linear_run.path / "metrics.jsonl").read_text().splitlines())
    assert row["epoch"] == 1
    assert row["train_accuracy"] > 0.95
    assert linear_run.settings["init"]["source"] == str(tiny_run.path)


def test_features_come_from_the_cache_and_give_the_same_bits(
    tiny_run: Run, linear_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, fresh, damaged = Notes(), Notes(), Notes()
    runs = [linear(tiny_run, tmp_path / "cached", listener=cached)]
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    runs.append(linear(tiny_run, tmp_path / "fresh", listener=fresh))
    (entry,) = (tmp_path / "cache" / "decoded").glob("*/array.npy")
    content = bytearray(entry.read_bytes())
    content[-2] ^= 64
    entry.write_bytes(content)
    runs.append(linear(tiny_run, tmp_path / "damaged", listener=damaged))
    assert [one.steps for one in (cached, fresh, damaged)] == [0, 1, 1]
    for run in runs:
        assert run.weights_path.read_bytes() == linear_run.weights_path.read_bytes()


def test_changed_code_of_a_network_computes_its_features_anew(
    tiny_run: Run, linear_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    first, again, changed = Notes(), Notes(), Notes()
    linear(tiny_run, tmp_path / "first", listener=first)
    linear(tiny_run, tmp_path / "again", listener=again)
    forward = ResNet.forward
    monkeypatch.setattr(ResNet, "forward", lambda self, x: forward(self, x.flip(-2)))
    other = linear(tiny_run, tmp_path / "changed", listener=changed)
    assert [one.steps for one in (first, again, changed)] == [1, 0, 1]
    assert other.weights_path.read_bytes() != linear_run.weights_path.read_bytes()


def test_an_interrupted_training_begins_again_and_gives_the_same_bits(
    tiny_run: Run, linear_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THUMBNET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InterruptedRunError):
        linear(tiny_run, tmp_path / "run", listener=Notes(stop=True))
    stopped = resume(tmp_path / "run", device="cpu", data=other_classes())
    assert stopped.weights_path.read_bytes() == linear_run.weights_path.read_bytes()
    shutil.copytree(stopped.path, tmp_path / "killed")
    for name in ("summary.json", "model.safetensors"):  # killed after its only epoch
        (tmp_path / "killed" / name).unlink()
    killed = resume(tmp_path / "killed", device="cpu", data=other_classes())
    assert killed.weights_path.read_bytes() == linear_run.weights_path.read_bytes()


def test_several_labels_get_a_binary_regression(tiny_run: Run, tmp_path: Path) -> None:
    notes = Notes()
    run = linear(tiny_run, tmp_path / "labels", data=coloured_labels(), listener=notes)
    assert run.summary["map"] > 0.95
    assert run.summary["kept_by"] == "L2 chosen on val"
    assert any("120 held-out pictures of val" in note for note in notes.notes)


def test_the_layer_is_where_the_gradient_of_the_loss_with_l2_is_zero() -> None:
    """The loss is convex, so that is its minimum. It is written out here, in float64, with class weights."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(1, 90, 5, generator=generator) * 3 + 1
    labels = torch.arange(90) % 3
    seen[0, :, 0] += 6 * labels

    class State:
        model = nn.ModuleDict({"head": nn.Linear(5, 3)})
        recipe = load_recipe("linear", ["training.init=x"])
        class_weights = torch.tensor([1.0, 2.0, 0.5])

    problem = Problem.of(seen, labels, State(), True)  # type: ignore[arg-type]
    weight, bias = (one.double().requires_grad_() for one in problem.minimum(0.1))
    losses = F.cross_entropy(seen[0].double() @ weight.T + bias, labels, reduction="none")
    spread = seen[0].double().std(dim=0, correction=0)
    loss = (losses * State.class_weights[labels]).mean() + 0.1 / 2 * (weight * spread).square().sum()
    assert losses.mean() < 0.9 * math.log(3)
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-3  # before the search it is 1


def test_a_fifth_of_each_class_is_held_out() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 3)
    chosen = held_out(labels, 1)
    assert torch.bincount(labels[chosen], minlength=3).tolist() == [10, 2, 0]
    assert torch.equal(chosen, held_out(labels, 1))
    assert not torch.equal(chosen, held_out(labels, 2))
    assert held_out(torch.zeros(20, 4, dtype=torch.int8), 0).sum() == 4


def test_pictures_that_belong_together_are_on_the_same_side() -> None:
    labels = torch.arange(100) % 2
    alone, pairs = np.arange(100), np.arange(100) // 2
    assert torch.equal(held_out(labels, 1, alone), held_out(labels, 1))
    chosen = held_out(labels, 1, pairs).numpy()
    assert np.array_equal(chosen[::2], chosen[1::2])
    assert chosen.sum() == 20
    assert not np.array_equal(chosen, held_out(labels, 2, pairs).numpy())
    several = torch.zeros(100, 4, dtype=torch.int8)
    assert held_out(several, 1, pairs).sum() == 20
    assert not held_out(labels, 1, np.zeros(100, dtype=np.int64)).any()  # nothing can be held out


def chosen_on(source: Run, out: Path, data: Data) -> str:
    """What a linear training says about how it chose L2."""
    notes = Notes()
    linear(source, out, data=data, listener=notes)
    (note,) = [note for note in notes.notes if note.startswith("last layer")]
    return note


def test_l2_is_not_chosen_on_copies_and_groups_of_what_it_is_fitted_on(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []

    def noted(labels: torch.Tensor, seed: int, together: np.ndarray) -> torch.Tensor:
        asked.append(together)
        return held_out(labels, seed, together)

    monkeypatch.setattr("thumbnet.training.linear.held_out", noted)
    data = other_classes()
    train_split = data.splits["train"]
    assert isinstance(train_split, ArraySplit)
    images = train_split.images.copy()
    images[59] = images[0]
    data = replace(data, splits={"train": ArraySplit(images, train_split.labels, "train")})
    groups = np.array([f"person {index // 3}" for index in range(60)], dtype=object)
    grouped = replace(data, groups={"train": groups})
    assert "held-out pictures of the training split" in chosen_on(tiny_run, tmp_path / "copies", data)
    assert "held-out pictures of the training split" in chosen_on(tiny_run, tmp_path / "groups", grouped)
    copies, both = asked
    assert (copies == copies[0]).nonzero()[0].tolist() == [0, 59]
    assert (both == both[0]).nonzero()[0].tolist() == [0, 1, 2, 57, 58, 59]


def test_l2_is_not_chosen_on_pictures_that_the_frozen_layers_have_learned(
    tiny_run: Run, tmp_path: Path
) -> None:
    known = replace(coloured_data(), class_names=("fire", "grass", "sea"))
    assert chosen_on(tiny_run, tmp_path / "all", known) == (
        f"last layer: the network in {tiny_run.path} was trained on all 12 pictures to choose L2 on, so L2 is 0.0032"
    )
    val = other_classes().splits["train"]
    assert isinstance(val, ArraySplit)
    seen = known.splits["train"]
    assert isinstance(seen, ArraySplit)
    mixed = ArraySplit(
        np.concatenate([val.images, seen.images[:30]]), np.concatenate([val.labels, seen.labels[:30]]), "val"
    )
    data = replace(known, splits={"train": other_classes().splits["test"], "val": mixed})
    assert "chosen on 60 held-out pictures of val" in chosen_on(tiny_run, tmp_path / "val", data)


def with_copies_in_val() -> Data:
    """60 training pictures, and 70 of val, of which the last ten are copies of these."""
    data = other_classes()
    train_split, others = data.splits["train"], data.splits["test"]
    assert isinstance(train_split, ArraySplit)
    assert isinstance(others, ArraySplit)
    images = np.concatenate([others.images, train_split.images[:10]])
    labels = np.concatenate([others.labels, train_split.labels[:10]])
    return replace(data, splits={"train": train_split, "val": ArraySplit(images, labels, "val")})


def test_l2_is_not_chosen_on_val_pictures_that_belong_to_training_pictures(
    tiny_run: Run, tmp_path: Path
) -> None:
    data = with_copies_in_val()
    said = (
        "chosen on 60 held-out pictures of val (10 of the 70 pictures to choose L2 on are copies of training "
        "pictures or in their groups)"
    )
    assert chosen_on(tiny_run, tmp_path / "copies", data).endswith(said)
    groups = {"train": ["ann"] * 60, "val": ["ann"] * 45 + ["bob"] * 15 + ["eve"] * 10}
    grouped = replace(data, groups={name: np.array(own, dtype=object) for name, own in groups.items()})
    assert chosen_on(tiny_run, tmp_path / "groups", grouped) == (
        "last layer: 55 of the 70 pictures to choose L2 on are copies of training pictures or in their groups, so "
        "L2 is 0.0032"
    )
    others = [*(f"v{number}" for number in range(60)), *(f"v{number}" for number in range(10))]
    groups = {"train": [f"t{number}" for number in range(60)], "val": others}
    grouped = replace(data, groups={name: np.array(own, dtype=object) for name, own in groups.items()})
    said = "chosen on 50 held-out pictures of val (20 of the 70 pictures"
    assert said in chosen_on(tiny_run, tmp_path / "group-of-a-copy", grouped)


@pytest.mark.parametrize("keep", ["auto", "last"])
def test_val_chose_l2_and_no_epoch_so_its_accuracy_is_optimistic(
    keep: str, tiny_run: Run, tmp_path: Path
) -> None:
    data = with_copies_in_val()
    run = linear(tiny_run, tmp_path / "run", f"training.keep={keep}", data=data)
    assert (run.summary["split"], run.summary["kept_by"]) == ("val", "L2 chosen on val")
    assert optimism(run)["accuracy"] == "optimistic, because the same pictures chose L2"
    seen = coloured_data()
    known = replace(other_classes(), splits={**data.splits, "val": seen.splits["train"]})
    run = linear(tiny_run, tmp_path / "known", f"training.keep={keep}", data=known)
    assert run.summary["kept_by"] == "last"
    assert "accuracy" not in optimism(run), "val chose nothing"


def test_l2_is_not_chosen_on_pictures_that_the_network_may_know(tiny_run: Run, tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "ants", [""], per_class=20)
    weights, info = read_weights(tiny_run.weights_path)
    file = tmp_path / "x.safetensors"
    write_weights(file, weights, replace(info, source="ants", fingerprint="0"))
    for name, fraction in (("train", 0.0), ("val", 0.3)):
        notes = Noting(1000)
        settings = [f'training.init="{file}"', f"data.val_fraction={fraction}"]
        train(folder, "linear", overrides=settings, out=tmp_path / name, device="cpu", listener=notes)
        (note,) = [note for note in notes.notes if note.startswith("last layer")]
        assert f"last layer: the network in {file} may have been trained on some of the" in note
        assert note.endswith("pictures to choose L2 on, so L2 is 0.0032")
        (warning,) = [note for note in notes.notes if "may have been trained on pictures" in note]
        assert "train" not in warning.partition(" now in ")[2].partition(",")[0]
        perhaps = Run(tmp_path / name).settings["init"]["perhaps_known"]
        assert "train" in perhaps


def test_noise_gets_a_stronger_l2_than_a_clear_signal(tiny_run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    noise = Data("noise", "made here", ("a", "b"), {"train": ArraySplit(images, np.arange(60) % 2, "train")})

    def chosen(out: str, data: Data) -> float:
        note = chosen_on(tiny_run, tmp_path / out, data)
        return float(note.split()[3].rstrip(","))

    assert chosen("noise", noise) > 10 * chosen("clear", other_classes())
    assert max(L2) == 1
    assert math.isclose(min(L2), 1e-5)


# --- networks --------------------------------------------------------------------------------------------


class Prepared:
    """Two normalised pictures, as ``last_layer`` asks for them."""

    class train:
        class engine:
            labels = torch.zeros(2)

            @staticmethod
            def fetch(batches: object) -> list[torch.Tensor]:
                return [torch.randn(2, 3, 16, 16)]

        @staticmethod
        def normalise(images: torch.Tensor) -> torch.Tensor:
            return images


def found(model: nn.Module) -> float:
    return last_layer(model.eval(), Prepared())[1]  # type: ignore[arg-type]


def test_the_constant_between_last_layer_and_logits_is_found() -> None:
    fast = FastNet([8, 8, 8], 4)
    kept = fast.head.weight.clone()
    assert found(fast) == pytest.approx(1 / 9)
    assert torch.equal(fast.head.weight, kept)
    zeros = resnet18(num_classes=4, width=0.125)
    nn.init.zeros_(zeros.head.weight)
    assert found(zeros) == pytest.approx(1)


def test_a_look_at_the_last_layer_leaves_the_callers_generators_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_seeds(monkeypatch)
    network = FastNet([8, 8, 8], 4)
    before = torch.random.get_rng_state()
    found(network)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_networks_with_another_end_are_refused() -> None:
    class Squashed(FastNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).tanh()

    with pytest.raises(NetworkError, match="logits that are the output of head"):
        found(Squashed([8, 8, 8], 4))
    maps = FastNet([8, 8, 8], 4)
    maps.head = nn.Conv2d(8, 4, 1)  # type: ignore[assignment]
    with pytest.raises(NetworkError, match="head is a Conv2d"):
        found(maps)


# --- what does not go together ---------------------------------------------------------------------------


def test_it_needs_a_trained_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "nowhere", "--recipe", "linear", "--out", str(tmp_path / "run")]) == 2
    assert "Name that network: --init RUN" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.sampling=balanced", "training.class_weights=balanced"),
        ("data.skip_easy=0.3", "skip_easy does not go"),
        ("training.epochs=2", "expected 1 where training.frozen"),
        ("training.ema_decay=0.9", "expected 0 where training.frozen"),
        ("data.image_size=24", r"data.image_size is '24', but .* was trained with '16x16'"),
        ("model.width=0.25", "has the network resnet20 of width 0.5"),
        ("optimizer.lr=0.2", "optimizer.lr = 0.2 does not go with .* without a learning rate. Leave it out"),
        ("schedule.warmup=0.1", "schedule.warmup = 0.1 does not go with training.frozen"),
        ("augment.rotate=15", "augment.rotate = 15.* every picture passes the network as it is"),
        ("training.patience=3", "training.patience = 3 does not go with .* only one epoch"),
        ("training.keep=best", "training.keep = .best. does not go with training.frozen"),
        ("training.choose_by=loss", "training.choose_by = .loss. does not go with training.frozen"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(
    setting: str, words: str, tiny_run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ThumbnetError, match=words):
        linear(tiny_run, tmp_path / "run", setting)
    assert not (tmp_path / "run").exists()


def test_a_setting_that_asks_for_what_it_does_passes(tiny_run: Run, tmp_path: Path) -> None:
    assert linear(tiny_run, tmp_path / "run", "training.keep=last").recipe.training.keep == "last"


def test_the_recipe_of_a_run_names_every_setting_and_repeats_it(
    tiny_run: Run, linear_run: Run, tmp_path: Path
) -> None:
    """Also if it has settings that are not used, from the recipe that the user's file extends."""
    file, init = tmp_path / "own.toml", [f'training.init="{tiny_run.path}"']
    file.write_text('extends = "fast"\n[training]\nfrozen = true\nepochs = 1\n[data]\nskip_easy = 0.0\n')
    own = train(other_classes(), file, overrides=init, out=tmp_path / "own", device="cpu")
    assert own.recipe.optimizer == load_recipe("fast").fitted(60).optimizer
    for run in (linear_run, own):
        recipe = run.path / "recipe.toml"
        assert "optimizer.lr" in named_keys(recipe, [])
        again = train(other_classes(), recipe, out=tmp_path / f"again-{run is own}", device="cpu")
        assert again.weights_path.read_bytes() == run.weights_path.read_bytes()
    with pytest.raises(RecipeError, match="optimizer.lr = 0.2 does not go with training.frozen"):
        train(other_classes(), file, overrides=[*init, "optimizer.lr=0.2"], out=tmp_path / "x", device="cpu")


def test_a_time_budget_and_more_epochs_are_refused(tiny_run: Run, linear_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="leave out --minutes"):
        train(
            other_classes(),
            "linear",
            overrides=[f'training.init="{tiny_run.path}"'],
            out=tmp_path / "run",
            minutes=1,
        )
    with pytest.raises(RunError, match="more epochs change nothing"):
        resume(linear_run.path, more_epochs=2, data=other_classes())


def test_layers_without_trained_weights_are_refused(tmp_path: Path) -> None:
    weights = resnet18(num_classes=4, width=0.125).state_dict()
    weights["stem.weight"] = torch.randn(8, 3, 7, 7)
    torch.save(weights, tmp_path / "x.pt")
    settings = [f'training.init="{tmp_path / "x.pt"}"', "model.width=0.125"]
    with pytest.raises(RunError, match=r"for all layers but the last.*stem.weight \(8x3x7x7"):
        train(other_classes(), "linear", overrides=settings, out=tmp_path / "run", device="cpu")


def test_a_strangers_network_gives_features_too(tmp_path: Path) -> None:
    torch.save(resnet18(num_classes=4, width=0.125).state_dict(), tmp_path / "x.pt")
    settings = [f'training.init="{tmp_path / "x.pt"}"', "model.width=0.125"]
    run = train(other_classes(), "linear", overrides=settings, out=tmp_path / "run", device="cpu")
    assert run.summary["accuracy"] > 0.6  # even random features tell colours
    assert run.settings["init"]["how"] == "by name"


def test_a_size_that_is_the_runs_own_may_be_named(tiny_run: Run) -> None:
    settings = [f'training.init="{tiny_run.path}"', "data.image_size=16"]
    initial = read_initial(str(tiny_run.path))
    recipe = with_network_of_init(load_recipe("linear", settings), frozenset({"data.image_size"}), initial)
    assert recipe.data.image_size == "16x16"
    assert recipe.model == tiny_run.recipe.model


def test_the_first_layers_of_the_frozen_network_are_not_for_settings(tiny_run: Run) -> None:
    initial = read_initial(str(tiny_run.path))
    assert initial.info is not None
    recipe = load_recipe("linear", ["training.init=x", "model.name=timm:resnet18", "model.stem=small"])
    own, other = recipe.model, replace(recipe.model, stem="original")
    of = {model: replace(initial, info=replace(initial.info, model=model)) for model in (own, other)}
    named = frozenset({"model.stem"})
    assert with_network_of_init(recipe, frozenset(), of[other]).model == other
    assert with_network_of_init(recipe, named, of[own]).model == own
    with pytest.raises(RecipeError, match="model.stem is .small., but the frozen network has .original."):
        with_network_of_init(recipe, named, of[other])


def test_a_review_trains_its_folds_on_features_of_other_data_only(linear_run: Run) -> None:
    recipe = fold_recipe(linear_run, 1, knows=False)
    assert recipe.training.frozen
    assert recipe.training.init
    with pytest.raises(RunError, match="no network of this recipe can judge"):
        fold_recipe(linear_run, 1, knows=True)


def test_an_array_that_cannot_be_kept_is_still_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    split = other_classes().splits["train"]
    monkeypatch.setenv("THUMBNET_CACHE", "/dev/null/nowhere")
    made = decoding.cached_array(split, "x", (2,), lambda: np.ones(2, dtype=np.float32))
    assert made.tolist() == [1, 1]
