"""Every recipe trains on a simulated GPU as on the CPU, and no step makes the host wait for the GPU.

On a GPU, the host launches the operations of the next steps while the GPU computes. A step that waits, or copies
with a wait, leaves the GPU idle. The numbers below are the copies and waits that a training may have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import TURNED, coloured_data
from simulated_device import CUDA, STAGED, Copy, Log, Wait, gpu_tensor, simulated_gpu
from thumbnet.batches import prepare as prepare_module
from thumbnet.batches.augment import translate
from thumbnet.batches.engines import MemoryEngine, fits_in_memory
from thumbnet.batches.prepare import prepare
from thumbnet.batches.selection import Selection
from thumbnet.classifiers import torch_classifier as torch_classifier_module
from thumbnet.classifiers.load import load_classifier
from thumbnet.classifiers.logits import collect_views
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.errors import InterruptedRunError
from thumbnet.hardware import has_fast_bf16, send
from thumbnet.kernels import library
from thumbnet.recipes.recipe import load_recipe, recipe_names
from thumbnet.runs.folder import Run
from thumbnet.training import session as session_module
from thumbnet.training.build import build_state
from thumbnet.training.epochs import EpochResult
from thumbnet.training.fit import LOOK_EVERY, StepResult, fit
from thumbnet.training.listener import Listener
from thumbnet.training.mirrored import _probe
from thumbnet.training.range_test import learning_rate_range_test
from thumbnet.training.state import TrainingState
from thumbnet.training.train import resume, train

CPU = torch.device("cpu")
DATA = coloured_data(100)
TINY = [
    "training.epochs=2",
    "training.batch_size=16",
    "training.min_steps=0",
    "training.precision=fp32",  # on the CPU, bfloat16 uses kernels that round differently
    "model.width=0.125",
]

# Copies in one step: the random choices of its augmentation.
PER_STEP = 1
# Copies before an epoch's first step: its order, and with `skip_easy` the order of equal losses.
PER_EPOCH = 2
# A copy before a training's first step: which pictures are mirrored first.
PER_TRAINING = 1
# Waits of a step in which the losses are checked: every LOOK_EVERY steps, and an epoch's last step.
PER_LOOK = 1
# Waits after an epoch's last step: logits and labels of an evaluation; losses and correct answers, for the epoch's
# result and again for the checkpoint; and four tensors of `skip_easy` for the checkpoint. Writing the checkpoint,
# which copies every other tensor, is not counted.
PER_EPOCH_END = 10


@dataclass
class Span:
    """Copies and waits of a part of a training."""

    copies: list[Copy]
    waits: list[Wait]


@dataclass
class Recorder(Listener):
    """Divides the log of a training into its steps, and what happens between epochs."""

    log: Log
    first: list[Span] = field(default_factory=list)  # an epoch's beginning with its first step
    inner: list[Span] = field(default_factory=list)  # other steps
    looks: list[Span] = field(default_factory=list)  # steps in which the losses are checked
    ends: list[Span] = field(default_factory=list)  # between an epoch's last step and the next epoch
    stop_at: int = 0
    _step: int = 0

    def on_start(self, run: Run, state: TrainingState, prepared: prepare_module.Prepared) -> None:
        self.log.clear()

    def on_step(self, step: StepResult) -> None:
        self._step = step.step
        last = step.step_in_epoch == step.steps_per_epoch or step.step == step.total_steps
        looks = last or step.step_in_epoch % LOOK_EVERY == 0
        kind = self.looks if looks else self.first if step.step_in_epoch == 1 else self.inner
        kind.append(self._span())

    def on_epoch(self, result: EpochResult) -> None:
        self.ends.append(self._span())

    def should_stop(self) -> bool:
        return self._step == self.stop_at

    def _span(self) -> Span:
        """What has happened since the last call, without checkpoints and the search for repeated pictures."""
        elsewhere = ("runs/folder.py", "batches/leaks.py")
        copies = [c for c in self.log.copies if not c.place.startswith(elsewhere)]
        waits = [w for w in self.log.waits if not w.place.startswith(elsewhere)]
        self.log.clear()
        return Span(copies, waits)


@pytest.fixture(autouse=True)
def _no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second training, which looks for mirrored classes, in the tests of the first."""
    monkeypatch.setattr(session_module, "find_mirrored", lambda *_: [])


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's operations on the CPU, as on the GPU: Muon's kernel rounds in another place."""
    monkeypatch.setattr(library, "_loaded", {})
    library.switch_off("for a test")


@pytest.fixture
def log() -> Iterator[Log]:
    with simulated_gpu(fast_bf16=has_fast_bf16(CPU)) as log:  # Muon's precision depends on it
        yield log


def weights(run: Run) -> dict[str, torch.Tensor]:
    from thumbnet.runs.weights import read_weights

    return read_weights(run.path / "model.safetensors")[0]


def assert_equal_weights(run: Run, other: Run) -> None:
    expected = weights(other)
    for name, tensor in weights(run).items():
        assert torch.equal(tensor, expected[name]), name


def learn_on_gpu(recipe: str, overrides: Sequence[str], out: Path) -> tuple[Run, Recorder]:
    """The run on the GPU, and what it copied and waited for."""
    with simulated_gpu(fast_bf16=has_fast_bf16(CPU)) as log:
        recorder = Recorder(log)
        settings = [*TINY, *overrides]
        run = train(DATA, recipe, overrides=settings, out=out / "gpu", device="cuda", listener=recorder)
    return run, recorder


def learn(recipe: str, overrides: Sequence[str], out: Path) -> tuple[Run, Run, Recorder]:
    """The run on the CPU, the run on the GPU, and what the latter copied and waited for."""
    on_cpu = train(DATA, recipe, overrides=[*TINY, *overrides], out=out / "cpu", device="cpu")
    return on_cpu, *learn_on_gpu(recipe, overrides, out)


def assert_resumes(recipe: str, overrides: Sequence[str], out: Path, expected: Run) -> None:
    """Check that a training that is stopped and resumed on the GPU has the weights of ``expected``."""
    with simulated_gpu(fast_bf16=has_fast_bf16(CPU)) as log:
        settings = [*TINY, *overrides]
        with pytest.raises(InterruptedRunError):
            train(
                DATA,
                recipe,
                overrides=settings,
                out=out / "part",
                device="cuda",
                listener=Recorder(log, stop_at=5),
            )
        assert_equal_weights(resume(out / "part", device="cuda", data=DATA), expected)


def assert_no_step_waits(
    recorder: Recorder, sent: int = PER_STEP, waits: int = 0, largest: float = STAGED
) -> None:
    """Check that every step has up to ``sent`` copies of ``largest`` bytes without waits, and ``waits`` waits."""
    assert recorder.inner
    for span in [*recorder.inner, *recorder.first]:
        assert all(copy.bytes <= largest for copy in span.copies), span.copies
    for span in recorder.inner:
        assert len(span.waits) == waits, span.waits
        assert len(span.copies) <= sent + waits, span.copies
        assert sum(copy.blocking for copy in span.copies) <= waits, span.copies
    for number, span in enumerate(recorder.first):
        assert len(span.waits) == waits, span.waits
        before = PER_EPOCH + (PER_TRAINING if number == 0 else 0)
        assert len(span.copies) <= before + sent + waits, span.copies
    for span in recorder.looks:
        assert len(span.waits) <= PER_LOOK + waits, span.waits
    for span in recorder.ends:
        assert len(span.waits) <= PER_EPOCH_END, span.waits


@pytest.mark.parametrize(
    "recipe",
    [name for name in recipe_names() if name != "finetune" and not load_recipe(name).training.frozen],
)  # `finetune` asks for a network of timm, and `linear` for trained weights: they have tests of their own
def test_a_recipe_trains_resumes_and_predicts_as_on_the_cpu_and_no_step_waits(
    recipe: str, tmp_path: Path
) -> None:
    on_cpu, on_gpu, recorder = learn(recipe, [], tmp_path)
    assert_equal_weights(on_gpu, on_cpu)
    # With `tta = "adaptive"`, pictures are in other batches, so that matrix products are rounded differently.
    assert on_gpu.summary["loss"] == pytest.approx(on_cpu.summary["loss"], rel=1e-5)
    assert len(recorder.inner) >= 4
    assert_no_step_waits(recorder)

    with simulated_gpu(fast_bf16=has_fast_bf16(CPU)):
        classifier, expected = load_classifier(on_gpu.path, "cuda"), load_classifier(on_cpu.path, "cpu")
        picture = [DATA.splits["test"].load(0)]
        assert classifier.predict(picture) == expected.predict(picture)
        found = classifier.evaluate(DATA, "test").loss
        assert found == pytest.approx(expected.evaluate(DATA, "test").loss, rel=1e-5)
    assert_resumes(recipe, [], tmp_path, on_cpu)


def test_a_last_layer_on_frozen_features_is_the_same_as_on_the_cpu(tiny_run: Run, tmp_path: Path) -> None:
    settings = [
        f'training.init="{tiny_run.path}"',
        "training.class_weights=balanced",
        "training.precision=fp32",
    ]
    on_cpu = train(DATA, "linear", overrides=settings, out=tmp_path / "cpu", device="cpu")
    waits: list[int] = []
    for size in (50, 10):
        with simulated_gpu(fast_bf16=has_fast_bf16(CPU)) as log:
            own = [*settings, f"training.batch_size={size}"]
            on_gpu = train(DATA, "linear", overrides=own, out=tmp_path / str(size), device="cuda")
        waits.append(sum(wait.place.startswith("training/linear.py") for wait in log.waits))
    assert waits[0] == waits[1], waits  # not one per batch
    assert_equal_weights(on_gpu, on_cpu)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.ema_decay=0.9"],
        ["data.sampling=balanced", "data.skip_easy=0", "augment.mixup=0.4", "augment.cutmix=1.0"],
        ["training.micro_batch=8", "schedule.head_first=0.4"],
        [
            "data.skip_easy=0.4",
            *TURNED,
            "augment.flip=random",
            "augment.cutout=6",
            "augment.translate_fill=zero",
        ],
        ["training.class_weights=balanced", "evaluation.every=1"],
        [
            "optimizer.name=adamw",
            "optimizer.lr=0.001",
            "optimizer.groups=[]",
            "schedule.small_until=0.5",
            "schedule.small_sides=[1.0]",
            "evaluation.tta=mirror",
        ],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_setting_trains_and_resumes_as_on_the_cpu_and_no_step_waits(
    overrides: list[str], tmp_path: Path
) -> None:
    on_cpu, on_gpu, recorder = learn("fast", overrides, tmp_path)
    assert_equal_weights(on_gpu, on_cpu)
    assert_no_step_waits(recorder)
    assert_resumes("fast", overrides, tmp_path, on_cpu)


def test_skipping_steps_that_are_not_finite_costs_one_wait_per_step(tmp_path: Path) -> None:
    on_cpu, on_gpu, recorder = learn("fast", ["training.on_nonfinite=skip"], tmp_path)
    assert_equal_weights(on_gpu, on_cpu)
    assert_no_step_waits(recorder, waits=1)


def test_pictures_from_workers_are_sent_from_pinned_memory(tmp_path: Path) -> None:
    """Each step has two copies: the pictures, and everything else."""
    settings = ["data.engine=workers", "data.workers=1", "data.skip_easy=0"]
    settings += ["training.batch_size=32", "data.image_size=32"]
    on_cpu, on_gpu, recorder = learn("fast", settings, tmp_path)
    assert_equal_weights(on_gpu, on_cpu)
    assert_no_step_waits(recorder, sent=2, largest=math.inf)
    assert max(copy.bytes for span in recorder.inner for copy in span.copies) > STAGED


def test_no_memory_is_pinned_for_a_training_on_the_cpu(tmp_path: Path, log: Log) -> None:
    settings = [*TINY, "data.engine=workers", "data.workers=1", "training.epochs=1"]
    pinned: list[bool] = []

    class Watching(Listener):
        def on_start(self, run: Run, state: TrainingState, prepared: prepare_module.Prepared) -> None:
            engine = prepared.train.engine
            pinned.append(next(engine.fetch([torch.arange(3)])).is_pinned())

    for device in ("cpu", "cuda"):
        train(DATA, "fast", overrides=settings, out=tmp_path / device, device=device, listener=Watching())
    assert pinned == [False, True]


def test_losses_are_checked_after_every_twentieth_step_only(tmp_path: Path) -> None:
    _, recorder = learn_on_gpu("fast", ["training.batch_size=3", "training.epochs=1"], tmp_path)
    assert len(recorder.looks) == 2  # after step 20, and after the last of 22
    assert len(recorder.inner) == 19
    assert_no_step_waits(recorder)


def test_a_training_in_bfloat16_does_not_wait_either(tmp_path: Path, log: Log) -> None:
    recorder = Recorder(log)
    settings = [*TINY, "training.precision=bf16"]
    run = train(DATA, "fast", overrides=settings, out=tmp_path / "run", device="cuda", listener=recorder)
    assert_no_step_waits(recorder)
    assert all(bool(tensor.isfinite().all()) for tensor in weights(run).values())


def test_training_begins_from_another_runs_weights(tmp_path: Path, tiny_run: Run) -> None:
    settings = [f"training.init={tiny_run.path}", "model.name=resnet20", "model.width=0.5"]
    on_cpu, on_gpu, recorder = learn("tutorial", settings, tmp_path)
    assert_equal_weights(on_gpu, on_cpu)
    assert_no_step_waits(recorder)
    assert_resumes("tutorial", settings, tmp_path, on_cpu)


def test_the_range_test_finds_the_rate_that_it_finds_on_the_cpu_and_reads_few_losses(log: Log) -> None:
    recipe = load_recipe("fast", TINY)
    found, steps = [], LOOK_EVERY + 1
    for device in (CPU, CUDA):
        prepared = prepare(DATA, recipe, device)
        state = build_state(recipe, prepared, DATA.class_names, device)
        log.clear()
        found.append(learning_rate_range_test(state, prepared.train, steps=steps, highest=1.0))
    assert found[0] == found[1]
    assert len(found[0].losses) == steps
    assert len(log.waits) == 2


def test_a_range_test_whose_loss_blows_up_between_looks_is_that_of_the_cpu(log: Log) -> None:
    recipe = load_recipe("fast", TINY)
    found = []
    for device in (CPU, CUDA):
        prepared = prepare(DATA, recipe, device)
        state = build_state(recipe, prepared, DATA.class_names, device)
        found.append(learning_rate_range_test(state, prepared.train, steps=35, highest=1e8))
    assert found[0] == found[1]
    assert len(found[0].losses) % LOOK_EVERY


def test_the_probe_for_mirrored_classes_finds_on_the_gpu_what_it_finds_on_the_cpu(log: Log) -> None:
    found = []
    for device in (CPU, CUDA):
        recipe = load_recipe("fast", [*TINY, "training.batch_size=100"])
        prepared = prepare(DATA, recipe, device)
        found.append(_probe(recipe, prepared, "test", (0, 1), device))
    assert found[0] == found[1]
    assert found[0][0] > 0.9


def test_a_step_of_fast_has_a_bounded_number_of_launches(log: Log) -> None:
    """Without CUDA graphs, each costs the host more time than the GPU needs for it."""
    recipe = load_recipe("fast", TINY)
    prepared = prepare(DATA, recipe, CUDA)
    state = build_state(recipe, prepared, DATA.class_names, CUDA)
    launched: list[int] = []
    of_optimizer: list[int] = []

    def on_step(step: StepResult) -> None:
        launched.append(sum(log.launches.values()))
        log.launches.clear()

    before: list[int] = []
    state.optimizer.register_step_pre_hook(lambda *_: before.append(sum(log.launches.values())))
    state.optimizer.register_step_post_hook(
        lambda *_: of_optimizer.append(sum(log.launches.values()) - before.pop())
    )
    for _ in fit(state, prepared.train, on_step=on_step):
        pass
    assert 100 < launched[1] <= 225
    assert 50 < of_optimizer[1] <= 100


# --- parts -------------------------------------------------------------------------------------------------


def test_an_evaluation_with_all_views_waits_no_more_often_for_more_batches(log: Log) -> None:
    recipe = load_recipe("fast", [*TINY, "evaluation.batch_size=10"])
    prepared = prepare(coloured_data(200), recipe, CUDA)
    model = build_state(recipe, prepared, DATA.class_names, CUDA).model
    with torch.no_grad():
        model.head.weight.mul_(100)  # type: ignore[union-attr, operator]
    batches: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    log.clear()
    logits, plain, _ = collect_views(model, prepared.evaluation["test"], dtype=torch.float32, tta="adaptive")
    changed = int((logits != plain).any(dim=1).sum())
    assert 10 < changed < 190
    assert len(log.waits) <= 4  # which pictures are uncertain; logits, plain logits, labels
    assert len(batches) == 20 + 5 * -(-changed // 10)
    assert sum(batches) == 200 + 5 * changed


def test_predicting_with_all_views_waits_twice(tiny_run: Run, log: Log) -> None:
    """Once to choose the uncertain pictures, once for the result."""
    classifier = load_classifier(tiny_run.path, "cuda")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    log.clear()
    classifier.logits(pixels, tta="adaptive")
    assert len(log.waits) == 2
    assert [copy.to for copy in log.copies if copy.blocking] == ["host", "host"]


def test_an_epochs_pictures_are_chosen_on_the_gpu_and_are_those_chosen_on_the_cpu(log: Log) -> None:
    losses = torch.randint(5, (300,), generator=torch.Generator().manual_seed(0)).float()  # with many ties
    here, there = Selection(300, 200, seed=0), Selection(300, 200, seed=0, device=CUDA)
    for epoch in range(4):
        chosen = here.begin(epoch)
        here.note(chosen, losses[chosen])
        log.clear()
        positions = there.begin(epoch)
        there.note(positions, gpu_tensor(losses)[positions])
        assert not log.waits
        assert len(log.copies) == 1
        assert torch.equal(positions.cpu(), chosen)


def test_translating_computes_only_the_border_that_it_fills(log: Log) -> None:
    images, shift = (
        gpu_tensor(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)),
        gpu_tensor(torch.ones(2, 2).long()),
    )
    log.clear()
    translate(images, shift, reflect=True)
    assert not log.launches.keys() & {"ge.Scalar", "logical_and", "bitwise_and.Tensor"}  # what is inside
    log.clear()
    translate(images, shift, reflect=False)
    assert not log.launches.keys() & {"abs", "where.self"}  # the reflection


def test_a_large_tensor_is_pinned_before_it_is_sent(log: Log) -> None:
    send(torch.zeros(STAGED), CUDA)
    send(torch.zeros(3), CUDA)
    assert [copy.blocking for copy in log.copies] == [False, False]
    assert not log.waits


@pytest.mark.parametrize("recipe", ["small", "fast"])
def test_pictures_that_a_gpu_has_no_room_for_reach_it_from_pinned_memory(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        prepare_module,
        "fits_in_memory",
        lambda splits, size, device=CPU: device == CPU and fits_in_memory(splits, size),
    )
    on_cpu, on_gpu, recorder = learn(recipe, [], tmp_path)
    assert_equal_weights(on_gpu, on_cpu)
    for span in recorder.inner:
        assert span.waits == []
        assert not any(copy.blocking for copy in span.copies)
    for span in recorder.first:  # `skip_easy` chooses on the GPU, and the computer has to know what
        assert len(span.waits) <= 2


def test_pictures_to_classify_that_a_gpu_has_no_room_for_stay_with_the_host(
    tiny_run: Run, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load_classifier(tiny_run.path, "cuda")
    assert isinstance(classifier, Predictor)
    expected = classifier.evaluate(DATA, "test")
    engine = classifier.engine(DATA.splits["test"])
    assert isinstance(engine, MemoryEngine)
    assert engine.images.device == CUDA
    monkeypatch.setattr(
        torch_classifier_module,
        "fits_in_memory",
        lambda splits, size, device=CPU: device == CPU and fits_in_memory(splits, size),
    )
    engine = classifier.engine(DATA.splits["test"])
    assert isinstance(engine, MemoryEngine)
    assert engine.images.device == CPU
    assert classifier.evaluate(DATA, "test") == expected


def test_a_step_in_float16_does_not_wait_to_know_whether_gradients_overflowed(tmp_path: Path) -> None:
    on_gpu, recorder = learn_on_gpu("small", ["training.precision=fp16"], tmp_path)
    assert on_gpu.summary["skipped_steps"] == []
    for span in recorder.inner:
        assert span.waits == []
        assert not any(copy.blocking for copy in span.copies)


def test_finetune_trains_a_network_of_thumbnets_own_as_on_the_cpu_and_no_step_waits(tmp_path: Path) -> None:
    settings = ["model.name=fastnet"]
    on_cpu, on_gpu, recorder = learn("finetune", settings, tmp_path)
    assert_equal_weights(on_gpu, on_cpu)
    assert on_gpu.summary["loss"] == pytest.approx(on_cpu.summary["loss"], rel=1e-5)
    assert len(recorder.inner) >= 4
    assert_no_step_waits(recorder)
    assert_resumes("finetune", settings, tmp_path, on_cpu)


def test_a_last_layer_on_frozen_features_predicts_as_on_the_cpu(tiny_run: Run, tmp_path: Path) -> None:
    settings = [f'training.init="{tiny_run.path}"', "training.precision=fp32"]
    picture = [DATA.splits["test"].load(0)]
    with simulated_gpu(fast_bf16=has_fast_bf16(CPU)):
        run = train(DATA, "linear", overrides=settings, out=tmp_path / "run", device="cuda")
        classifier = load_classifier(run.path, "cuda")
        predicted, loss = classifier.predict(picture), classifier.evaluate(DATA, "test").loss
    expected = load_classifier(run.path, "cpu")
    assert predicted == expected.predict(picture)
    assert loss == pytest.approx(expected.evaluate(DATA, "test").loss, rel=1e-5)
