"""Start a training from a trained network's weights instead of random ones.

The weights may be a run's, or those of any other program if they fit: see :mod:`thumbnet.training.renaming`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from thumbnet.data.spelling import places_in
from thumbnet.errors import RunError, printable, some_of
from thumbnet.files import user_path
from thumbnet.models.registry import is_of_head, same_network
from thumbnet.models.resnet import ResNet
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import AUTO, ModelSettings
from thumbnet.runs.any_weights import AnyWeights, read_any_weights
from thumbnet.runs.weights import check_finite, find_weights
from thumbnet.sources.known_names import HUB
from thumbnet.training.renaming import COUNTER, Match, match

PIXELS = ("mean", "std", "range", "background")  # settings in `data` that a network's layers are used to
LEAST_SHARE = 0.75  # of the network's body, and of the file: with less, they are two different networks
_LISTED = 4  # names in an error


@dataclass(frozen=True)
class Start:
    """What a training took from a file of weights.

    Attributes:
        source: ``training.init``.
        digest: SHA-256 of the file.
        taken, tensors: how many of the network's tensors come from the file, and how many it has. Counters
            do not count.
        how: how the names were matched; empty for weights that thumbnet wrote.
        left_new: what keeps its random weights, and why.
        body_is_whole: whether everything but the last layer comes from the file.
        loses_colour: whether the new pictures have colours that the first layer from the file cannot see.
    """

    source: str
    digest: str
    taken: int
    tensors: int
    how: str = ""
    left_new: tuple[str, ...] = ()
    body_is_whole: bool = True
    loses_colour: bool = False

    def record(self) -> dict[str, Any]:
        """What ``run.json`` keeps."""
        kept = {"source": self.source, "sha256": self.digest, "taken": self.taken, "tensors": self.tensors}
        return {**kept, "how": self.how, "left_new": list(self.left_new)} if self.how else kept

    def check_same(self, recorded: Any, run: Path) -> None:
        """Check that the file is the one with which ``run`` began, by what its ``run.json`` keeps.

        Raises:
            RunError: it has changed.
        """
        if isinstance(recorded, dict) and recorded.get("sha256") != self.digest:
            raise RunError(
                f"the weights in {self.source} have changed since the run {run} began with them. Put them "
                "back, or start a new run"
            )

    def notes(self) -> list[str]:
        """What the user should know."""
        notes: list[str] = []
        if self.how:
            new = f"; left new: {', '.join(self.left_new)}" if self.left_new else ""
            notes.append(
                f"{self.taken} of {self.tensors} tensors taken from {self.source}, matched {self.how}{new}"
            )
        if self.loses_colour:
            notes.append(
                f"warning: the first layer of {self.source} was computed from pictures without colour and "
                "does not learn, so the network cannot see the colours of these pictures. If they matter, "
                "train without --init, or begin with a network that was trained on pictures in colour"
            )
        return notes


def with_absolute_init(recipe: Recipe) -> Recipe:
    """Make the path of the initial weights absolute, because a resume may run in another folder."""
    source = recipe.training.init
    if not source or source.startswith(HUB):
        return recipe
    place = str(user_path(source).resolve())
    return replace(recipe, training=replace(recipe.training, init=place))


def find_initial(recipe: Recipe) -> None:
    """Check that the weights of ``training.init`` are there, before any data are read.

    Those on the Hub are downloaded.

    Raises:
        RecipeError: their path cannot be written into a recipe.
        RunError: there is no such file.
    """
    if recipe.training.init:
        with_absolute_init(recipe).to_toml()
        find_weights(recipe.training.init)


def read_initial(source: str) -> AnyWeights:
    """Read the weights that ``training.init`` names.

    Raises:
        RunError: there is no such file, or it cannot be read.
    """
    return read_any_weights(find_weights(source))


def with_pixels_of_init(
    recipe: Recipe, named: frozenset[str], initial: AnyWeights | None = None
) -> tuple[Recipe, list[str]]:
    """A recipe that keeps layers of the initial weights at first, with the pixels that these layers expect.

    With ``schedule.head_first``, the last layer learns on what frozen layers compute. So the settings in
    ``PIXELS`` become those of the run that the weights are from, if they are ``auto``. A file that thumbnet
    did not write says nothing about them.

    Args:
        recipe: any recipe; one without ``training.init`` or ``schedule.head_first`` is returned as it is.
        named: the keys that the user set. A named ``auto`` stays.
        initial: what ``training.init`` names, if it has been read already.

    Returns:
        The recipe, and notes for the user.

    Raises:
        RunError: the weights cannot be read.
    """
    source = recipe.training.init
    if not source or not recipe.schedule.head_first or recipe.training.frozen:
        return recipe, []
    info = (initial or read_initial(source)).info
    if info is None:
        return recipe, []
    pre = info.preprocessing
    taken: dict[str, Any] = {
        key: getattr(pre, key)
        for key in PIXELS
        if getattr(pre, key) is not None and getattr(recipe.data, key) == AUTO and f"data.{key}" not in named
    }
    if not taken:
        return recipe, []
    note = (
        f"{', '.join(f'data.{key}' for key in taken)}: as the network in {source} was trained with, because "
        "its layers stay as they are at first (schedule.head_first)"
    )
    return replace(recipe, data=replace(recipe.data, **taken)), [note]


def begin_from(
    model: nn.Module,
    settings: ModelSettings,
    source: str,
    class_names: Sequence[str],
    *,
    multilabel: bool = False,
    file: AnyWeights | None = None,
) -> Start:
    """Copy trained weights into ``model``, in place.

    The last layer has a row per class. It takes the rows of the classes that the run knows by the same name,
    and keeps its other rows. It keeps all of them if one of the two networks gives a picture several labels
    and the other does not, because their logits mean different things, and if the file does not name its
    classes. A file of another program may also lack the first convolution, or have one of another size, such
    as ImageNet's 7x7: then the network keeps its own. Only tensors are read: code that ``source`` names is
    not imported.

    Args:
        model: the network that ``settings`` describe, with one row in its last layer per class.
        settings: the recipe's model settings.
        source: a run's folder, a ``.safetensors``, ``.pt`` or ``.pth`` file, or ``hf:OWNER/NAME``.
        class_names: class names of the new data.
        multilabel: whether the new data have several labels per picture.
        file: the content of ``source``, if it has been read already.

    Raises:
        RunError: there is no such file, it cannot be read, it has another network, or weights in it are not
            finite.
    """
    file = file or read_initial(source)
    if file.info is None:
        return _begin_from_stranger(model, settings, source, file, len(class_names))
    weights, info = file.tensors, file.info
    if not same_network(info.model.name, settings.name) or info.model.width != settings.width:
        raise RunError(
            f"{source} has the network {info.model.name} of width {info.model.width:g}, but the recipe asks "
            f"for {settings.name} of width {settings.width:g}: add --set model.name={info.model.name} "
            f"--set model.width={info.model.width:g}"
        )
    state = model.state_dict()
    _check_shapes(model, state, weights, source, settings.name)
    _check_finite(model, {name: name for name in state}, file, settings.name, source)
    places = places_in(info.class_names, class_names) if info.multilabel == multilabel else []
    rows = [(new, old) for new, old in enumerate(places) if old is not None]
    for name, tensor in state.items():
        if is_of_head(model, name):
            for new, old in rows:
                tensor[new] = weights[name][old]
        else:
            tensor.copy_(weights[name])
    counted = _counted(state)
    taken = [name for name in counted if rows or not is_of_head(model, name)]
    return Start(source, file.digest, len(taken), len(counted))


def _begin_from_stranger(
    model: nn.Module, settings: ModelSettings, source: str, file: AnyWeights, classes: int
) -> Start:
    """Copy what fits from another program's weights; see :func:`begin_from`."""
    state = model.state_dict()
    body = {name: tensor for name, tensor in state.items() if not is_of_head(model, name)}
    found = match(
        body,
        file.tensors,
        lambda name: is_of_head(model, name),
        is_resnet=isinstance(model, ResNet),
        in_order=file.in_order,
    )
    taken = _counted(found.pairs)
    if len(taken) < LEAST_SHARE * len(_counted(body)):
        raise RunError(_too_little(settings, source, found, body, file.tensors))
    there_are = len(_counted(file.tensors))
    if len(found.unused) > (1 - LEAST_SHARE) * there_are:
        raise RunError(
            f"{source} has another network than {settings.name} of width {settings.width:g}: "
            f"{len(found.unused)} of its {there_are} tensors have no place in it, such as "
            f"{_some(found.unused)}"
        )
    _check_finite(model, found.pairs, file, settings.name, source)
    for name, there in found.pairs.items():
        state[name].copy_(file.tensors[there])
    new = [f"{name} ({_shapes(name, found, body, file.tensors)})" for name in _left(found)]
    head = f"the last layer ({_classes(found, file.tensors)}{classes} classes here)"
    return Start(
        source, file.digest, len(taken), len(_counted(state)), found.how, (*new, head), body_is_whole=not new
    )


def _counted(names: Iterable[str]) -> list[str]:
    """The names without those of BatchNorm's counters."""
    return [name for name in names if not name.endswith(COUNTER)]


def _left(found: Match) -> list[str]:
    return [*([found.stem[0]] if found.stem else []), *found.missing]


def _shapes(name: str, found: Match, body: Mapping[str, Tensor], file: Mapping[str, Tensor]) -> str:
    """The shapes of a tensor that stays new: in the file, if it is known, and in the network."""
    here = "x".join(map(str, body[name].shape))
    if found.stem is None or found.stem[0] != name:
        return "not in the file"
    return f"{'x'.join(map(str, file[found.stem[1]].shape))} in the file, {here} here"


def _classes(found: Match, file: Mapping[str, Tensor]) -> str:
    """How many classes the file's last layer has, if it is known."""
    rows = {len(file[name]) for name in found.head if file[name].ndim}
    return f"{rows.pop()} classes in the file, " if len(rows) == 1 else ""


def _too_little(
    settings: ModelSettings, source: str, found: Match, body: Mapping[str, Tensor], file: Mapping[str, Tensor]
) -> str:
    """Why the weights of a file are not used."""
    named = next((name for name in found.missing if name in file), None)
    example = ""
    if named is not None:
        there, here = (list(tensors[named].shape) for tensors in (file, body))
        example = f". For example, {named} has the shape {here} in the network and {there} in the file"
    count = len(_counted(body))
    return (
        f"the weights in {source} do not fit the network {settings.name} of width {settings.width:g}: "
        f"{len(found.missing)} of its {count} tensors before the last layer have no counterpart in the file, "
        f"such as {_some(found.missing)}. The file has {_some(list(file))}{example}. Name the network that "
        "the weights are from: --set model.name=NAME --set model.width=WIDTH"
    )


def _some(names: Sequence[str]) -> str:
    return some_of([printable(name) for name in names], _LISTED)


def _check_finite(
    model: nn.Module, pairs: Mapping[str, str], file: AnyWeights, network: str, source: str
) -> None:
    """Check the values of the tensors that ``model`` takes from ``file``; see :func:`check_finite`.

    Args:
        model: the network.
        pairs: its tensors' names, and their names in the file.
        file: the weights.
        network, source: for :func:`check_finite`.

    Raises:
        RunError: one is not finite.
    """
    buffers = {name for name, _ in model.named_buffers()}
    for name, there in pairs.items():
        check_finite(there, file.tensors[there], source, is_buffer=name in buffers, network=network)


def _check_shapes(
    model: nn.Module, state: dict[str, Tensor], weights: dict[str, Tensor], source: str, network: str
) -> None:
    """Check that ``weights`` are those of the same network: its code may have changed since.

    Raises:
        RunError: a tensor is missing, or has another shape.
    """
    for name, tensor in state.items():
        rows = int(is_of_head(model, name))  # the numbers of classes may differ
        if name not in weights or weights[name].shape[rows:] != tensor.shape[rows:]:
            there = f"the shape {list(weights[name].shape)}" if name in weights else "no such tensor"
            raise RunError(
                f"the weights in {source} do not fit the network {network}: {name} has the shape "
                f"{list(tensor.shape)} in the network, and {there} in the weights"
            )
