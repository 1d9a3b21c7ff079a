"""Networks that users write: how they are registered and imported, and the contract that they must fulfil."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import thumbnet
from own_networks import OwnPackage
from thumbnet.errors import ModelCodeError, NetworkError, OwnCodeError, RecipeError, RunError
from thumbnet.models import build_model
from thumbnet.models.registry import (
    find_builder,
    head_name,
    import_code,
    is_of_head,
    name_of,
    register_model,
    same_network,
)
from thumbnet.recipes.networks import accept
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import ModelSettings

pytestmark = pytest.mark.usefixtures("own")  # restores the registry
SIZE = (16, 20)


class Plain(nn.Module):
    """Fulfils the contract with as little as possible."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean(dim=(2, 3)))


def build(
    builder: Callable[..., nn.Module], classes: int = 5, channels: int = 3, width: float = 1.0
) -> nn.Module:
    settings = ModelSettings("mine", width)
    return build_model(settings, classes, channels, sizes=[SIZE, (16, 16)], builder=builder)


# --- registering -----------------------------------------------------------------------------------------


def test_a_registered_network_is_known_by_its_name_and_its_import_path() -> None:
    with pytest.raises(RecipeError, match="Known: fastnet"):
        load_recipe("one-cycle", ["model.name=plain"])
    assert thumbnet.register_model("plain")(Plain) is Plain
    assert find_builder("plain") is Plain
    recipe = load_recipe("one-cycle", ["model.name=plain"])
    model = build_model(recipe.model, 7)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    assert find_builder(f"{__name__}:Plain") is Plain
    assert same_network("plain", f"{__name__}:Plain")
    assert not same_network("plain", "resnet18")
    with pytest.raises(RecipeError, match="Did you mean 'plain'"):
        load_recipe("one-cycle", ["model.name=plian"])


def test_a_name_that_is_taken_is_refused() -> None:
    for name in ("resnet18", "resnet20"):
        with pytest.raises(NetworkError, match=f"the name '{name}' already belongs to the network"):
            register_model(name)(Plain)
        with pytest.raises(NetworkError, match=f"the name '{name}' already belongs to the network"):
            register_model(name)(partial(Plain))
    register_model("plain")(Plain)
    with pytest.raises(NetworkError, match=r"the name 'plain' already belongs to the network .*:Plain"):
        register_model("plain")(Other)


class Other(Plain):
    pass


def test_running_a_cell_again_replaces_its_network() -> None:
    register_model("plain")(Plain)
    again = type("Plain", (Plain,), {"__module__": Plain.__module__, "__qualname__": "Plain"})
    register_model("plain")(again)
    assert find_builder("plain") is again


@pytest.mark.parametrize("name", ["", "a b", "x/y", "a:b:c"])
def test_a_name_that_no_recipe_can_use_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.name"):
        register_model(name)(Plain)


# --- importing -------------------------------------------------------------------------------------------


def test_an_import_path_needs_the_users_permission(own: OwnPackage) -> None:
    with pytest.raises(ModelCodeError, match=r"--model-code mypackage.nets:TinyNet") as caught:
        build_model(ModelSettings(own.path), 3)
    assert isinstance(caught.value, RunError)
    assert not own.was_imported()
    accept(own.path)
    assert not own.was_imported()
    model = build_model(ModelSettings(own.path), 3, sizes=[SIZE])
    assert own.was_imported()
    assert type(model).__name__ == "TinyNet"
    assert str(own.folder) == sys.path[-1]  # searched after the installed packages


def test_objects_that_python_has_already_imported_are_not_called_either(own: OwnPackage) -> None:
    for path in ("os:getcwd", "builtins:exec", "torch.hub:load", "torch.nn:Identity"):
        with pytest.raises(ModelCodeError):
            build_model(ModelSettings(path), 3)


def test_an_unregistered_name_asks_for_the_module(own: OwnPackage) -> None:
    with pytest.raises(ModelCodeError, match="wide-tiny is not part of thumbnet.*--model-code MODULE"):
        build_model(ModelSettings("wide-tiny"), 3)
    import_code("mypackage.nets")
    model = build_model(ModelSettings("wide-tiny", 2.0), 3)
    assert model.head.weight.shape == (3, 16)  # type: ignore[union-attr]
    with pytest.raises(ModelCodeError):  # the module was allowed, but not every path into it
        build_model(ModelSettings(own.path), 3)
    import_code(own.path)
    build_model(ModelSettings(own.path), 3)


def test_a_module_that_is_reloaded_gives_the_new_network(own: OwnPackage) -> None:
    import importlib

    accept(own.path)
    before = find_builder(own.path)
    after = getattr(importlib.reload(sys.modules["mypackage.nets"]), "TinyNet")  # noqa: B009
    assert find_builder(own.path) is after is not before
    assert find_builder("wide-tiny") is sys.modules["mypackage.nets"].wide


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nowhere.nets:TinyNet", "no Python module nowhere, neither in "),
        ("mypackage.nowhere:TinyNet", r"no Python module mypackage\.nowhere"),
        ("mypackage.nets:TinyNte", r"nets\.py\) has no 'TinyNte'. Did you mean 'TinyNet'\?"),
        ("mypackage.nets:Path", "Path is a class of another kind: expected an nn.Module class"),
        ("mypackage.nets:torch", "is a module: expected an nn.Module class"),
        ("mypackage.broken:Net", r"cannot import the module mypackage.broken: ZeroDivisionError: .*broken.py, line 2\)"),
        ("mypackage.syntax:Net", r"cannot import the module mypackage.syntax: SyntaxError: .*syntax.py, line 1\)"),
        ("mypackage.needs:Net", r"ModuleNotFoundError: No module named 'einopsy' .*needs.py, line 1\)"),
    ],
)  # fmt: skip
def test_a_failed_import_is_explained(own: OwnPackage, path: str, says: str) -> None:
    own.write("mypackage/broken.py", "x = 1\n1 / 0\n")
    own.write("mypackage/syntax.py", "def Net(:\n")
    own.write("mypackage/needs.py", "import einopsy\n")
    accept(path)
    with pytest.raises(NetworkError, match=says):
        find_builder(path)


@pytest.mark.parametrize("name", ["mypackage/nets.py:TinyNet", "a b", "", "mypackage.nets:"])
def test_an_option_that_is_not_an_import_path_is_explained(name: str) -> None:
    with pytest.raises(OwnCodeError, match="--model-code .* expected MODULE:NAME or MODULE"):
        import_code(name)


# --- the contract ----------------------------------------------------------------------------------------


def test_a_builder_gets_only_the_arguments_in_its_signature() -> None:
    assert build(Plain)(torch.zeros(1, 3, 9, 9)).shape == (1, 5)
    given = []

    def wide(*, num_classes: int, in_channels: int, width: float, depth: int = 2) -> nn.Module:
        given.append((num_classes, in_channels, width, depth))
        return nn.Sequential() if num_classes < 0 else _narrow(num_classes, in_channels)

    build(wide, classes=4, channels=1, width=0.5)
    assert given == [(4, 1, 0.5, 2)]

    def anything(**options: int) -> nn.Module:
        assert set(options) == {"num_classes"}
        return Plain(**options)

    build(anything)


def _narrow(num_classes: int, in_channels: int) -> nn.Module:
    model = Plain(num_classes)
    model.conv = nn.Conv2d(in_channels, 4, 3)
    return model


class Positional(Plain):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)


class Needs(Plain):
    def __init__(self, num_classes: int, depth: int) -> None:
        super().__init__(num_classes)


class Fails(Plain):
    def __init__(self, num_classes: int) -> None:
        raise ValueError("no such depth\nand more")


class Transposed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).T


class Squeezed(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


class Several(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x), x)  # type: ignore[return-value]


class Headless(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(3, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x.mean(dim=(2, 3)))


class WrongHead(Plain):
    head_name = "conv"


class Viewing(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return super().forward(x) + y.view(len(x), -1).sum()


class OneSize(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.head = nn.Linear(3 * 16 * 20, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("builder", "says"),
    [
        (Positional, r"cannot build mine\(classes: .*missing a required argument: 'classes'.* num_classes"),
        (Needs, "missing a required argument: 'depth'.*every other argument needs a default"),
        (Fails, r"cannot build the network mine: ValueError: no such depth \(.*test_registry.py, line \d+\)"),
        (lambda num_classes: 3, "builds a int: expected an nn.Module"),
        (Plain(3), "mine is a Plain: expected an nn.Module class, or a function"),
        (Transposed, r"returns \[5, 2\] for pictures of shape \[2, 3, 16, 20\]: expected logits of shape \[2, 5\]"),
        (Squeezed, r"returns \[5\] for pictures of shape \[1, 3, 16, 20\]: expected logits of shape \[1, 5\]"),
        (Several, r"returns tuple for pictures"),
        (Headless, r'no layer called \'head\' with weights.* head_name = "classify"'),
        (WrongHead, r"conv.weight of the last layer has the shape \[4, 3, 3, 3\]: expected a row per class, 5"),
        (Viewing, r"test_registry.py, line \d+\).*use flatten or reshape instead of view"),
        (OneSize, r"fails on pictures of shape \[2, 3, 16, 16\].*--image-size.*schedule.small_until=0"),
    ],
)  # fmt: skip
def test_a_network_that_breaks_the_contract_is_refused(builder: Callable[..., nn.Module], says: str) -> None:
    with pytest.raises(NetworkError, match=says):
        build(builder)


def test_a_network_without_width_or_in_channels_is_built_only_with_the_defaults() -> None:
    with pytest.raises(NetworkError, match=r"mine does not take width: set model.width to 1 \(it is 0.5\)"):
        build(Plain, width=0.5)
    with pytest.raises(NetworkError, match="cannot be built for 1 channels"):
        build(Plain, channels=1)


def test_head_name_may_be_a_path_into_the_network() -> None:
    class Deep(nn.Sequential):
        head_name = "2.0"

        def __init__(self, num_classes: int) -> None:
            super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Sequential(nn.Linear(3, num_classes)))

    model = build(Deep)
    assert head_name(model) == "2.0"
    assert [name for name in model.state_dict() if is_of_head(model, name)] == ["2.0.weight", "2.0.bias"]
    assert head_name(build(Plain)) == "head"


def test_lazy_layers_get_their_sizes_from_the_pictures() -> None:
    class Lazy(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.head = nn.LazyLinear(num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    model = build_model(ModelSettings("mine"), 5, sizes=[SIZE], builder=Lazy)
    assert model.head.weight.shape == (5, 3 * 16 * 20)  # type: ignore[union-attr]
    build_model(ModelSettings("mine"), 5, builder=Lazy)  # without pictures, the sizes stay open


def test_trying_a_network_changes_neither_statistics_nor_mode_nor_random_numbers() -> None:
    class Normed(Plain):
        def __init__(self, num_classes: int) -> None:
            super().__init__(num_classes)
            self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))  # type: ignore[assignment]

    torch.manual_seed(3)
    tried = build(Normed)
    after = torch.rand(1)
    torch.manual_seed(3)
    plain = Normed(5)
    assert torch.equal(torch.rand(1), after)
    assert tried.training
    for (name, one), (_, other) in zip(tried.state_dict().items(), plain.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


def test_a_network_is_named_as_it_was_registered_else_by_its_import_path() -> None:
    assert name_of(Plain) == f"{Plain.__module__}:Plain"
    register_model("plain")(Plain)
    assert name_of(Plain) == "plain"


def test_a_network_without_an_import_path_is_registered_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Local(Plain):
        """Like one in a function."""

    assert name_of(Local) == "Local"
    assert find_builder("Local") is Local
    monkeypatch.setattr(Plain, "__module__", "__main__")  # as in a notebook
    assert name_of(Plain) == "Plain"
    with pytest.raises(NetworkError, match="model is a Plain: expected an nn.Module class"):
        name_of(Plain(2))
    with pytest.raises(NetworkError, match="model has no name"):
        name_of(partial(Plain))


def test_a_function_that_wraps_a_network_is_not_mistaken_for_it() -> None:
    def wrapped(num_classes: int) -> nn.Module:
        return nn.Sequential(Plain(num_classes))

    # What functools.wraps does.
    wrapped.__module__, wrapped.__qualname__, wrapped.__name__ = Plain.__module__, "Plain", "Plain"
    assert name_of(wrapped) == "Plain"
    assert find_builder("Plain") is wrapped
    path = f"{Plain.__module__}:Plain"
    assert name_of(Plain) == path
    with pytest.raises(ModelCodeError):
        find_builder(path)
