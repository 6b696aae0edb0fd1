"""Normalisations."""

from __future__ import annotations

from baracuda_py.ops.normalization import rms_norm

OPS = (rms_norm.OP,)
