"""Random arguments of an op on a device, with as many copies of the weights as outsize every cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from attrs import field, frozen

from baracuda_py.arrays import allocate_workspace, empty, to_device
from baracuda_py.plan import Plan
from baracuda_py.registry import Op
from baracuda_py.tuning.timing import Calls
from baracuda_py.vocab.descriptors import TensorSpec
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import element_of_dtype, numpy_dtype
from baracuda_py.vocab.enums import ElementKind

__all__ = ["ROTATED_NBYTES", "RotatedArguments", "bound_calls", "copies_of"]

ROTATED_NBYTES = 320 << 20  # of constant arguments; more than the L2 of any GPU
_MOST_COPIES = 512
_MOST_DRAWN = 1 << 23  # normal values; larger arrays repeat them, for drawing takes longer than measuring
_FP8 = (ElementKind.FP8_E4M3, ElementKind.FP8_E5M2)
_FLOATS = (ElementKind.F16, ElementKind.BF16, ElementKind.F32, ElementKind.F64)


def copies_of(nbytes: int, rotated_nbytes: int) -> int:
    """How many weights of so many bytes make `rotated_nbytes`; 512 at most."""
    return min(_MOST_COPIES, max(1, math.ceil(rotated_nbytes / nbytes))) if nbytes else 1


@frozen(eq=False)
class RotatedArguments:
    """Makes arguments; keeps the weights for the next problem, which often differs in its rows alone.

    Attributes:
        device: where they lie.
        rotated_nbytes: constant arguments that all copies together are to have at least.
        constants: names of further arguments that there are copies of, as of those that the op calls constant.
    """

    device: Device
    rotated_nbytes: int = ROTATED_NBYTES
    constants: tuple[str, ...] = ()
    _kept: dict[Any, list[dict[str, Any]]] = field(factory=dict, init=False, repr=False)

    def of(self, op: Op, descriptor: Any) -> list[dict[str, Any]]:
        """Arguments by name, a set for each copy of the constant ones; the others are shared."""
        samples = _samples(op, descriptor)
        shared = {
            spec.name: _maker(spec, descriptor, samples, self.device)() if spec.needed_on(descriptor) else None
            for spec in op.specs if not self._rotates(spec) or not spec.needed_on(descriptor)
        }  # fmt: skip
        return [shared | constants for constants in self._copies(op, descriptor, samples)]

    def _rotates(self, spec: TensorSpec) -> bool:
        return spec.role == "constant" or spec.name in self.constants

    def _copies(self, op: Op, descriptor: Any, samples: Samples) -> list[dict[str, Any]]:
        specs = [spec for spec in op.specs if self._rotates(spec) and spec.needed_on(descriptor)]
        key = (op.name, *((spec.name, spec.shape_on(descriptor), spec.elements_on(descriptor)) for spec in specs))
        if key not in self._kept:
            self._kept.clear()
            makers = {spec.name: _maker(spec, descriptor, samples, self.device) for spec in specs}
            first = {name: make() for name, make in makers.items()}
            copies = copies_of(sum(array.nbytes for array in first.values()), self.rotated_nbytes)
            self._kept[key] = [first, *({name: make() for name, make in makers.items()} for _ in range(copies - 1))]
        return self._kept[key]


def bound_calls(plan: Plan, arguments: list[dict[str, Any]], stream: int, *, overlap: bool = False) -> Calls:
    """A bound run of the plan for each set of arguments, with one workspace for all; `overlap` as for `Plan.bind`."""
    workspace = allocate_workspace(plan)
    return [plan.bind(plan.op.args(**one), workspace, stream, overlap=overlap) for one in arguments]


Samples = Callable[[], Mapping[str, Any]]


def _samples(op: Op, descriptor: Any) -> Samples:
    """The op's own samples, drawn when they are asked for and once: they may pack a whole weight."""
    return cache(lambda: op.samples(descriptor, np.random.default_rng(0)))


def _maker(spec: TensorSpec, descriptor: Any, samples: Samples, device: Device) -> Callable[[], Any]:
    """Makes arrays of one argument: random, all with the same values; what the op writes, as it comes."""
    if spec.written:
        shape, element = spec.shape_on(descriptor), spec.elements_on(descriptor)[0]
        return lambda: empty(shape, element, device)
    values = _values(spec, descriptor, samples)
    # On the host `to_device` gives the array itself.
    return lambda: values.copy() if device.kind == "host" else to_device(values, device)


def _quantized(values: Any, dtype: Any) -> Any:
    """Normal values as fp8 of one scale: the largest becomes the largest of the format."""
    largest = float(ml_dtypes.finfo(dtype).max)
    return (values * np.float32(largest / max(np.abs(values).max(initial=0), 1))).astype(dtype)


def _values(spec: TensorSpec, descriptor: Any, samples: Samples) -> Any:
    """Random values of one argument. The op has a say in all but plain floats, which can be any."""
    random = np.random.default_rng(0)
    shape, dtype = spec.shape_on(descriptor), numpy_dtype(spec.elements_on(descriptor)[0])
    element = element_of_dtype(dtype)
    if element in _FLOATS or element in _FP8:
        drawn = random.standard_normal(min(math.prod(shape), _MOST_DRAWN), np.float32)
        return np.resize(drawn.astype(dtype) if element in _FLOATS else _quantized(drawn, dtype), shape)
    if spec.name in samples():
        return samples()[spec.name]
    return random.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
