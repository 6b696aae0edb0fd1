"""Measured times of kernels on one GPU, and what they say of problems that were not measured.

A kernel's cost model gives an estimate for any problem. Measuring gives, for some problems, the factor by which it is
wrong. For another problem the factors are averaged, as logarithms, each with the weight 1 / distance^2; at a measured
problem the estimate is what was measured. Distance is between the logarithms of the op's sizes; other fields of a
descriptor add a little when they differ, so that a table of f16 speaks of bf16 too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from attrs import field, frozen

from baracuda_py.vocab.device import Device
from baracuda_py.vocab.sku import KernelSku

__all__ = ["Calibration", "Problem", "TuningTable", "kernel_label"]

_DIFFERENT = 0.1  # distance that a field adds which is no size; 1 is a factor of 2 in a size


def kernel_label(sku: KernelSku) -> str:
    """What a table calls a kernel, whatever its element, layout and epilogue: `"sm80.bespoke.stream_hf_gemm"`."""
    return f"{sku.arch.name}.{sku.backend.name}.{sku.variant}".lower()


@frozen
class Problem:
    """A measured problem: fields of the descriptor (`to_fields`), and the time of each kernel in microseconds."""

    fields: Mapping[str, Any]
    times_us: Mapping[str, float]


@frozen(eq=False)
class TuningTable:
    """What was measured on one GPU.

    Attributes:
        device: it, without an ordinal.
        problems: by op name.
        origin: driver, commit and whatever else says where the times come from.
        where: file that it was read from, for messages.
    """

    device: Device
    problems: Mapping[str, tuple[Problem, ...]] = field(repr=False)
    origin: Mapping[str, Any] = field(factory=dict)
    where: str = ""


Place = tuple[tuple[float, ...], tuple[Any, ...]]


def place_of(sizes: Sequence[str], descriptor: Any) -> Place:
    """The logarithms of a descriptor's sizes, and its other fields."""
    logarithms = tuple(math.log2(max(getattr(descriptor, name), 1)) for name in sizes)
    others = (item.name for item in attrs.fields(type(descriptor)) if item.init and item.name not in sizes)
    return logarithms, tuple(getattr(descriptor, name) for name in others)


@frozen(eq=False)
class Calibration:
    """The corrections of one kernel's cost model.

    Attributes:
        sizes: fields of the descriptor.
        points: where it was measured, and the logarithm of measured over estimated.
    """

    sizes: tuple[str, ...]
    points: tuple[tuple[Place, float], ...] = field(repr=False)

    @classmethod
    def of(
        cls, sizes: tuple[str, ...], cost: Callable[[Any], float], measured: Sequence[tuple[Any, float]]
    ) -> Calibration | None:
        """From (descriptor, microseconds) pairs; None if there is none."""
        points = []
        for descriptor, time_us in measured:
            estimate = cost(descriptor)
            if estimate > 0 and time_us > 0:
                points.append((place_of(sizes, descriptor), math.log(time_us / estimate)))
        return cls(sizes, tuple(points)) if points else None

    def factor(self, descriptor: Any) -> float:
        """Of the estimate for a descriptor."""
        (sizes, others), total, weights = place_of(self.sizes, descriptor), 0.0, 0.0
        for (there, other), correction in self.points:
            distance = sum(abs(a - b) for a, b in zip(sizes, there, strict=True))
            distance += _DIFFERENT * sum(a != b for a, b in zip(others, other, strict=True))
            if not distance:
                return math.exp(correction)
            weight = distance**-2
            total += weight * correction
            weights += weight
        return math.exp(total / weights)
