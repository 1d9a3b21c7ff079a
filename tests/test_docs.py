"""What the documents say is true of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from thumbnet.recipe import Recipe, _known_keys, load_recipe, recipe_names

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "README.zh.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]


def test_every_setting_is_in_the_recipes_page() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    missing = [key for key in _known_keys(Recipe) if f"`{key.rpartition('.')[2]}`" not in text]
    assert missing == []
    assert all(f"`{name}`" in text for name in recipe_names())


def test_the_recipe_in_the_recipes_page_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(example)
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert [group.lr for group in recipe.optimizer.groups] == [0.05, 1.0]


def test_every_module_is_in_the_architecture_page() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = {path.name for path in (ROOT / "src").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(name for name in modules if name not in text) == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_pages_are_commands_of_thumbnet(page: str) -> None:
    from thumbnet.cli import build_parser

    for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].split()
            if words[:1] == ["torchrun"]:  # ... -m thumbnet train ...
                words = words[words.index("thumbnet") :] if "thumbnet" in words else []
            if words[:1] == ["thumbnet"] and "|" not in words:
                build_parser().parse_args(words[1:])
