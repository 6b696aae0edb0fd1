"""Descriptors from rules: valid ones hold every rule, breaking ones break one alone, and what is impossible is said."""

from __future__ import annotations

import enum

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_py as bp
from baracuda_py.testing.fields import Progression, depends_on, field_types
from baracuda_py.testing.strategies import UNBOUNDED, breakable, breaking, kernel_rules, valid
from baracuda_py.vocab.descriptors import descriptor, enum_field, int_field
from baracuda_py.vocab.rules import at_least, at_most, between, multiple_of, non_negative, one_of, positive

OPS = bp.default_registry().ops()


def _says_nothing(op, rule):
    """Whether a rule allows every member of its enum: the only rules of an op that cannot be broken."""
    kinds = {field.name: field.kind for field in field_types(op.descriptor)}
    kind = kinds.get(rule.subject, int)
    return issubclass(kind, enum.Enum) and set(getattr(rule, "choices", ())) == set(kind)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_valid_descriptors_hold_every_rule(op):
    @settings(max_examples=100)
    @given(valid(op) | valid(op, largest=UNBOUNDED))
    def check(made):
        op.check(made)
        assert type(made) is op.descriptor

    check()


@pytest.mark.parametrize(
    ("op", "rule"), [(op, rule) for op in OPS for rule in op.rules], ids=lambda value: value.name
)  # fmt: skip
def test_breaking_descriptors_break_one_rule_alone(op, rule):
    assert breakable(op, rule) != _says_nothing(op, rule)
    if not breakable(op, rule):
        return

    @settings(max_examples=30)
    @given(breaking(op, rule) | breaking(op, rule, largest=UNBOUNDED))
    def check(made):
        assert [r.name for r in op.rules if not r.holds(made)] == [rule.name]
        with pytest.raises(rule.error) as refused:
            op.check(made)
        assert refused.value.rule == rule.name

    check()


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_rule_of_every_kernel_can_be_broken_alone(op):
    tried = set()
    for kernel in op.kernels:
        rules = kernel_rules(op, kernel)
        for rule in rules[len(op.rules) :]:
            if rule in tried or rule in op.rules:
                continue
            tried.add(rule)
            # One value of a set of one cannot be left without leaving what the op itself allows.
            choices = {value for r in op.rules if r.subject == rule.subject for value in getattr(r, "choices", ())}
            if len(choices) == 1:
                continue
            _break_alone(op, rule, rules)


def _break_alone(op, rule, rules):
    @settings(max_examples=3)
    @given(breaking(op, rule, rules))
    def check(made):
        assert [r for r in rules if not r.holds(made)] == [rule]

    check()


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    BLUE = 3


@descriptor
class Awkward:
    """Fields of every type, some that depend on each other."""

    shape: tuple[int, ...] = int_field()
    axis: int = int_field()
    block: int | None = int_field(default=None)
    factor: float = attrs.field(default=1.0)
    flag: bool = attrs.field(default=False)
    colour: Colour | None = enum_field(Colour, default=None)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> int:
        product = 1
        for extent in self.shape:
            product *= extent
        return product


AWKWARD = (
    between("rank", 1, 4),
    non_negative("shape"),
    multiple_of("shape", 2),
    at_most("elements", 1 << 31),
    between("axis", "-rank", "rank - 1"),
    positive("block"),
    multiple_of("block", "8 * rank"),
    one_of("flag", (False,)),
    one_of("colour", (Colour.RED, Colour.GREEN)),
    one_of("factor", (0.5, 2.0)),
)


@given(valid(Awkward, AWKWARD))
def test_properties_tuples_floats_and_open_knobs_are_drawn_to_hold(made):
    assert all(rule.holds(made) for rule in AWKWARD)


@pytest.mark.parametrize("rule", AWKWARD, ids=lambda rule: rule.name)
def test_properties_tuples_and_enums_can_be_broken_alone(rule):
    @settings(max_examples=30)
    @given(breaking(Awkward, rule, AWKWARD))
    def check(made):
        assert [r.name for r in AWKWARD if not r.holds(made)] == [rule.name]

    check()


@pytest.mark.parametrize(
    ("rules", "rule"),
    [
        ((multiple_of("axis", 8), multiple_of("axis", 4)), multiple_of("axis", 4)),
        ((at_least("axis", 5), at_least("axis", 3)), at_least("axis", 3)),
        ((one_of("axis", (2, 4)), multiple_of("axis", 2)), multiple_of("axis", 2)),
        ((one_of("axis", (2, 4)), at_most("axis", 4)), at_most("axis", 4)),
        ((one_of("flag", (True, False)),), one_of("flag", (True, False))),
        ((multiple_of("axis", 1),), multiple_of("axis", 1)),
    ],
    ids=["multiple", "bound", "members", "largest member", "whole domain", "divisor 1"],
)
def test_a_rule_that_others_imply_cannot_be_broken_alone(rules, rule):
    assert not breakable(Awkward, rule, rules)
    with pytest.raises(ValueError, match="breaks"):
        breaking(Awkward, rule, rules)


def test_valid_descriptors_are_not_all_alike():
    op = bp.default_registry().op("int4_awq_gemm")
    seen = []

    @settings(max_examples=200, derandomize=True, database=None)
    @given(valid(op))
    def collect(made):
        seen.append(made)

    collect()
    for field in attrs.fields(op.descriptor):
        assert len({getattr(made, field.name) for made in seen}) > 1, field.name
    assert len(set(seen)) > 50
    assert any(made.m == 0 for made in seen)
    assert any(made.ic % 256 for made in seen)


def test_fields_are_read_off_their_types():
    kinds = {field.name: (field.kind, field.optional, field.lengths is not None) for field in field_types(Awkward)}
    assert kinds == {
        "shape": (int, False, True), "axis": (int, False, False), "block": (int, True, False),
        "factor": (float, False, False), "flag": (bool, False, False), "colour": (Colour, True, False),
    }  # fmt: skip
    assert depends_on(Awkward, "rank") == {"shape"}
    assert depends_on(Awkward, "axis") == {"axis"}


@given(st.none() | st.integers(-50, 50), st.none() | st.integers(-50, 50), st.integers(1, 12), st.integers(-99, 99))
def test_a_progression_is_the_multiples_between_its_bounds(low, high, step, value):
    span = Progression(low, high, step)
    members = [
        v for v in range(-120, 121) if v % step == 0 and (low is None or v >= low) and (high is None or v <= high)
    ]
    assert span.empty == (not members)
    assert span.contains(value) == (value in members)
    assert all(span.contains(v) for v in span.some(5, (value,)))
    assert bool(span.some(5)) == bool(members)
