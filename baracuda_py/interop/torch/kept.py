"""What AWQ modules keep between calls, in common: a mixture of experts has thousands of modules of the same sizes.

Attributes:
    plans: by sort of module (all that a plan depends on besides the input), then by rows, dtype and device.
    launches: of shapes that a run has checked, by sort and device of the weights, then by form of the input.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["keep", "launches", "plans", "weak"]

_MOST = 4096  # of one sort
plans: dict[Any, dict[Any, Any]] = {}
launches: dict[Any, dict[Any, Any]] = {}


def keep(found: dict[Any, Any], key: Any, value: Any) -> None:
    """Put an entry into one sort's; where there are too many, all others go."""
    if len(found) >= _MOST:
        found.clear()
    found[key] = value


def weak(tensor: Any) -> Callable[[], Any]:
    """What gives the tensor, or None, as long as somebody else holds it."""
    return _absent if tensor is None else weakref.ref(tensor)


def _absent() -> None:
    """A weak reference to None."""
