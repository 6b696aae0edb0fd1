"""Layers and tensors that are alike, shown as one: `80 x model.layers.*.mlp.down_proj`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from attrs import frozen

__all__ = ["Fold", "fold", "fold_names"]

T = TypeVar("T")
_STAR = "*"
_RANGES = 4  # listed of one number's values


@frozen
class Fold(Generic[T]):
    """Things that are alike.

    Attributes:
        label: the name of one; of several their pattern, with `*` for every number that occurs, or its values.
        items: them.
    """

    label: str
    items: tuple[T, ...]

    def __str__(self) -> str:
        return self.label if len(self.items) == 1 else f"{len(self.items)} x {self.label}"


def fold(items: Iterable[T], name: Callable[[T], str], alike: Callable[[T], Hashable]) -> list[Fold[T]]:
    """Fold the items whose names differ in numbers only, and which are `alike`; in the order of their firsts."""
    groups: dict[tuple[str, ...], dict[Hashable, list[T]]] = {}
    for item in items:
        parts = name(item).split(".")
        pattern = tuple(_STAR if _is_number(part) else part for part in parts)
        groups.setdefault(pattern, {}).setdefault(alike(item), []).append(item)
    folds = []
    for pattern, kinds in groups.items():
        for same in kinds.values():
            label = ".".join(pattern) if len(kinds) == 1 else _label(pattern, [name(item) for item in same])
            folds.append(Fold(name(same[0]) if len(same) == 1 else label, tuple(same)))
    return folds


def fold_names(names: Iterable[str], among: Iterable[str]) -> list[Fold[str]]:
    """Fold those of the names `among` that are in `names`; a `*` stands for all of a pattern."""
    chosen = frozenset(names)
    folds = fold(among, str, lambda name: name in chosen)
    return [one for one in folds if one.items[0] in chosen]


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal()


def _label(pattern: Sequence[str], names: Sequence[str]) -> str:
    """The pattern with the values that each number has in `names`."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(_values(column) if part == _STAR else part for part, column in zip(pattern, columns, strict=True))


def _values(column: Iterable[str]) -> str:
    ranges: list[list[str]] = []
    for value in sorted(set(column), key=lambda text: (len(text), text)):
        if ranges and value == _next(ranges[-1][-1]):
            ranges[-1][1:] = [value]
        else:
            ranges.append([value])
    if ranges == [[ranges[0][0]]]:
        return ranges[0][0]
    shown = ["-".join(each) for each in ranges[:_RANGES]] + ["..."] * (len(ranges) > _RANGES)
    return f"{{{','.join(shown)}}}"


def _next(number: str) -> str:
    """The number that follows; none follows one that is too long to be an index."""
    return str(int(number) + 1) if len(number) < 20 else ""
