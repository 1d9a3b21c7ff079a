"""Find out which tensor of a stranger's file belongs to which tensor of a network.

Three ways, in this order: by name, after prefixes such as ``module.`` are removed; by the names that other
programs give to the layers of a ResNet; and for the tensors that are still left, by order and shape. The last
way takes all of them or none. Names never decide alone: shapes must be equal, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

# Wrappers that add a prefix: DataParallel, torch.compile, Lightning and others.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
COUNTER = "num_batches_tracked"  # BatchNorm's; it changes nothing, and files of old versions lack it

# The names of torchvision, timm, pytorch-cifar and the tutorial → those of thumbnet's ResNet.
_RESNET_NAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"^conv1\.", "stem."),
    (r"^bn1\.", "norm."),
    (r"^(?:layer|block)(\d)\.", lambda found: f"stages.{int(found[1]) - 1}."),
    (r"^(stages\.\d\.\d+)\.bn(\d)\.", r"\1.norm\2."),
    (r"^(stages\.\d\.\d+)\.downsample\.", r"\1.shortcut."),
    (r"^(fc|linear|classifier)\.", "head."),
]


@dataclass
class Match:
    """Which tensors belong together.

    Attributes:
        pairs: a name in the network → the name in the file, for tensors of equal shape.
        stem: the network's first convolution and its counterpart, if their shapes differ.
        how: the way in words, such as ``by name``.
        missing: names in the network's body without a counterpart, except ``stem``.
        unused: names in the file that belong to nothing, without those of its last layer.
        head: the tensors of the file's last layer, if it is known.
    """

    pairs: dict[str, str] = field(default_factory=dict)
    stem: tuple[str, str] | None = None
    how: str = "by name"
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)


def match(
    body: Mapping[str, Tensor],
    file: Mapping[str, Tensor],
    is_head: Callable[[str], bool],
    *,
    is_resnet: bool = False,
    in_order: bool = True,
) -> Match:
    """Match a network's tensors with those of a file.

    Args:
        body: the network's tensors without its last layer, in order.
        file: the file's tensors.
        is_head: whether a name belongs to the network's last layer.
        is_resnet: whether the network has the names of thumbnet's ResNet.
        in_order: whether the file's tensors are in the network's order. If not, the tensors of layers that
            have equal shapes cannot be told apart without their names.
    """
    ways = [("by name", names) for names in _without_prefixes(list(file))]
    if is_resnet:
        usual = "by the usual names of a ResNet's layers"
        ways += [(usual, {old: _resnet_name(new) for old, new in names.items()}) for _, names in ways]
    found = [_by_name(body, file, names, how, is_head) for how, names in ways if _is_distinct(names)]
    best = max(found, key=lambda one: len(one.pairs) + (one.stem is not None))  # the first of equal ones
    _by_order(best, body, file, in_order)
    best.missing = [name for name in best.missing if not name.endswith(COUNTER)]
    best.unused = [name for name in best.unused if not name.endswith(COUNTER)]
    return best


def _without_prefixes(names: list[str]) -> Iterator[dict[str, str]]:
    """The names as they are, then without the prefix that at least half have, and so on."""
    known = {name: name for name in names}
    yield known
    while True:
        counts = {prefix: sum(new.startswith(prefix) for new in known.values()) for prefix in PREFIXES}
        prefix = max(PREFIXES, key=lambda one: counts[one])
        if not known or 2 * counts[prefix] < len(known):
            return
        known = {old: new.removeprefix(prefix) for old, new in known.items()}
        yield known


def _is_distinct(names: Mapping[str, str]) -> bool:
    return len(set(names.values())) == len(names)


def _resnet_name(name: str) -> str:
    for pattern, replacement in _RESNET_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def fits(mine: Tensor, theirs: Tensor) -> bool:
    """Whether a tensor of a file can replace one of the network: equal shapes, both floats or both not."""
    return mine.shape == theirs.shape and mine.is_floating_point() == theirs.is_floating_point()


def _by_name(
    body: Mapping[str, Tensor],
    file: Mapping[str, Tensor],
    names: Mapping[str, str],
    how: str,
    is_head: Callable[[str], bool],
) -> Match:
    there = {new: old for old, new in names.items()}
    made = Match(how=how)
    first = _first_convolution(body)
    for name, tensor in body.items():
        if name in there and fits(tensor, file[there[name]]):
            made.pairs[name] = there[name]
        elif name == first and name in there and _is_other_stem(tensor, file[there[name]]):
            made.stem = name, there[name]
        else:
            made.missing.append(name)
    used = {*made.pairs.values(), *((made.stem[1],) if made.stem else ())}
    made.head = [old for old, new in names.items() if old not in used and is_head(new)]
    made.unused = [old for old in names if old not in used and old not in made.head]
    return made


def _first_convolution(body: Mapping[str, Tensor]) -> str | None:
    return next((name for name, tensor in body.items() if tensor.ndim == 4), None)


def _is_other_stem(mine: Tensor, theirs: Tensor) -> bool:
    """Whether two first convolutions differ only in their filters' size, or in the pictures' channels."""
    return theirs.ndim == 4 and mine.shape[0] == theirs.shape[0] and mine.shape != theirs.shape


def _by_order(made: Match, body: Mapping[str, Tensor], file: Mapping[str, Tensor], in_order: bool) -> None:
    """Match what is left by order and shape: all of it, or nothing. Changes ``made``."""
    mine, theirs = _layers(made.missing), _layers(made.unused)
    here = [_signature(layer, body) for layer in mine.values()]
    there = [_signature(layer, file) for layer in theirs.values()]
    if not here or len(there) not in (len(here), len(here) + 1):
        return
    if len(there) > len(here) and (made.head or not _is_linear(list(theirs.values())[-1], file)):
        return  # the last one is not the file's last layer
    if not in_order and len(set(there)) < len(there):
        return  # layers of equal shapes, in no order
    first = _first_convolution(body)
    stem = None
    for one, other in zip(mine.values(), theirs.values(), strict=False):
        if _signature(one, body) != _signature(other, file):
            ours, stranger = one.get("weight"), other.get("weight")
            same = ours == first and stranger is not None and one.keys() == other.keys()
            if not (same and ours and stranger and _is_other_stem(body[ours], file[stranger])):
                return
            stem = ours, stranger
    made.how = f"{made.how}, the others by order and shape" if made.pairs else "by order and shape"
    for one, other in zip(mine.values(), theirs.values(), strict=False):
        for leaf, name in one.items():
            if leaf in other and (stem is None or name != stem[0]):
                made.pairs[name] = other[leaf]
    made.stem = stem or made.stem
    made.missing = []
    made.head += [name for layer in list(theirs.values())[len(here) :] for name in layer.values()]
    made.unused = []


def _is_linear(layer: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bool:
    return "weight" in layer and tensors[layer["weight"]].ndim == 2


def _layers(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """The layers that have these tensors, in order: for each, the last part of a name → the name."""
    layers: dict[str, dict[str, str]] = {}
    for name in names:
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, {})[leaf] = name
    return {layer: leaves for layer, leaves in layers.items() if set(leaves) != {COUNTER}}


def _signature(layer: Mapping[str, str], tensors: Mapping[str, Tensor]) -> tuple[object, ...]:
    """What two layers must have in common: the names of their tensors, with types and shapes."""
    return tuple(
        (leaf, tensors[name].is_floating_point(), tuple(tensors[name].shape))
        for leaf, name in sorted(layer.items())
        if leaf != COUNTER
    )
