"""The ops that come with the package. A family is a subpackage with a tuple `OPS`; it is found by being here."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from baracuda_py.registry import Op

__all__ = ["builtin_ops"]


def builtin_ops() -> tuple[Op, ...]:
    """Every family's ops, families in alphabetical order."""
    families = sorted(module.name for module in iter_modules(__path__) if module.ispkg)
    return tuple(op for family in families for op in import_module(f"{__name__}.{family}").OPS)
