"""Hypothesis strategies from rules alone: descriptors that hold every rule, or break exactly one.

Values are built to hold: a field is drawn after the fields that its rules mention, from the multiples and bounds that
these leave open, or from the members of its set. Where rules leave a later field nothing, the search goes back and
takes the next value. So no draw is thrown away, and that no descriptor breaks a given rule alone is found, not
guessed (`breakable`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from attrs import frozen
from hypothesis import strategies as st

from baracuda_py.registry import Kernel, Op
from baracuda_py.testing.fields import (
    FieldType,
    Progression,
    choices,
    components,
    field_types,
    partial_descriptor,
    progression,
    rule_fields,
)
from baracuda_py.vocab.rules import Between, F32Number, OneOf, Rule, one_of

__all__ = ["breakable", "breaking", "kernel_rules", "valid"]

SMALL = 160  # a drawn dimension exceeds its smallest value by this at most, so that a host run takes milliseconds
UNBOUNDED = 1 << 40  # for validation, where nothing is allocated
_SMALL_ELEMENTS = 4096  # product of the entries of a drawn tuple
_TRIED = 8  # values of an endless field tried after the drawn one
_POWERS = [sign << bits for bits in (0, 7, 15, 16, 31, 32, 40, 62) for sign in (1, -1)]
_EXTREMES = tuple(sorted({power + offset for power in _POWERS for offset in (-1, 0, 1)}))
_FLOATS = (1.0, 0.0, -1.0, 0.5, 2.0, -0.375)
_BEYOND_F32 = (1e-46, 1e39, -1e-46, -1e39)

_Pick = Callable[[int], int]  # n to an index below n


def kernel_rules(op: Op, kernel: Kernel) -> tuple[Rule, ...]:
    """All the rules a descriptor must hold to be served by `kernel`: the op's, what its SKU implies, and its own."""
    names = {field.name for field in field_types(op.descriptor)}
    facts = {name: getattr(kernel.sku, name) for name in ("element", "layout", "epilogue", "kind")}
    implied = tuple(one_of(name, (value,)) for name, value in facts.items() if name in names)
    return (*op.rules, *implied, *kernel.rules)


def valid(op: Op | type, rules: Iterable[Rule] | None = None, *, largest: int = SMALL) -> st.SearchStrategy[Any]:
    """Descriptors of `op` (or of a descriptor class) that hold `rules` (by default the op's).

    Args:
        op: an op, or with `rules` a descriptor class.
        rules: instead of the op's own.
        largest: how far a dimension may exceed the smallest one that is valid; `UNBOUNDED` for pure validation.
    """
    problem = _problem(op, rules, None, largest)
    return _descriptors(problem)


def breaking(
    op: Op | type, rule: Rule, rules: Iterable[Rule] | None = None, *, largest: int = SMALL
) -> st.SearchStrategy[Any]:
    """Descriptors that break `rule` and hold every other of `rules` (by default the op's).

    Raises ValueError when there are none; `breakable` says so beforehand.
    """
    problem = _problem(op, rules, rule, largest)
    if not _solvable(problem):
        raise ValueError(f"no descriptor breaks {rule.name!r} alone")
    return _descriptors(problem)


def breakable(op: Op | type, rule: Rule, rules: Iterable[Rule] | None = None) -> bool:
    """Whether some descriptor breaks `rule` and holds every other of `rules`."""
    return _solvable(_problem(op, rules, rule, SMALL))


@frozen
class _Problem:
    """A descriptor class, the rules to hold, at most one to break, and how far values may go."""

    descriptor: type
    held: tuple[Rule, ...]
    broken: Rule | None
    largest: int

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.held if self.broken is None else (self.broken, *self.held)


def _problem(op: Op | type, rules: Iterable[Rule] | None, broken: Rule | None, largest: int) -> _Problem:
    if isinstance(op, Op):
        descriptor, rules = op.descriptor, op.rules if rules is None else rules
    else:
        descriptor = op
        if rules is None:
            raise TypeError("a descriptor class needs rules")
    return _Problem(descriptor, tuple(rule for rule in rules if rule != broken), broken, largest)


@st.composite
def _descriptors(draw: st.DrawFn, problem: _Problem) -> Any:
    def pick(count: int) -> int:
        return int(draw(st.integers(0, count - 1))) if count > 1 else 0

    values = _solve(problem, pick)
    assert values is not None, f"no {problem.descriptor.__name__} holds its rules"
    return problem.descriptor(**values)


@cache
def _solvable(problem: _Problem) -> bool:
    return _solve(problem, lambda count: 0) is not None


def _solve(problem: _Problem, pick: _Pick) -> dict[str, Any] | None:
    values: dict[str, Any] = {}
    for fields in components(problem.descriptor, problem.rules):
        found = _search(problem, fields, {}, pick)
        if found is None:
            return None
        values |= found
    return values


def _search(
    problem: _Problem, fields: Sequence[FieldType], values: Mapping[str, Any], pick: _Pick
) -> dict[str, Any] | None:
    """`values` with the rest of `fields`, which make up one component, in the order in which rules need them."""
    if not fields:
        return dict(values)
    field, *rest = fields
    for value in _options(problem, field, values, pick):
        extended = {**values, field.name: value}
        if _consistent(problem, field.name, extended):
            found = _search(problem, rest, extended, pick)
            if found is not None:
                return found
    return None


def _consistent(problem: _Problem, new: str, values: Mapping[str, Any]) -> bool:
    """Whether every rule that looks at the field `new` and at nothing still open comes out as it should."""
    partial = partial_descriptor(problem.descriptor, values)
    for rule in problem.rules:
        seen = rule_fields(problem.descriptor, rule)
        if new in seen and seen <= values.keys() and rule.holds(partial) is (rule is problem.broken):
            return False
    return True


def _options(problem: _Problem, field: FieldType, values: Mapping[str, Any], pick: _Pick) -> Iterable[Any]:
    """Values to try, a drawn one first. Those that break a rule which must hold are left to `_consistent`."""
    known = values.keys() | {field.name}
    own = [r for r in problem.held if r.subject == field.name and rule_fields(problem.descriptor, r) <= known]
    partial = partial_descriptor(problem.descriptor, values)
    broken = problem.broken if problem.broken is not None and problem.broken.subject == field.name else None
    reach = problem.broken is not None and field.name in rule_fields(problem.descriptor, problem.broken)
    entries = _Entries(field.kind, own, broken, partial, problem.largest, reach and broken is None, pick)
    if field.lengths is not None:
        options: list[Any] = list(entries.tuples(field.lengths))
    else:
        options = entries.scalars()
    if field.optional and broken is None:
        options.insert(pick(2) if options else 0, None)
    return options


@frozen
class _Entries:
    """Values of one field, or of one entry of a tuple field."""

    kind: type
    rules: list[Rule]
    broken: Rule | None
    partial: Any
    largest: int
    extremes: bool
    pick: _Pick

    def scalars(self) -> list[Any]:
        """Values to try, a drawn one first."""
        allowed = choices(self.rules)
        if allowed is None and self.kind is int:
            return self._ints()
        if allowed is None:
            allowed = list(_FLOATS) if self.kind is float else [False, True] if self.kind is bool else list(self.kind)  # type: ignore[call-overload]
        if isinstance(self.broken, F32Number):
            allowed += list(_BEYOND_F32)
        allowed = [v for v in allowed if all(isinstance(r, OneOf) or r.allows(v, self.partial) for r in self.rules)]
        start = self.pick(len(allowed)) if allowed else 0
        return allowed[start:] + allowed[:start]

    def _ints(self) -> list[int]:
        spans = self._spans()
        spans = [span for span in spans if not span.empty]
        if not spans:
            return []
        first = self.pick(len(spans))
        drawn = self._drawn(spans[first])
        ladder = _EXTREMES if self.extremes else (drawn,)
        tried = [value for span in spans for value in span.some(_TRIED, ladder)]
        # A step may be what breaks a rule of divisibility or membership: the neighbours of the drawn value are next.
        near = [drawn + i * spans[first].step for i in (0, 1, -1, 2)]
        if self.extremes and tried:
            start = self.pick(len(tried))
            return tried[start:] + tried[:start]
        return list(dict.fromkeys([*(v for v in near if spans[first].contains(v)), *tried]))

    def _spans(self) -> list[Progression]:
        """Where a value may lie: what the held rules leave, on the wrong side of a broken bound."""
        left = progression(self.rules, self.partial)
        if left is None:
            return []
        if not isinstance(self.broken, Between):
            return [left]
        low = None if self.broken.low is None else self.broken.low(self.partial)
        high = None if self.broken.high is None else self.broken.high(self.partial)
        below = None if low is None else (low - 1 if left.high is None else min(left.high, low - 1))
        above = None if high is None else (high + 1 if left.low is None else max(left.low, high + 1))
        spans = [] if below is None else [Progression(left.low, below, left.step)]
        return spans + ([] if above is None else [Progression(above, left.high, left.step)])

    def _drawn(self, span: Progression) -> int:
        steps = max(self.largest // span.step, 3)
        first = span.first()
        if span.low is not None:
            count = steps if span.high is None else min(steps, (span.high - first) // span.step)
            return first + self.pick(count + 1) * span.step
        if span.high is not None:
            return first - self.pick(steps + 1) * span.step
        return (self.pick(2 * steps + 1) - steps) * span.step

    def tuples(self, lengths: Sequence[int]) -> list[tuple[Any, ...]]:
        """Tuples to try, a drawn one first; for a broken rule, one entry breaks it and the others hold it."""
        held = _Entries(
            self.kind, [*self.rules, self.broken] if self.broken else self.rules, None, self.partial, self.largest,
            False, self.pick,
        )  # fmt: skip
        start = self.pick(len(lengths))
        options: list[tuple[Any, ...]] = []
        for length in (*lengths[start:], *lengths[:start]):
            entries = held._entries(length)
            if entries is None or (self.broken is not None and not length):
                continue
            if self.broken is None:
                options.append(tuple(entries))
                if self.extremes and length:
                    options += [(value, *entries[1:]) for value in self.scalars()]
                continue
            place = self.pick(length)
            options += [(*entries[:place], value, *entries[place + 1 :]) for value in self.scalars()]
        return options

    def _entries(self, length: int) -> list[Any] | None:
        """Entries whose product stays small, unless nothing small is valid."""
        budget = _SMALL_ELEMENTS
        drawn = []
        for left in range(length, 0, -1):
            cap = max(1, int(budget ** (1 / left))) if self.kind is int and self.largest <= SMALL else self.largest
            options = _Entries(self.kind, self.rules, None, self.partial, min(cap * 2, self.largest), False, self.pick)
            found = options.scalars()
            if not found:
                return None
            drawn.append(found[0])
            budget = budget // max(1, abs(found[0])) if self.kind is int else budget
        return drawn
