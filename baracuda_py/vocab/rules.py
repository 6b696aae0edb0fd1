"""Rules as values: one statement drives the check, the error's text, the docs table and the test strategies.

A rule speaks about one attribute of a descriptor, its `subject`. A subject that is None is an open knob, and every
rule holds for it; a subject that is a tuple is checked entry by entry.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from enum import Enum
from typing import Any

from attrs import evolve, field, frozen

from baracuda_py.errors import BaracudaError, InvalidProblem, Unsupported
from baracuda_py.vocab.expr import Expr, has_attribute

__all__ = [
    "Between",
    "F32Number",
    "MultipleOf",
    "OneOf",
    "Rule",
    "at_least",
    "at_most",
    "between",
    "f32_number",
    "multiple_of",
    "non_negative",
    "one_of",
    "positive",
]


def _show(value: object) -> str:
    return value.name if isinstance(value, Enum) else repr(value)


@frozen
class Rule:
    """Base: `subject` must satisfy something; `error` is raised when it does not.

    Attributes:
        subject: attribute of the descriptor.
        error: the class raised.
        why: reason, for the message and the docs.
        fix: what a caller can do.
    """

    subject: str
    error: type[BaracudaError] = field(kw_only=True)
    why: str = field(default="", kw_only=True)
    fix: str = field(default="", kw_only=True)


    @property
    def name(self) -> str:
        """Short, unique within an op, e.g. `"oc % 64"`; what an error carries as `rule`."""
        raise NotImplementedError

    @property
    def must(self) -> str:
        """What must hold, as a clause: `"oc must be a multiple of 64"`."""
        raise NotImplementedError

    def allows(self, value: Any, descriptor: object) -> bool:
        """Whether one entry of the subject satisfies the rule on `descriptor`."""
        raise NotImplementedError

    def expressions(self) -> tuple[Expr, ...]:
        """The expressions the rule evaluates."""
        return ()

    def holds(self, descriptor: object) -> bool:
        """Whether `descriptor` satisfies the rule."""
        value = getattr(descriptor, self.subject)
        if value is None:
            return True
        if isinstance(value, tuple):
            return all(self.allows(entry, descriptor) for entry in value)
        return self.allows(value, descriptor)

    def refusal(self, descriptor: object, where: str) -> BaracudaError:
        """The error that says that `descriptor` breaks this rule."""
        value = getattr(descriptor, self.subject)
        return self.error(
            where,
            self.must,
            rule=self.name,
            value=value,
            got=f"{self.subject} = {_show(value)}",
            why=self.why,
            fix=self.fix,
        )

    def check(self, descriptor: object, where: str) -> None:
        """Raise the rule's error unless it holds."""
        if not self.holds(descriptor):
            raise self.refusal(descriptor, where)

    def problems(self, descriptor_type: type) -> Iterator[str]:
        """What is malformed about the rule on descriptors of this type; empty when nothing is."""
        if not has_attribute(descriptor_type, self.subject):
            yield f"rule {self.name!r}: {descriptor_type.__name__} has no attribute {self.subject!r}"
        for expression in self.expressions():
            for unknown in expression.unknown_names(descriptor_type):
                yield f"rule {self.name!r}: {descriptor_type.__name__} has no attribute {unknown!r}"

    def because(self, why: str, fix: str = "") -> Rule:
        """The same rule with another reason."""
        return evolve(self, why=why, fix=fix)


@frozen
class Between(Rule):
    """`low <= subject <= high`; either bound may be None (open), an int or an expression."""

    low: Expr | None = field(kw_only=True, default=None)
    high: Expr | None = field(kw_only=True, default=None)

    @property
    def name(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low} <= {self.subject} <= {self.high}"
        if self.low is not None:
            return f"{self.subject} >= {self.low}"
        return f"{self.subject} <= {self.high}"

    @property
    def must(self) -> str:
        return f"{self.name} must hold"

    def allows(self, value: Any, descriptor: object) -> bool:
        low = None if self.low is None else self.low(descriptor)
        high = None if self.high is None else self.high(descriptor)
        return (low is None or value >= low) and (high is None or value <= high)

    def expressions(self) -> tuple[Expr, ...]:
        return tuple(bound for bound in (self.low, self.high) if bound is not None)


@frozen
class MultipleOf(Rule):
    """`subject % divisor == 0`; a divisor of 0 fails, an open one (None) holds."""

    divisor: Expr = field(kw_only=True)

    @property
    def name(self) -> str:
        compound = " " in self.divisor.text
        return f"{self.subject} % ({self.divisor})" if compound else f"{self.subject} % {self.divisor}"

    @property
    def must(self) -> str:
        return f"{self.subject} must be a multiple of {self.divisor}"

    def allows(self, value: Any, descriptor: object) -> bool:
        divisor = self.divisor(descriptor)
        return divisor is None or (divisor != 0 and value % divisor == 0)

    def refusal(self, descriptor: object, where: str) -> BaracudaError:
        error = super().refusal(descriptor, where)
        if self.divisor.names:
            got = f"{error._got_text}, {self.divisor} = {self.divisor(descriptor)}"
            error = self.error(
                where, self.must, rule=self.name, value=error.value, got=got, why=self.why, fix=self.fix
            )
        return error

    def expressions(self) -> tuple[Expr, ...]:
        return (self.divisor,)


@frozen
class OneOf(Rule):
    """`subject` is one of a finite set."""

    choices: tuple[Any, ...] = field(kw_only=True, converter=tuple)

    @property
    def name(self) -> str:
        return f"{self.subject} in {{{', '.join(map(_show, self.choices))}}}"

    @property
    def must(self) -> str:
        if len(self.choices) == 1:
            return f"{self.subject} must be {_show(self.choices[0])}"
        return f"{self.subject} must be one of {', '.join(map(_show, self.choices))}"

    def allows(self, value: Any, descriptor: object) -> bool:
        return value in self.choices

    def problems(self, descriptor_type: type) -> Iterator[str]:
        yield from super().problems(descriptor_type)
        if not self.choices:
            yield f"rule {self.name!r}: the set is empty, so that nothing satisfies it"


@frozen
class F32Number(Rule):
    """`subject`, a float, stays finite when it is rounded to f32, and is 0 only if it was; `unless` lets any pass.

    Between these bounds it is rounded silently. torch refuses what overflows too, and takes what vanishes for 0.
    """

    unless: Expr | None = field(kw_only=True, default=None)

    @property
    def name(self) -> str:
        return f"{self.subject} in f32"

    @property
    def must(self) -> str:
        return f"{self.subject} must neither overflow nor vanish when it is rounded to f32"

    def allows(self, value: Any, descriptor: object) -> bool:
        if self.unless is not None and self.unless(descriptor):
            return True
        try:
            rounded = struct.unpack("f", struct.pack("f", value))[0]
        except OverflowError:
            return False
        return math.isfinite(rounded) and bool(rounded) == bool(value)

    def expressions(self) -> tuple[Expr, ...]:
        return () if self.unless is None else (self.unless,)


def at_least(
    subject: str, low: int | str, *, error: type[BaracudaError] = InvalidProblem, why: str = "", fix: str = ""
) -> Rule:
    """`subject >= low`."""
    return Between(subject, low=Expr(low), error=error, why=why, fix=fix)


def at_most(
    subject: str, high: int | str, *, error: type[BaracudaError] = Unsupported, why: str = "", fix: str = ""
) -> Rule:
    """`subject <= high`."""
    return Between(subject, high=Expr(high), error=error, why=why, fix=fix)


def between(
    subject: str,
    low: int | str,
    high: int | str,
    *,
    error: type[BaracudaError] = InvalidProblem,
    why: str = "",
    fix: str = "",
) -> Rule:
    """`low <= subject <= high`."""
    return Between(subject, low=Expr(low), high=Expr(high), error=error, why=why, fix=fix)


def non_negative(subject: str, *, why: str = "", fix: str = "") -> Rule:
    """`subject >= 0` (InvalidProblem)."""
    return at_least(subject, 0, why=why, fix=fix)


def positive(subject: str, *, why: str = "", fix: str = "") -> Rule:
    """`subject >= 1` (InvalidProblem)."""
    return at_least(subject, 1, why=why, fix=fix)


def multiple_of(
    subject: str,
    divisor: int | str,
    *,
    error: type[BaracudaError] = InvalidProblem,
    why: str = "",
    fix: str = "",
) -> Rule:
    """`subject % divisor == 0`; the divisor may be an expression over the descriptor."""
    return MultipleOf(subject, divisor=Expr(divisor), error=error, why=why, fix=fix)


def one_of(
    subject: str,
    choices: Iterable[Any],
    *,
    error: type[BaracudaError] = Unsupported,
    why: str = "",
    fix: str = "",
) -> Rule:
    """`subject` is one of `choices` (Unsupported unless said otherwise)."""
    return OneOf(subject, choices=tuple(choices), error=error, why=why, fix=fix)


def f32_number(
    subject: str,
    *,
    unless: str | None = None,
    error: type[BaracudaError] = Unsupported,
    why: str = "",
    fix: str = "",
) -> Rule:
    """`subject` is a float that f32 can hold, roughly; `unless`: a flag of the descriptor that lets any pass."""
    return F32Number(subject, unless=None if unless is None else Expr(unless), error=error, why=why, fix=fix)
