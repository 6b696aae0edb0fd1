"""What may stand in each field of a descriptor: its type, and the values that a set of rules leaves open."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
from attrs import frozen

from baracuda_py.vocab.rules import Between, MultipleOf, OneOf, Rule

__all__ = [
    "FieldType",
    "Progression",
    "choices",
    "components",
    "depends_on",
    "field_types",
    "partial_descriptor",
    "progression",
    "rule_fields",
]


@frozen
class FieldType:
    """One field of a descriptor.

    Attributes:
        name: of the field.
        kind: `int`, `float`, `bool` or an enum; for tuples, of one entry.
        optional: whether None may stand there.
        lengths: of a tuple that may be as long as these; None for a scalar.
    """

    name: str
    kind: type
    optional: bool
    lengths: tuple[int, ...] | None


_LONGEST = 12  # entries tried in a tuple of any length


@cache
def field_types(descriptor: type) -> tuple[FieldType, ...]:
    """The fields that a descriptor is made from, in order; TypeError for a type that no values are known for."""
    hints = get_type_hints(descriptor)
    return tuple(_field_type(a.name, hints[a.name]) for a in attrs.fields(descriptor) if a.init)


def _field_type(name: str, hint: Any) -> FieldType:
    optional, lengths = False, None
    if get_origin(hint) in (Union, UnionType):
        members = [member for member in get_args(hint) if member is not NoneType]
        optional = len(members) < len(get_args(hint))
        hint = next((member for member in members if get_origin(member) is tuple), members[0])
    if get_origin(hint) is tuple:
        entries = get_args(hint)
        lengths = tuple(range(_LONGEST + 1)) if entries[-1] is Ellipsis else (len(entries),)
        hint = entries[0]
    if not (hint in (int, float, bool) or (isinstance(hint, type) and issubclass(hint, Enum))):
        raise TypeError(f"{name}: no values are known for a field of type {hint}")
    return FieldType(name, hint, optional, lengths)


def depends_on(descriptor: type, name: str) -> frozenset[str]:
    """The fields that the attribute `name` is computed from: itself, or what its property reads."""
    fields = {field.name for field in field_types(descriptor)}
    found: set[str] = set()
    pending, seen = [name], set()
    while pending:
        current = pending.pop()
        if current in fields:
            found.add(current)
        elif current not in seen:
            seen.add(current)
            getter = getattr(getattr(descriptor, current, None), "fget", None)
            pending += getter.__code__.co_names if getter is not None else ()
    return frozenset(found)


@cache
def rule_fields(descriptor: type, rule: Rule) -> frozenset[str]:
    """Every field that a rule looks at."""
    names = {rule.subject, *(name for expression in rule.expressions() for name in expression.names)}
    return frozenset().union(*(depends_on(descriptor, name) for name in names))


def components(descriptor: type, rules: Iterable[Rule]) -> tuple[tuple[FieldType, ...], ...]:
    """The fields in groups that no rule connects; in each, a field comes after those that its rules mention."""
    rules = tuple(rules)
    groups: list[set[str]] = []
    links = [{field.name} for field in field_types(descriptor)]
    for linked in [*links, *(set(rule_fields(descriptor, rule)) for rule in rules)]:
        touching = [group for group in groups if group & linked]
        groups = [group for group in groups if group not in touching] + [linked.union(*touching)]
    before = {
        field.name: frozenset().union(
            *(rule_fields(descriptor, rule) - {field.name} for rule in rules if rule.subject == field.name)
        )
        for field in field_types(descriptor)
    }
    return tuple(tuple(_sorted([f for f in field_types(descriptor) if f.name in group], before)) for group in groups)


def _sorted(fields: list[FieldType], before: Mapping[str, frozenset[str]]) -> Iterator[FieldType]:
    pending = list(fields)
    while pending:
        names = {field.name for field in pending}
        free = [field for field in pending if not before[field.name] & names]
        # Rules that mention each other have no such order: any will do, the search checks a rule once it can.
        chosen = (free or pending)[0]
        pending.remove(chosen)
        yield chosen


def partial_descriptor(descriptor: type, values: Mapping[str, Any]) -> Any:
    """A descriptor with only some of its fields, enough to evaluate expressions over those."""
    made: Any = object.__new__(descriptor)
    made.__dict__.update(values)
    return made


@frozen
class Progression:
    """The multiples of `step` from `low` to `high`, bounds included; a bound may be open."""

    low: int | None
    high: int | None
    step: int

    def first(self) -> int:
        """The member that the others are counted from: the smallest, else the largest, else 0."""
        if self.low is not None:
            return -(-self.low // self.step) * self.step
        return 0 if self.high is None else self.high // self.step * self.step

    def nearest(self, value: int) -> int:
        """The member closest to `value` from below, or the first."""
        value = value // self.step * self.step
        if self.low is not None and value < self.low:
            value = self.first()
        if self.high is not None and value > self.high:
            value = self.high // self.step * self.step
        return value

    @property
    def empty(self) -> bool:
        """Whether no multiple lies between the bounds."""
        return self.low is not None and self.high is not None and self.first() > self.high

    def some(self, count: int, ladder: Sequence[int] = ()) -> list[int]:
        """Up to `count` members next to the bounds or around 0, then those near the values of `ladder`."""
        if self.empty:
            return []
        first, step = self.first(), self.step
        if self.low is not None:
            values = [first + i * step for i in range(count)]
        elif self.high is not None:
            values = [first - i * step for i in range(count)]
        else:
            values = [sign * i * step for i in range(count // 2 + 1) for sign in (1, -1)]
        values += [self.nearest(value) for value in ladder]
        return [v for v in dict.fromkeys(values) if self.contains(v)]

    def contains(self, value: int) -> bool:
        """Whether `value` is a member."""
        return (
            value % self.step == 0
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
        )


def progression(rules: Iterable[Rule], partial: Any) -> Progression | None:
    """What Between and MultipleOf rules of one subject leave open; None when that is nothing."""
    low: int | None = None
    high: int | None = None
    step = 1
    for rule in rules:
        if isinstance(rule, Between):
            least = None if rule.low is None else rule.low(partial)
            most = None if rule.high is None else rule.high(partial)
            low = least if low is None else low if least is None else max(low, least)
            high = most if high is None else high if most is None else min(high, most)
        elif isinstance(rule, MultipleOf):
            divisor = rule.divisor(partial)
            if divisor == 0:
                return None
            step = math.lcm(step, divisor or 1)
    made = Progression(low, high, step)
    return None if made.empty else made


def choices(rules: Iterable[Rule]) -> list[Any] | None:
    """What OneOf rules of one subject leave; None when there are none."""
    left: list[Any] | None = None
    for rule in rules:
        if isinstance(rule, OneOf):
            left = [value for value in (rule.choices if left is None else left) if value in rule.choices]
    return left
