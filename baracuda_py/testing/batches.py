"""The dimension that counts rows: found from the argument specs, so that a kernel can be run on more and on fewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from attrs import frozen

from baracuda_py.registry import Op
from baracuda_py.testing.calls import reference_outputs
from baracuda_py.testing.data import inputs_for
from baracuda_py.vocab.descriptors import TensorSpec

__all__ = ["Batch", "batch_of", "other_counts", "rows_are_apart"]


@frozen
class Batch:
    """The dimension that leads every output: an int field, or the first entry of a tuple field.

    Attributes:
        field: of the descriptor.
        count: its value.
        arguments: tensors that it leads.
    """

    field: str
    count: int
    arguments: tuple[str, ...]

    def resized(self, descriptor: Any, count: int) -> Any:
        """The descriptor with another count."""
        value = getattr(descriptor, self.field)
        return attrs.evolve(descriptor, **{self.field: (count, *value[1:]) if isinstance(value, tuple) else count})

    def resized_inputs(self, op: Op, descriptor: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of the other count: the leading rows, then rows of their own."""
        fresh = inputs_for(op, descriptor)
        for name, values in inputs.items():
            own = fresh[name]
            if own is None or name not in self.arguments:
                fresh[name] = values
                continue
            rows = min(len(own), len(values))
            own[:rows] = values[:rows]
        return fresh


def batch_of(op: Op, descriptor: Any) -> Batch | None:
    """The dimension that leads every output and is a field of the descriptor; None when there is none."""
    leads = {spec.name: _leading(spec) for spec in op.specs if spec.needed_on(descriptor)}
    outputs = {leads[spec.name] for spec in op.specs if spec.written and spec.name in leads}
    name = outputs.pop() if len(outputs) == 1 else ""
    value = getattr(descriptor, name, None) if name in attrs.fields_dict(type(descriptor)) else None
    count = value[0] if isinstance(value, tuple) and value else value
    if not isinstance(count, int) or count < 1:
        return None
    return Batch(name, count, tuple(argument for argument, leader in leads.items() if leader == name))


def _leading(spec: TensorSpec) -> str:
    if isinstance(spec.shape, tuple):
        return spec.shape[0].text if spec.shape else ""
    return spec.shape.text


def other_counts(count: int) -> tuple[int, ...]:
    """Counts on both sides, and on both sides of the tile heights 8, 16, 64 and 128 in use."""
    return tuple(other for other in (1, 2, 5, 8, 13, 16, 33, 64, 100, 129, 260) if other != count)


def rows_are_apart(op: Op, one: Any, inputs: Mapping[str, Any], two: Any, others: Mapping[str, Any], rows: int) -> bool:
    """Whether the oracle's leading rows are the same for both descriptors."""
    mine, theirs = reference_outputs(op, one, inputs), reference_outputs(op, two, others)
    return all(np.allclose(mine[n][:rows], theirs[n][:rows], rtol=1e-9, equal_nan=True) for n in mine)
