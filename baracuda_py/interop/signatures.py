"""What an op is called with in a framework, from its descriptor and argument specs alone.

A call takes the op's inputs, and by keyword those fields of the descriptor that its inputs do not tell. An int that is
a dimension of an input which is always there is taken from its shape, and an element from its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen

from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.registry import Op
from baracuda_py.vocab.descriptors import TensorSpec
from baracuda_py.vocab.enums import ElementKind

__all__ = ["Option", "Signature"]


@frozen
class Option:
    """A field of the descriptor that a call takes by keyword.

    Attributes:
        name: of the field.
        kind: int, float, bool, str, an enum, or tuple.
        optional: whether it may be None.
        default: its value when it is left out; `attrs.NOTHING` when it must be given.
    """

    name: str
    kind: Any
    optional: bool
    default: Any

    @property
    def is_enum(self) -> bool:
        """Whether its values are members of an enum, which a call may name."""
        return isinstance(self.kind, type) and issubclass(self.kind, Enum)

    def value(self, given: Any) -> Any:
        """As the descriptor takes it; InvalidProblem for the name of no member."""
        if not self.is_enum or given is None or isinstance(given, self.kind):
            return tuple(given) if self.kind is tuple and given is not None else given
        member = self.kind.__members__.get(str(given).upper())
        if member is None:
            known = ", ".join(name.lower() for name in self.kind.__members__)
            raise InvalidProblem(self.name, f"it must be one of {known}", rule=self.name, value=given)
        return member


@frozen(eq=False)
class Signature:
    """How an op is called.

    Attributes:
        op: it.
        inputs: tensors that a call takes, in order: those that are read, then those that are read and written.
        outputs: tensors that are only written.
        options: fields of the descriptor, taken by keyword.
        from_shape: fields that an input's shape tells: the input's name, and the axis, or None for the whole shape.
        from_dtype: fields that an input's dtype tells.
    """

    op: Op
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: tuple[Option, ...]
    from_shape: Mapping[str, tuple[str, int | None]]
    from_dtype: Mapping[str, str]

    @classmethod
    def of(cls, op: Op) -> Signature:
        """The signature of an op."""
        read = [spec for spec in op.specs if spec.role in ("in", "constant")]
        in_place = [spec for spec in op.specs if spec.role == "inout"]
        fields = {field.name: field for field in attrs.fields(op.descriptor) if field.init}
        from_shape: dict[str, tuple[str, int | None]] = {}
        from_dtype: dict[str, str] = {}
        for spec in (spec for spec in (*read, *in_place) if not spec.needed):
            if isinstance(spec.shape, tuple):
                for axis, size in enumerate(spec.shape):
                    if size.text in fields:
                        from_shape.setdefault(size.text, (spec.name, axis))
            elif spec.shape.text in fields:
                from_shape.setdefault(spec.shape.text, (spec.name, None))
            if isinstance(spec.element, str) and spec.element in fields:
                from_dtype.setdefault(spec.element, spec.name)
        types = get_type_hints(op.descriptor)
        options = [
            _option(field, types[name]) for name, field in fields.items() if name not in (*from_shape, *from_dtype)
        ]
        return cls(
            op, (*read, *in_place), tuple(spec for spec in op.specs if spec.role == "out"), tuple(options), from_shape,
            from_dtype,
        )  # fmt: skip

    @property
    def changed(self) -> bool:
        """Whether there is a tensor that is read and written."""
        return any(spec.written for spec in self.inputs)

    def fields(
        self, tensors: Mapping[str, Any], options: Mapping[str, Any], element_of: Callable[[Any], ElementKind | None]
    ) -> dict[str, Any]:
        """The descriptor's fields that tensors and keywords tell.

        Args:
            tensors: by name; they have a shape and a dtype.
            options: by name; others than this signature's are left away.
            element_of: the element of a framework's dtype, or None.

        Raises:
            InvalidProblem: too few axes, or the name of no enum member.
            Unsupported: a dtype that no element stands for.
        """
        fields = {
            name: tuple(tensors[source].shape) if axis is None else _size(tensors[source], axis, source)
            for name, (source, axis) in self.from_shape.items()
        }
        for name, source in self.from_dtype.items():
            dtype = tensors[source].dtype
            element = element_of(dtype)
            if element is None:
                raise Unsupported(source, "its dtype must stand for an element", rule="dtype", got=str(dtype))
            fields[name] = element
        return fields | {
            option.name: option.value(options[option.name]) for option in self.options if option.name in options
        }


def _size(tensor: Any, axis: int, name: str) -> Any:
    if len(tensor.shape) <= axis:
        raise InvalidProblem(
            name, f"it must have more than {axis} axes", rule=f"{name} shape", value=tuple(tensor.shape)
        )
    return tensor.shape[axis]


def _option(field: Any, kind: Any) -> Option:
    alternatives = [one for one in (get_args(kind) if get_origin(kind) is not tuple else ()) if one is not NoneType]
    optional = NoneType in get_args(kind)
    kind = alternatives[0] if optional else kind
    return Option(field.name, tuple if get_origin(kind) is tuple else kind, optional, field.default)
