"""How an op states its problem (`@descriptor`) and its tensors (`@arguments` with `tensor(...)` fields)."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, dataclass_transform

import attrs
from attrs import frozen

from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.expr import Expr, has_attribute

__all__ = [
    "TensorSpec",
    "arguments",
    "check_member",
    "descriptor",
    "enum_field",
    "float_field",
    "from_fields",
    "int_field",
    "specs_of",
    "tensor",
    "to_fields",
]

_T = TypeVar("_T", bound=type)
Strides = Literal["contiguous", "rows", "any"]
Role = Literal["in", "constant", "out", "inout"]
_SPEC = "baracuda_spec"
_ENUM = "baracuda_enum"


def _to_ints(value: Any, field: Any) -> Any:
    annotation = str(field.type)
    optional, many = "None" in annotation or "Optional" in annotation, "tuple" in annotation
    if value is None and optional:
        return None
    try:
        if many:
            return tuple(map(operator.index, value))
        return operator.index(value)
    except TypeError:
        what = ("a tuple of ints" if many else "an int") + (", or None" if optional else "")
        raise TypeError(f"{field.name} must be {what}, not {value!r}") from None


def int_field(*, default: Any = attrs.NOTHING) -> Any:
    """A descriptor field of what its annotation says: an int, a tuple of them, and None if it says `| None`.

    Anything with `__index__` is taken for an int; a float, however integral, is a TypeError.
    """
    return attrs.field(default=default, converter=attrs.Converter(_to_ints, takes_field=True))


def _to_float(value: Any, field: Any) -> float:
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{field.name} must be a real number, not {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{field.name} must be finite, not {value!r}")
    return number


def float_field(*, default: Any = attrs.NOTHING) -> Any:
    """A descriptor field that is a real number: an int, a float, or NumPy's.

    TypeError for anything else; ValueError for infinities and for NaN, which as part of a descriptor would equal none.
    """
    return attrs.field(default=default, converter=attrs.Converter(_to_float, takes_field=True))


def check_member(name: str, value: object, enum: type[Enum]) -> None:
    """Raise TypeError unless `value`, called `name`, is a member of `enum`."""
    if not isinstance(value, enum):
        raise TypeError(f"{name} must be a member of {enum.__name__}, not {value!r}")


def enum_field(enum: type[Enum], *, default: Any = attrs.NOTHING) -> Any:
    """A descriptor field that is a member of `enum`, or None where the default is None."""
    optional = default is None

    def check(_instance: object, attribute: Any, value: object) -> None:
        if not (optional and value is None):
            check_member(attribute.name, value, enum)

    return attrs.field(default=default, validator=check, metadata={_ENUM: enum})


@dataclass_transform(frozen_default=True, field_specifiers=(int_field, float_field, enum_field, attrs.field))
def descriptor(cls: _T) -> _T:
    """Make `cls` a descriptor: a frozen, hashable attrs class with a `with_<field>` copy method an optional field."""
    made: Any = attrs.frozen(cls, slots=False, cache_hash=True)
    for attribute in attrs.fields(made):
        if attribute.default is attrs.NOTHING or not attribute.init:
            continue
        name = f"with_{attribute.name}"
        if not hasattr(made, name):
            setattr(made, name, _builder(made, attribute.name))
    return made


def _builder(cls: type, field_name: str) -> Callable[[Any, Any], Any]:
    def with_field(self: Any, value: Any) -> Any:
        return attrs.evolve(self, **{field_name: value})

    with_field.__name__ = f"with_{field_name}"
    with_field.__qualname__ = f"{cls.__qualname__}.with_{field_name}"
    with_field.__doc__ = f"A copy with another `{field_name}`."
    return with_field


def to_fields(descriptor: Any) -> dict[str, Any]:
    """The fields that differ from their defaults, as JSON has them: enum members by name, in lower case."""
    return {
        attribute.name: _plain(value)
        for attribute in attrs.fields(type(descriptor))
        if attribute.init and (value := getattr(descriptor, attribute.name)) != attribute.default
    }


def from_fields(descriptor_type: type, fields: Mapping[str, Any]) -> Any:
    """The descriptor that `to_fields` gave these fields of.

    Raises TypeError for a field that there is not, KeyError for a member that an enum has not.
    """
    enums = {attribute.name: attribute.metadata.get(_ENUM) for attribute in attrs.fields(descriptor_type)}
    values = {
        name: enums[name][value.upper()] if isinstance(value, str) and enums.get(name) else value
        for name, value in fields.items()
    }
    return descriptor_type(**values)


def _plain(value: Any) -> Any:
    return value.name.lower() if isinstance(value, Enum) else list(value) if isinstance(value, tuple) else value


@frozen
class TensorSpec:
    """What one tensor of a call must be, as a function of the descriptor.

    Attributes:
        name: the argument.
        element: an ElementKind, several that are bit-compatible, or the descriptor attribute that holds it.
        shape: dimension expressions, or one expression whose value is the whole shape.
        strides: `"contiguous"`, `"rows"` (innermost stride 1, rows do not overlap) or `"any"`.
        role: `"in"`, `"constant"` (an input that a bound run may read when it is bound: weights), `"out"` or `"inout"`.
        needed: descriptor attribute that says whether the tensor must be there (True) or must be absent (False);
            empty: it must be there.
        doc: one line for the reference.
    """

    name: str
    element: ElementKind | str | tuple[ElementKind, ...]
    shape: tuple[Expr, ...] | Expr
    strides: Strides = "contiguous"
    role: Role = "in"
    needed: str = ""
    doc: str = ""

    @property
    def written(self) -> bool:
        """Whether the kernel writes it."""
        return self.role in ("out", "inout")

    def elements_on(self, descriptor: object) -> tuple[ElementKind, ...]:
        """The element kinds that are accepted for `descriptor`; the first is the one that tests allocate."""
        element = getattr(descriptor, self.element) if isinstance(self.element, str) else self.element
        return element if isinstance(element, tuple) else (element,)

    def shape_on(self, descriptor: object) -> tuple[int, ...]:
        """The shape for `descriptor`."""
        if isinstance(self.shape, Expr):
            return tuple(self.shape(descriptor))
        return tuple(dimension(descriptor) for dimension in self.shape)

    def needed_on(self, descriptor: object) -> bool:
        """Whether the tensor is part of the call that `descriptor` describes."""
        return not self.needed or bool(getattr(descriptor, self.needed))

    def problems(self, descriptor_type: type) -> Iterator[str]:
        """What is malformed about the spec for descriptors of this type."""
        expressions = (self.shape,) if isinstance(self.shape, Expr) else self.shape
        names = [name for expression in expressions for name in expression.names]
        names += [self.element] if isinstance(self.element, str) else []
        names += [self.needed] if self.needed else []
        for name in names:
            if not has_attribute(descriptor_type, name):
                yield f"argument {self.name!r}: {descriptor_type.__name__} has no attribute {name!r}"


def tensor(
    element: ElementKind | str | tuple[ElementKind, ...],
    shape: tuple[int | str, ...] | str,
    *,
    strides: Strides = "contiguous",
    role: Role = "in",
    needed: str = "",
    doc: str = "",
    positional: bool = False,
) -> Any:
    """A tensor field of an `@arguments` class; see `TensorSpec` for what each keyword means.

    A tensor that is not always needed may be left away, unless it is `positional`: then it is given as None.
    """
    exprs = Expr(shape) if isinstance(shape, str) else tuple(map(Expr, shape))
    spec = TensorSpec("", element, exprs, strides, role, needed, doc)
    return attrs.field(default=None if needed and not positional else attrs.NOTHING, metadata={_SPEC: spec})


@dataclass_transform(field_specifiers=(tensor,))
def arguments(cls: _T) -> _T:
    """Make `cls` the tensors of one call: an attrs class whose fields are all made by `tensor(...)`."""
    made: Any = attrs.define(cls, eq=False, repr=True)
    made.__baracuda_specs__ = tuple(
        attrs.evolve(attribute.metadata[_SPEC], name=attribute.name) for attribute in attrs.fields(made)
    )
    return made


def specs_of(args_type: type) -> tuple[TensorSpec, ...]:
    """The specs of an `@arguments` class, in the order of its fields."""
    return args_type.__baracuda_specs__  # type: ignore[attr-defined]

