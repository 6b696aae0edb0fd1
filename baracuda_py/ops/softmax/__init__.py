"""Softmax family."""

from __future__ import annotations

from baracuda_py.ops.softmax import softmax

OPS = (softmax.OP,)
