"""A plug-in that registers an op and then fails: nothing of it may stay."""

from __future__ import annotations

from typing import Any

from baracuda_py.testing.toys import ToyKernel, toy_op


def register(registry: Any) -> None:
    """The entry point."""
    registry.register(toy_op("half_an_op", [ToyKernel("half")]))
    raise RuntimeError("the broken toy is broken")
