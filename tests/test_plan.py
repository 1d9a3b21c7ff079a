"""Modules import only what docs/architecture.md allows. The tests read the imports in the source."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import thumbnet
from thumbnet.cli import COMMANDS

SOURCE = Path(thumbnet.__file__).parent
# From the bottom up. A package imports only from packages before it.
LAYERS = (
    "version", "invocation", "errors", "files", "seeds", "evaluation", "multilabel", "distributed", "kernels",
    "hardware", "recipes", "data", "sources", "models", "batches", "runs", "classifiers", "training", "serving",
    "reviewing", "reports", "tuning", "publish", "cli", "__main__", "api",
)  # fmt: skip
# These start without torch: the commands that only read, and everything that an exported model needs.
NO_TORCH = (
    "", "version", "invocation", "errors", "files", "seeds", "evaluation", "multilabel", "recipes", "data", "sources",
    "kernels.library", "kernels.processor", "runs.data", "runs.finding", "runs.provenance", "runs.weights",
    "runs.weights_info", "runs.certainty", "batches.cores", "batches.forked", "classifiers.base",
    "classifiers.given", "classifiers.labels", "classifiers.load", "classifiers.onnx_classifier",
    "classifiers.temperature", "classifiers.thresholds", "classifiers.unlike", "classifiers.reading",
    "classifiers.placing", "classifiers.sorting", "classifiers.words", "reports.answers", "cli",
    "tuning.listener", "__main__",
)  # fmt: skip
PRINT = ("cli", "__main__")
USE_DISTRIBUTED = ("distributed",)


@dataclass
class Imports:
    """The names of the modules that a module imports."""

    at_once: set[str] = field(default_factory=set)
    later: set[str] = field(default_factory=set)  # inside functions

    @property
    def all(self) -> set[str]:
        return self.at_once | self.later


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


@functools.cache
def imports_of(module: str) -> Imports:
    """What a module imports at run time; the prefix ``thumbnet.`` is removed from names."""
    found = Imports()

    def visit(node: ast.AST, names: set[str]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import):
                names.update(local_name(alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}: relative import"
                base = local_name(child.module or "")
                below = {f"{base}.{alias.name}".lstrip(".") for alias in child.names}
                known = below & MODULES.keys()
                # `from torch import distributed` imports a module of torch
                inner = {f"torch.{alias.name}" for alias in child.names} if base == "torch" else set()
                names.update(known or {base, *inner})
            visit(child, found.later if inside else names)

    visit(tree_of(module), found.at_once)
    return found


def local_name(name: str) -> str:
    return "" if name == "thumbnet" else name.removeprefix("thumbnet.")


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == name or (bool(name) and module.startswith(f"{name}.")) for name in packages)


def test_every_module_belongs_to_a_layer() -> None:
    assert {module.partition(".")[0] for module in MODULES} == {*LAYERS, ""}


def test_the_page_on_the_architecture_has_the_same_floors() -> None:
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text("utf-8")
    floors = page.partition("## Floors")[2].partition("```")[0]
    rows = re.findall(r"^\| [A-Za-z ]+ \| (`.+`) \| (.+) \|$", floors, re.MULTILINE)
    rooms = {room: torch for names, torch in rows for room in re.findall(r"`(\w+)`", names)}
    assert tuple(reversed(rooms)) == LAYERS
    for module in filter(None, MODULES):
        torch, found = rooms[module.partition(".")[0]], imports_of(module)
        names = {"no": found.all, "only within functions": found.at_once}.get(torch, set())
        assert not any(name.partition(".")[0] == "torch" for name in names), f"{module}: {torch}"


def test_at_most_ten_modules_are_at_the_top_level() -> None:
    top = [path.stem for path in SOURCE.glob("*.py") if path.stem not in ("__init__", "__main__")]
    assert len(top) <= 10, top


def test_a_module_imports_nothing_from_a_higher_layer() -> None:
    for module in filter(None, MODULES):
        height = LAYERS.index(module.partition(".")[0])
        for name in imports_of(module).all & MODULES.keys():
            assert name, f"{module} imports the package itself, which imports everything"
            assert LAYERS.index(name.partition(".")[0]) <= height, f"{module} imports {name}"


def test_there_are_no_circular_imports() -> None:
    finished: set[str] = set()

    def follow(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module in finished:
            return
        for name in sorted(imports_of(module).all & MODULES.keys()):
            follow(name, (*trail, module))
        finished.add(module)

    for module in MODULES:
        follow(module, ())


def test_modules_that_must_start_without_torch_do_not_import_it() -> None:
    def path_to_torch(module: str, seen: set[str]) -> list[str]:
        seen.add(module)
        for name in sorted(imports_of(module).at_once):
            if name.partition(".")[0] == "torch":
                return [module, name]
            if name in MODULES and name not in seen:
                rest = path_to_torch(name, seen)
                if rest:
                    return [module, *rest]
        return []

    for module in MODULES:
        if is_in(module, NO_TORCH):
            assert not path_to_torch(module, set()), path_to_torch(module, set())


def test_only_the_command_line_prints() -> None:
    for module in MODULES:
        if is_in(module, PRINT):
            continue
        for node in ast.walk(tree_of(module)):
            prints = (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            )
            writes = isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr")
            bad = prints or writes
            assert not bad, f"{module}, line {getattr(node, 'lineno', 0)}"


def texts(module: str) -> Iterator[str]:
    """The strings of a module that are no docstrings; ``{}`` stands for what an f-string inserts."""
    documented = {id(node.value) for node in ast.walk(tree_of(module)) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value


def test_every_command_line_in_a_message_is_built_by_one_function() -> None:
    """It quotes paths, and knows how thumbnet was started here. A model card is for other computers."""
    names = "|".join(one.__name__.rpartition(".")[2].replace("_", "-") for one in COMMANDS)
    line = re.compile(rf"\bthumbnet ({names}) (-|[A-Z]{{2}}|hf:|\{{)")
    assert line.search("thumbnet predict RUN")
    for module in set(MODULES) - {"invocation", "publish.hub"}:
        assert [text for text in texts(module) if line.search(text)] == [], module


def test_only_one_module_uses_torch_distributed() -> None:
    for module in MODULES:
        names = {name for name in imports_of(module).all if name.startswith("torch.distributed")}
        used = {
            ast.unparse(node)
            for node in ast.walk(tree_of(module))
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed")
        }
        assert module in USE_DISTRIBUTED or not (names | used), f"{module}: {names | used}"


def test_every_module_has_a_test_module() -> None:
    tests = Path(__file__).parent
    untested = [
        module
        for module, path in MODULES.items()
        if path.stem not in ("__init__", "__main__")
        and not (tests / path.relative_to(SOURCE).parent / f"test_{path.stem}.py").is_file()
    ]
    assert untested == []
