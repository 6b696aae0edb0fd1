"""What a kernel is (`KernelSku`) and what it promises (`PrecisionGuarantee`)."""

from __future__ import annotations

import re
from enum import IntEnum
from functools import cached_property, total_ordering
from typing import Any, TypeVar

from attrs import asdict, field, fields, frozen
from attrs.validators import instance_of, optional

from baracuda_py.vocab.enums import (
    KIND_OF_CATEGORY,
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
)

__all__ = ["KernelSku", "PrecisionGuarantee"]

_EnumT = TypeVar("_EnumT", bound=IntEnum)
_FLAGS = {"s": "bit_stable_on_same_hardware", "d": "deterministic", "b": "batch_invariant"}


def _member(enum: type[_EnumT], text: str, part: str) -> _EnumT:
    try:
        return enum[text.upper()]
    except KeyError:
        raise ValueError(f"{part} {text!r} names no {enum.__name__}") from None


def _check_text(token: object) -> None:
    if not isinstance(token, str):
        raise TypeError(f"a token must be text, not {token!r}")


@frozen(slots=False)
class PrecisionGuarantee:
    """What a kernel promises about its numbers. A field left None says nothing: as a requirement it asks nothing.

    Attributes:
        math_precision: type of the operands the multiplications see.
        accumulator: type the sums are kept in.
        partial_sums: type that partial results are stored as between accumulation and the final rounding
            (split-K, stream-K); the accumulator's where they never leave it.
        bit_stable_on_same_hardware: the same input gives the same bits in every process on the same GPU model.
        deterministic: the same input gives the same bits in every run and on every stream of one process.
        batch_invariant: a row's bits do not depend on how many other rows there are.
    """

    # The enums compare as ints: unchecked, ElementKind.F32 would pass for MathPrecision.TF32.
    math_precision: MathPrecision | None = field(default=None, validator=optional(instance_of(MathPrecision)))
    accumulator: ElementKind | None = field(default=None, validator=optional(instance_of(ElementKind)))
    partial_sums: ElementKind | None = field(default=None, validator=optional(instance_of(ElementKind)))
    bit_stable_on_same_hardware: bool | None = field(default=None, validator=optional(instance_of(bool)))
    deterministic: bool | None = field(default=None, validator=optional(instance_of(bool)))
    batch_invariant: bool | None = field(default=None, validator=optional(instance_of(bool)))

    @property
    def complete(self) -> bool:
        """Whether every field is set, as a kernel's guarantee must."""
        return None not in asdict(self, recurse=False).values()

    def satisfies(self, required: PrecisionGuarantee) -> bool:
        """Whether this promise covers every field that `required` sets; a promise kept is no obstacle to `False`."""
        return not self.unmet(required)

    def unmet(self, required: PrecisionGuarantee) -> tuple[str, ...]:
        """Names of the fields of `required` that this guarantee does not cover."""
        names = []
        for attribute in fields(PrecisionGuarantee):
            wanted, have = getattr(required, attribute.name), getattr(self, attribute.name)
            if wanted is None or wanted is False:
                continue
            if have != wanted:
                names.append(attribute.name)
        return tuple(names)

    @cached_property
    def token(self) -> str:
        """Text form that parses back, e.g. `f16-f32-f32-sd`: s bit-stable, d deterministic, b batch-invariant."""
        types = [self.math_precision, self.accumulator, self.partial_sums]
        flags = ""
        for letter, name in _FLAGS.items():
            value = getattr(self, name)
            flags += letter if value else ("" if value is False else letter.upper())
        return "-".join([*("any" if t is None else t.name.lower() for t in types), flags or "0"])

    @classmethod
    def parse(cls, token: str) -> PrecisionGuarantee:
        """The guarantee whose `token` this is; else ValueError, which says what is wrong with it; TypeError for what is
        no text."""
        _check_text(token)
        parts = token.split("-")
        if len(parts) != 4:
            raise ValueError(f"{token!r} is no guarantee token: its parts must be 4, not {len(parts)}")
        enums = {"math_precision": MathPrecision, "accumulator": ElementKind, "partial_sums": ElementKind}
        if unknown := set(parts[3]) - set("sdbSDB0"):
            raise ValueError(f"{token!r} is no guarantee token: {min(unknown)!r} is no flag")
        try:
            types = [
                None if part == "any" else _member(enum, part, name)
                for (name, enum), part in zip(enums.items(), parts, strict=False)
            ]
        except ValueError as error:
            raise ValueError(f"{token!r} is no guarantee token: {error}") from None
        flags = {n: True if k in parts[3] else None if k.upper() in parts[3] else False for k, n in _FLAGS.items()}
        guarantee = cls(*types, **flags)  # type: ignore[arg-type]
        if guarantee.token != token:
            raise ValueError(f"{token!r} is no guarantee token: the canonical form is {guarantee.token!r}")
        return guarantee

    def __str__(self) -> str:
        return self.token


_VARIANT = re.compile(r"[a-z0-9_]*")
_KINDS_OF_FIELDS = {
    "category": OpCategory, "element": ElementKind, "aux_element": ElementKind, "layout": LayoutSku,
    "epilogue": EpilogueKind, "arch": ArchSku, "backend": BackendKind,
}  # fmt: skip

_TOKEN_FIELDS = ("category", "op", "element", "aux_element", "layout", "epilogue", "arch", "backend")  # in this order


@total_ordering
@frozen(slots=False, order=False, cache_hash=True)
class KernelSku:
    """Stable identity of one kernel. No two registered kernels share one.

    Attributes:
        category, op: the op: a category, and the discriminant in that category's kind enum.
        element: what the activations (or the single input) are.
        aux_element: the weights' real kind, or `element` where there is no second operand.
        layout: row or column order of A, B and the output.
        epilogue: what is fused behind the product.
        arch: what the code is compiled for.
        backend: who runs it.
        precision_guarantee: what it promises; complete.
        variant: tells kernels apart that differ in nothing else; lower case letters, digits and `_`.

    SKUs sort as their tokens do.
    """

    category: OpCategory
    op: int = field(converter=int)
    element: ElementKind
    aux_element: ElementKind
    layout: LayoutSku
    epilogue: EpilogueKind
    arch: ArchSku
    backend: BackendKind
    precision_guarantee: PrecisionGuarantee
    variant: str = field(default="")

    def __attrs_post_init__(self) -> None:
        for name, kind in _KINDS_OF_FIELDS.items():  # enums are integers: one of another kind would compare equal
            if type(getattr(self, name)) is not kind:
                raise TypeError(f"{name} must be of {kind.__name__}, not {getattr(self, name)!r}")
        if self.op not in KIND_OF_CATEGORY[self.category]._value2member_map_:
            raise ValueError(f"op {self.op} is no {KIND_OF_CATEGORY[self.category].__name__}")
        if not _VARIANT.fullmatch(self.variant):
            raise ValueError(f"variant {self.variant!r} may hold only lower case letters, digits and '_'")
        if not self.precision_guarantee.complete:
            raise ValueError("a SKU's precision guarantee must set every field")

    @property
    def kind(self) -> IntEnum:
        """The op as a member of its category's kind enum."""
        return KIND_OF_CATEGORY[self.category](self.op)

    @cached_property
    def token(self) -> str:
        """Stable text form, fields separated by dots; `KernelSku.parse` reads it back."""
        members = [self.kind if name == "op" else getattr(self, name) for name in _TOKEN_FIELDS]
        names = [member.name.lower() for member in members]
        return ".".join([*names, self.precision_guarantee.token, *([self.variant] if self.variant else [])])

    @classmethod
    def parse(cls, token: str) -> KernelSku:
        """The SKU whose `token` this is; else ValueError, which names the field that does not parse; TypeError for what
        is no text."""
        _check_text(token)
        parts = token.split(".")
        if len(parts) not in (9, 10):
            raise ValueError(f"{token!r} is no SKU token: its fields must be 9 or 10, not {len(parts)}")
        try:
            category = _member(OpCategory, parts[0], "category")
            kinds: dict[str, type[IntEnum]] = {**_KINDS_OF_FIELDS, "op": KIND_OF_CATEGORY[category]}
            named = zip(_TOKEN_FIELDS, parts, strict=False)
            members: dict[str, Any] = {name: _member(kinds[name], text, name) for name, text in named}
            sku = cls(
                **members, precision_guarantee=PrecisionGuarantee.parse(parts[8]),
                variant=parts[9] if len(parts) == 10 else "",
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"{token!r} is no SKU token: {error}") from None
        if sku.token != token:
            raise ValueError(f"{token!r} is no SKU token: the canonical form is {sku.token!r}")
        return sku

    def __lt__(self, other: Any) -> bool:
        if not isinstance(other, KernelSku):
            return NotImplemented
        return self.token < other.token

    def __str__(self) -> str:
        return self.token
