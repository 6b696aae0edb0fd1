"""Arithmetic over descriptor attributes: `Expr("ic // group_size")` states a dimension or a divisor once.

Names are attributes or properties of the descriptor; the operators are + - * // % and unary minus, and the functions
`ceil_div(a, b)`, `min` and `max`. Anything else is refused when the expression is built.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from types import CodeType
from typing import Any

__all__ = ["Expr", "has_attribute"]

_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Name, ast.Load, ast.Constant, ast.Call,
    ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub,
)  # fmt: skip
_FUNCTIONS: dict[str, Any] = {"ceil_div": lambda a, b: -(-a // b), "min": min, "max": max}
_GLOBALS = {"__builtins__": {}, **_FUNCTIONS}


@cache
def _compile(text: str) -> tuple[CodeType, tuple[str, ...]]:
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not an expression: {error.msg}") from None
    for node in ast.walk(tree):
        if not isinstance(node, _NODES) or (isinstance(node, ast.Constant) and type(node.value) is not int):
            raise ValueError(f"{text!r}: {type(node).__name__} is not allowed in a dimension expression")
        if isinstance(node, ast.Call) and (not isinstance(node.func, ast.Name) or node.func.id not in _FUNCTIONS):
            raise ValueError(f"{text!r}: only {', '.join(_FUNCTIONS)} may be called")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - _FUNCTIONS.keys()
    return compile(tree, text, "eval"), tuple(sorted(names))


class _Attributes:
    """A descriptor seen as the mapping that `eval` asks for names."""

    __slots__ = ("_target",)

    def __init__(self, target: object) -> None:
        self._target = target

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._target, name)
        except AttributeError:
            raise KeyError(name) from None


class Expr:
    """An int or an expression string, evaluated against a descriptor."""

    __slots__ = ("_code", "_constant", "names", "text")

    def __init__(self, source: int | str) -> None:
        self.text = str(source)
        self._constant = source if isinstance(source, int) else None
        self._code, self.names = _compile(self.text)

    def __call__(self, target: object) -> Any:
        """The value on `target`; None when a name in it is None there (an open knob)."""
        if self._constant is not None:
            return self._constant
        if any(getattr(target, name) is None for name in self.names):
            return None
        scope: Any = _Attributes(target)
        return eval(self._code, _GLOBALS, scope)  # names and nodes were checked in _compile

    def unknown_names(self, cls: type) -> Iterator[str]:
        """Names that are no attribute of descriptors of type `cls`."""
        return (name for name in self.names if not has_attribute(cls, name))

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Expr) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def has_attribute(cls: type, name: str) -> bool:
    """Whether instances of the attrs class `cls` have `name` as a field or a property."""
    return any(name == attribute.name for attribute in getattr(cls, "__attrs_attrs__", ())) or isinstance(
        getattr(cls, name, None), property
    )
