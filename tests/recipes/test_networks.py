"""Which network names a recipe may have, and which of them allow code to be imported."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from cli_helpers import forget_modules
from own_networks import OwnPackage
from thumbnet.errors import RecipeError
from thumbnet.recipes import networks
from thumbnet.recipes.networks import (
    MODEL_NAMES,
    accept,
    code_options,
    is_allowed,
    is_import_path,
    is_timm,
)
from thumbnet.recipes.recipe import Recipe, load_recipe, read_recipe
from thumbnet.recipes.settings import ModelSettings

PATH = "mypackage.nets:TinyNet"


@pytest.fixture(autouse=True)
def _nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_allowed", set())


@pytest.mark.parametrize("name", ["nets:TinyNet", PATH, "a.b.c:d", "_x:Y1", "tiny", "resnet18", "my-net.v2"])
def test_a_name_or_an_import_path_may_name_a_network(name: str) -> None:
    assert ModelSettings(name).name == name


@pytest.mark.parametrize(
    "name",
    ["", "a:", ":B", "a:b:c", "a b:C", "a.:B", ".a:B", "a..b:C", "../nets:TinyNet", "nets.py:T()", "1a:B", "a:B.C",
     "os;x:y", "tiny net", "-x", "x\x1b[2J", "__import__('os').system('ls')", "a" * 201, f"{'a' * 200}:b"],
)  # fmt: skip
def test_anything_else_is_refused_as_a_network_name(name: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.name.*Known: fastnet.*MODULE:NAME"):
        ModelSettings(name)


TIMM_NAMES = ["timm:resnet18", "timm:resnet18.a1_in1k", "timm:vit_base_patch14_dinov2.lvd142m", "timm:hf_hub"]


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_a_network_of_timm_is_neither_a_plain_name_nor_an_import_path(name: str) -> None:
    assert ModelSettings(name).name == name
    assert is_timm(name)
    assert not is_import_path(name)
    assert code_options(name) == ()
    accept(name)
    assert not is_allowed(name)


@pytest.mark.parametrize(
    "name",
    ["timm:", "timm:hf-hub:a/b", "timm:hf_hub:b", "timm:local-dir:/tmp/x", "timm:a/b", "timm:ResNet", "timm:a.b.c",
     "timm:resnet18\n", "timm:../x", "timm:resnet-18", "timm:é", "timm::resnet18"],
)  # fmt: skip
def test_timms_names_for_repositories_and_folders_are_refused(name: str) -> None:
    assert not is_timm(name)
    with pytest.raises(RecipeError, match=r"model\.name.*expected timm:NAME or timm:NAME\.TAG"):
        ModelSettings(name)
    with pytest.raises(RecipeError):
        accept(name)


def test_a_strangers_recipe_may_name_a_network_of_timm_and_that_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from thumbnet.recipes.recipe import read_recipe; r = read_recipe(sys.argv[1]); "
        "assert r.model.name == 'timm:resnet18'; assert not {'timm', 'torch'} & sys.modules.keys()"
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[model]\nname = "timm:resnet18"\n')
    subprocess.run([sys.executable, "-c", code, str(recipe)], check=True)


@pytest.mark.parametrize("name", [["resnet18"], 3, None])
def test_a_name_that_is_not_a_string_is_refused(name: object) -> None:
    with pytest.raises(RecipeError, match=r"model\.name"):
        ModelSettings(name)  # type: ignore[arg-type]


def test_the_error_for_an_unknown_network_suggests_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'resnet34'"):
        load_recipe("fast", ["model.name=resnet-34"])
    with pytest.raises(RecipeError, match="such as mypackage.nets:TinyNet"):
        load_recipe("fast", ["model.name=mypackage.nets.TinyNet"])


def test_a_users_override_allows_an_import_path() -> None:
    load_recipe("one-cycle", [f"model.name={PATH}"])
    assert is_allowed(PATH)
    assert not is_allowed("mypackage.nets:Other")
    with pytest.raises(RecipeError, match=r"set one key at a time: model\.name=VALUE"):
        Recipe().override(['model={name = "a:B"}'])
    assert not is_allowed("a:B")


def test_a_users_recipe_file_allows_the_networks_that_it_and_its_base_name(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(f'[model]\nname = "{PATH}"\n')
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\nseed = 3\n')
    assert load_recipe(tmp_path / "mine.toml").model.name == PATH
    assert is_allowed(PATH)


def test_a_recipe_that_is_only_read_allows_nothing(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(f'[model]\nname = "{PATH}"\n')
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.override(["training.epochs=3", "training.batch_size=8"]).model.name == PATH
    assert not is_allowed(PATH)


def test_a_recipe_that_is_only_read_may_name_an_unknown_network(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('[model]\nname = "tiny"\n')
    assert read_recipe(tmp_path / "recipe.toml").override(["seed=1"]).model.name == "tiny"
    with pytest.raises(RecipeError, match="Known: fastnet"):
        load_recipe(tmp_path / "recipe.toml")


def test_reading_and_showing_a_recipe_imports_neither_the_network_nor_torch(own: OwnPackage) -> None:
    recipe = own.write("mine.toml", f'extends = "fast"\n[model]\nname = "{PATH}"\n')
    program = (
        "import sys; from thumbnet.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(status or 'torch' in sys.modules or 'mypackage' in sys.modules)"
    )
    words = ["recipes", "show", str(recipe)]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'name = "{PATH}"' in done.stdout
    assert not own.was_imported()


def test_the_network_names_known_without_torch_are_the_registered_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forget_modules(monkeypatch, "thumbnet.models")  # other tests may have registered networks of their own
    registered = importlib.import_module("thumbnet.models.registry")._BUILDERS
    assert [name for name in registered if not is_import_path(name)] == list(MODEL_NAMES)
