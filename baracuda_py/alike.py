"""Recognises a call whose torch tensors are like those of a call that passed every check, and may differ in address.

The test is straight-line code, compiled once for a form of call (as attrs compiles its methods): a run's host time is
mostly this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from attrs import frozen

from baracuda_py.vocab.tensors import TensorRef

__all__ = ["Alike", "Argument"]

Test = Callable[[Any, int, int], tuple[int, ...] | None]


@frozen
class Argument:
    """What the code depends on: an argument's name, and of one that is present its role, alignment and form.

    `negatable`: whether it may be the imaginary part of a conjugated tensor, whose sign is pending; `conjugable`:
    whether it may be one itself.
    """

    name: str
    present: bool
    written: bool = False
    alignment: int = 1
    contiguous: bool = True
    negatable: bool = True
    conjugable: bool = False


class Alike:
    """A call that passed.

    Attributes:
        views: its views, by argument, None for absent ones; without owners, so as to keep no memory alive.
        addresses: called with arguments and the workspace's first address and end; the arguments' addresses (0 for
            absent ones), or None unless these differ from the call that passed in nothing else, are aligned, and no
            output lies over another argument, nor any argument in the workspace.
    """

    __slots__ = ("addresses", "views")

    def __init__(self, arguments: Sequence[Argument], sources: Sequence[Any], views: Sequence[TensorRef | None]):
        self.views = tuple(None if view is None else view.moved(view.pointer, None) for view in views)
        self.addresses = _compiled(tuple(arguments))(
            [
                None if view is None else _metadata(source, view)
                for source, view in zip(sources, self.views, strict=True)
            ]
        )


def _metadata(source: Any, view: TensorRef) -> tuple[Any, ...]:
    """What a tensor like `source` equals, and where its memory begins and ends, seen from its address."""
    low, high = view.extent
    return (
        type(source), source.dtype, source.shape, source.stride(), source.device, low - view.pointer,
        high - view.pointer,
    )  # fmt: skip


@lru_cache(maxsize=256)  # as many as ops have forms of call
def _compiled(arguments: tuple[Argument, ...]) -> Callable[[list[tuple[Any, ...] | None]], Test]:
    scope: dict[str, Any] = {}
    exec(_source(arguments), scope)
    made: Callable[[list[tuple[Any, ...] | None]], Test] = scope["make"]
    return made


def _source(arguments: tuple[Argument, ...]) -> str:
    """Python source of a function of metadata that returns the test."""
    unpack, test, addresses, clashes = [], [], [], []
    present = [number for number, argument in enumerate(arguments) if argument.present]
    for number, argument in enumerate(arguments):
        test.append(f"s = a.{argument.name}")
        if not argument.present:
            test.append("if s is not None: return None")
            addresses.append("0")
            continue
        unpack.append(f"T{number}, D{number}, S{number}, R{number}, V{number}, L{number}, H{number} = m[{number}]")
        differs = f"type(s) is not T{number} or s.dtype is not D{number} or s.shape != S{number}"
        differs += f" or s.device != V{number}"
        if argument.contiguous:
            differs += " or not s.is_contiguous()"  # cheaper than the strides, which follow
        else:
            differs += f" or s.stride() != R{number}"
        if argument.negatable:
            differs += " or s.is_neg()"
        if argument.conjugable:
            differs += " or s.is_conj()"
        test.append(f"if {differs}: return None")
        test.append(f"p{number} = s.data_ptr()")
        misplaced = f"not p{number}" + (f" or p{number} % {argument.alignment}" if argument.alignment > 1 else "")
        test.append(f"if {misplaced}: return None")
        test.append(f"l{number} = p{number} + L{number}; h{number} = p{number} + H{number}")
        addresses.append(f"p{number}")
        clashes.append(f"w < h{number} and l{number} < e")
        clashes += [
            f"l{number} < h{other} and l{other} < h{number}"
            for other in present
            if argument.written and other != number and not (other < number and arguments[other].written)
        ]
    test += [f"if {clash}: return None" for clash in clashes]
    test.append(f"return {', '.join(addresses)},")
    lines = ["def make(m):", *(f"    {line}" for line in unpack), "    def test(a, w, e):", "        try:"]
    # A sparse tensor has neither strides nor an address.
    lines += [*(f"            {line}" for line in test), "        except RuntimeError: return None"]
    return "\n".join([*lines, "    return test"])
