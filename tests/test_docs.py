"""The documentation agrees with the code."""

from __future__ import annotations

import argparse
import functools
import pkgutil
import re
import runpy
import tomllib
from pathlib import Path

import pytest

from program_helpers import run_here
from thumbnet.recipes.recipe import Recipe, load_recipe, recipe_names
from thumbnet.recipes.tables import known_keys

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "README.zh.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]


def test_every_recipe_and_every_setting_of_the_recipe_itself_is_in_the_recipes_page() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    own = text.partition("### The recipe itself")[2].partition("\n### ")[0]
    missing = [key for key in known_keys(Recipe) if "." not in key and f"`{key}`" not in own]
    assert missing == []
    assert all(f"`{name}`" in text for name in recipe_names())


SECTION = re.compile(r"^### `\[+(\w+)\]+`", re.MULTILINE)


def test_every_setting_is_in_the_recipes_page_with_its_default() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    parts = SECTION.split(page)
    seen: set[str] = set()
    for section, text in zip(parts[1::2], parts[2::2], strict=True):
        for keys, said in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \|", text, re.MULTILINE):
            names = re.findall(r"`(\w+)`", keys)
            values = [value.strip("`") for value in re.split(r", (?![^\[]*\])", said)]
            values *= len(names) if len(values) == 1 else 1
            for name, value in zip(names, values, strict=True):
                default = Recipe().to_dict()[section].get(name)
                if value == "none":
                    assert default in ([], "", None, "none"), f"[{section}] {name} is {default}, not none"
                else:
                    assert default == tomllib.loads(f"v = {value}")["v"], f"[{section}] {name}"
                seen.add(f"{section}.{name}")
    assert seen == {key for key in known_keys(Recipe) if "." in key}


def test_the_recipe_in_the_recipes_page_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(example)
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert [group.lr for group in recipe.optimizer.groups] == [0.05, 0.4, None]


def test_the_page_about_own_networks_shows_the_example() -> None:
    page = (ROOT / "docs" / "howto" / "own-network.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert shown == (ROOT / "examples" / "own_network.py").read_text()


def test_the_page_about_own_functions_shows_both_examples() -> None:
    page = (ROOT / "docs" / "howto" / "own-loss.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = ("custom_loss.py", "custom_augmentation.py")
    assert shown == [(ROOT / "examples" / name).read_text() for name in names]


def test_the_pattern_for_near_copies_puts_them_into_one_group() -> None:
    page = (ROOT / "docs" / "howto" / "folder.md").read_text("utf-8")
    (pattern,) = re.findall(r"--group-by '(\^.*)'$", page, re.MULTILINE)

    def group(name: str) -> str:
        match = re.search(pattern, name)
        assert match, name
        return match[1]

    near = ("IMG_1.HEIC", "IMG_1.jpg", "IMG_1 (1).jpg", "IMG_1(2).jpg", "IMG_1-edited.jpg", "IMG_1_copy.png")
    assert {group(f"cat/anna/{name}") for name in near} == {"cat/anna/IMG_1"}
    assert group("cat/anna/IMG_12.jpg") == "cat/anna/IMG_12"
    assert group("cat/ben/IMG_1.jpg") == "cat/ben/IMG_1"


def test_the_architecture_page_lists_every_source_file() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    (tree,) = re.findall(r"^```\nsrc/thumbnet/\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    listed: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        if depth == 2:
            first = line.split()[0]
            folder = first if first.endswith("/") else ""
        names = re.match(r" +((?:[\w]+\.(?:py|c|h|html)(?:, *|$| ))+)", line)
        listed |= (
            {folder + name.strip(", ") for name in re.findall(r"\w+\.\w+", names[1])} if names else set()
        )
    source = ROOT / "src" / "thumbnet"
    suffixes = (".py", ".c", ".h")
    there = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.suffix in suffixes}
    there = {path for path in there if not path.endswith("/__init__.py")} | {"cli/__init__.py"}
    assert {path for path in listed if not path.endswith(".html")} == there


def anchors(page: Path) -> set[str]:
    """The ids that GitHub and Python-Markdown give to a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?)#*$", text, re.MULTILINE):
        plain = re.sub(r"[`*]|\]\(.*?\)|\[", "", heading).strip().lower()
        found.add(re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain)))
    return found


def test_every_name_in_the_python_reference_exists_and_is_explained() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text("utf-8")
    entries = re.findall(r"^::: (\S+)\n    options: \{(.*)\}$", text, re.M)
    assert len(entries) == text.count(":::") > 20
    for path, options in entries:
        described = pkgutil.resolve_name(path)
        assert described.__doc__, path
        for listed in re.findall(r"members: \[(.*?)\]", options):
            for name in listed.split(", "):
                member = getattr(described, name)  # a page leaves out a name that is not there
                assert not callable(member) or member.__doc__, f"{path}.{name}"


def test_every_name_that_the_guide_imports_is_in_the_python_reference() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text("utf-8")
    listed: set[str] = set()
    for path, options in re.findall(r"^::: (\S+)\n    options: \{(.*)\}$", text, re.M):
        members = re.findall(r"\bmembers: \[(.*?)\]", options)  # without them, a module is there as a whole
        listed |= {f"{path}.{name}" for name in members[0].split(", ")} if members else {path}
    missing = [
        f"{page.name}: {module}.{name}"
        for page in sorted((ROOT / "docs" / "guide").glob("*.md"))
        for module, names in re.findall(r"^from (thumbnet\.\S+) import (.+)$", page.read_text("utf-8"), re.M)
        for name in names.split(", ")
        if not {module, f"{module}.{name}"} & listed
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_have_a_target(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)]+)", path.read_text()):
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        generated = linked == ROOT / "docs" / "reference" / "commands.md"
        assert generated or linked.exists(), f"{page} links to {name}"
        if anchor and linked.suffix == ".md" and not generated:
            assert anchor in anchors(linked), f"{page} links to {target}: {linked.name} has no such heading"


# External links must begin with one of these. thumbnet has no public address yet: name a file instead of linking to it.
OUTSIDE = (
    "https://download.pytorch.org/whl/",
    "https://arxiv.org/abs/", "https://github.com/KellerJordan/", "https://github.com/ardamavi/",
    "https://github.com/jaddoescad/",
    "https://github.com/hiverge/",
    "https://docs.ultralytics.com/datasets/classify/cifar10/", "https://huggingface.co/docs/timm/training_script",
    "https://github.com/huggingface/pytorch-image-models", "https://github.com/kuangliu/pytorch-cifar",
    "https://github.com/fastai/fastbook/", "https://keras.io/examples/vision/image_classification_from_scratch/",
    "https://raw.githubusercontent.com/keras-team/keras-io/master/examples/vision/",
    "https://github.com/microsoft/onnxruntime/issues/15644",
    "https://github.com/uxlfoundation/oneDNN/", "https://keepachangelog.com", "https://kellerjordan.github.io/",
    "https://semver.org", "http://127.0.0.1", "http://localhost:3000", "https://shop.example", "http://192.168.1.23:8000",
)  # fmt: skip
SHOWN = [
    *PAGES, "pyproject.toml", "mkdocs.yml", "examples/tour.ipynb", "src/thumbnet/reports/report.html",
    "src/thumbnet/serving/page.html", "src/thumbnet/reviewing/page.html", "src/thumbnet/tuning/page.html",
    "src/thumbnet/publish/hub.py",
]  # fmt: skip


def test_external_links_are_on_the_list() -> None:
    for page in SHOWN:
        for target in re.findall(r"https?://[^\s)\"'<>,`]+", (ROOT / page).read_text()):
            assert target.startswith(OUTSIDE), (
                f"{page} links to {target}: check that it exists, then add it to OUTSIDE"
            )


def test_no_page_installs_thumbnet_from_the_package_index() -> None:
    installs = [
        page for page in SHOWN if re.search(r"pip install +['\"]?thumbnet", (ROOT / page).read_text())
    ]
    assert installs == []


def test_the_english_and_chinese_readmes_have_the_same_commands_and_tables() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))

    def commands(text: str) -> list[str]:
        blocks = re.findall(r"```(?:sh|python)\n(.*?)```", text, re.DOTALL)
        return [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]

    assert commands(english) == commands(chinese)
    rows = [
        [len(row.strip(" |").split(" | ")) for row in re.findall(r"^\|.*", table, re.MULTILINE)]
        for text, head in ((english, "| name | what |"), (chinese, "| 名称 | 是什么 |"))
        for table in [text[text.index(head) :].split("\n\n")[0]]
    ]
    assert rows[0] == rows[1]
    linked = [set(re.findall(r"\]\((docs/(?!guide)[^)#]+)", text)) for text in (english, chinese)]
    assert linked[1] <= linked[0]


@functools.cache
def parser() -> argparse.ArgumentParser:
    """The parser of all commands. Building it takes longer than parsing a command."""
    from thumbnet.cli import build_parser

    return build_parser()


@pytest.mark.parametrize("page", PAGES)
def test_thumbnet_accepts_the_commands_in_the_pages(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert "```bash" not in text, "write ```sh, so that the commands are checked"
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = line.partition(" #")[0].split()
            if words[:1] == ["torchrun"]:  # ... -m thumbnet train ...
                words = words[words.index("thumbnet") :] if "thumbnet" in words else []
            if words[:1] == ["thumbnet"] and "|" not in words:
                parser().parse_args(words[1:])


def test_the_page_for_users_of_other_libraries_names_what_is_there() -> None:
    page = (ROOT / "docs" / "howto" / "coming-from.md").read_text("utf-8")
    cells = [row.strip("| ").split(" | ")[1] for row in re.findall(r"^\|.*", page, re.MULTILINE)]
    named = [code for cell in cells for code in re.findall(r"`([^`]+)`", cell)]
    assert len(named) > 25
    for code in named:
        words = code.split()
        if words[0] == "thumbnet":
            parser().parse_args(words[1:])
        elif code.startswith("thumbnet."):
            assert pkgutil.resolve_name(code)
        elif code.startswith("--"):
            parser().parse_args(["train", "DATA", *words])
        else:
            assert code.partition("=")[0] in known_keys(Recipe), code


def test_the_program_with_an_optimizer_of_ones_own_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "coming-from.md").read_text("utf-8")
    printed = run_here(re.findall(r"```python\n(.*?)```", page, re.DOTALL), tmp_path)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 2
    assert losses == sorted(losses, reverse=True)


def test_the_page_of_commands_has_what_help_prints_below_the_options() -> None:
    from thumbnet.cli import build_parser
    from thumbnet.cli.usage import with_subparsers

    page = runpy.run_path(str(ROOT / "docs" / "hooks.py"))["commands_page"]()
    shown = " ".join(page.replace(" \\\n", " ").split())
    told = [parser for parser in with_subparsers(build_parser()) if parser.epilog and " " in parser.prog]
    assert len(told) >= 4
    for parser in told:
        text = (parser.epilog or "").replace("%(prog)s", parser.prog)
        assert " ".join(text.split()) in shown


@pytest.mark.parametrize("name", ["reliability.md", "security-review.md"])
def test_every_promise_and_finding_names_a_test_that_exists(name: str) -> None:
    page = (ROOT / "docs" / name).read_text("utf-8")
    named = re.findall(r"^\| .+ \| `(\S+\.py)` `(test_\w+)` \|$", page, re.MULTILINE)
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{file}: {test}"
