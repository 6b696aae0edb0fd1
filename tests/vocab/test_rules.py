"""Rules and expressions: what holds, what is said when it does not, and what is malformed."""

from __future__ import annotations

import re

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.vocab.descriptors import descriptor, float_field, int_field
from baracuda_py.vocab.expr import Expr
from baracuda_py.vocab.rules import at_least, at_most, between, f32_number, multiple_of, non_negative, one_of, positive


@descriptor
class Problem:
    """A few numbers."""

    a: int = int_field()
    b: int | None = int_field(default=1)
    shape: tuple[int, ...] = int_field(default=())

    @property
    def twice(self) -> int:
        return 2 * self.a


integers = st.integers(-200, 200)
problems = st.builds(Problem, integers, st.none() | integers, st.lists(integers, max_size=4).map(tuple))


@given(problems, integers, integers)
def test_rules_hold_when_their_sentence_is_true(p, low, high):
    assert positive("a").holds(p) == (p.a >= 1)
    assert non_negative("a").holds(p) == (p.a >= 0)
    assert at_least("a", low).holds(p) == (p.a >= low)
    assert at_most("a", high).holds(p) == (p.a <= high)
    assert between("a", low, high).holds(p) == (low <= p.a <= high)
    assert one_of("a", (low, high)).holds(p) == (p.a in (low, high))
    assert non_negative("shape").holds(p) == all(entry >= 0 for entry in p.shape)
    assert multiple_of("twice", 4).holds(p) == (p.a % 2 == 0)
    assert at_most("a", "twice + 1").holds(p) == (p.a <= 2 * p.a + 1)


@descriptor
class Scaled:
    """A factor, which is f32 unless `wide` is above 0."""

    factor: float = float_field()
    wide: int = int_field(default=0)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 1))
def test_a_number_of_f32_stays_finite_and_does_not_vanish(value, wide):
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.float32(value)
    kept = bool(np.isfinite(rounded)) and (rounded != 0 or value == 0)
    assert f32_number("factor").holds(Scaled(value)) == kept
    assert f32_number("factor", unless="wide").holds(Scaled(value, wide)) == (kept or bool(wide))


@pytest.mark.parametrize("value", [1e39, -1e39, 1e-46, -1e-46, 3.4028236e38])
def test_what_f32_cannot_hold_is_said(value):
    rule = f32_number("factor", unless="wide", why="it is f32")
    with pytest.raises(Unsupported) as refused:
        rule.check(Scaled(value), "op")
    assert (refused.value.rule, refused.value.value) == ("factor in f32", value)
    assert f"factor = {value!r}" in str(refused.value)
    assert [*f32_number("factor", unless="nothing").problems(Scaled)], "of an attribute that is not there"


@given(problems)
def test_an_open_knob_holds_every_rule_and_opens_the_expressions_it_is_in(p):
    if p.b is None:
        for rule in (positive("b"), multiple_of("b", 7), one_of("b", ()), between("b", 5, 4)):
            assert rule.holds(p)
        assert multiple_of("a", "32 * b").holds(p)
        assert at_most("a", "b").holds(p)
    elif p.b == 0:
        assert not multiple_of("a", "b").holds(p)
    else:
        assert multiple_of("a", "b").holds(p) == (p.a % p.b == 0)


@given(problems)
def test_a_refusal_says_what_must_hold_what_came_and_why(p):
    for rule in (
        positive("a", why="zero of them is nothing", fix="Pass more"),
        multiple_of("a", "b", why="tiles are whole", fix="Pad"),
        one_of("a", (1, 2), why="there are two", fix="Take one"),
    ):
        if rule.holds(p):
            rule.check(p, "op")
            continue
        with pytest.raises(rule.error) as refused:
            rule.check(p, "op")
        error = refused.value
        assert (error.where, error.rule, error.must, error.why) == ("op", rule.name, rule.must, rule.why)
        assert error.value == p.a
        text = str(error)
        for part in ("op: ", rule.must, f"a = {p.a}", rule.why, rule.fix):
            assert part in text
        if rule.name == "a % b":
            assert f"b = {p.b}" in text


def test_names_are_short_and_errors_have_their_classes():
    rules = {
        "a >= 1": positive("a"), "a >= 0": non_negative("a"), "a >= b": at_least("a", "b"), "a <= 8": at_most("a", 8),
        "0 <= a <= b - 1": between("a", 0, "b - 1"), "a % 64": multiple_of("a", 64),
        "a % (32 * b)": multiple_of("a", "32 * b"), "a in {1, 2}": one_of("a", (1, 2)),
    }  # fmt: skip
    assert all(rule.name == name for name, rule in rules.items())
    assert {name for name, rule in rules.items() if rule.error is Unsupported} == {"a <= 8", "a in {1, 2}"}
    assert {rule.error for rule in rules.values()} == {Unsupported, InvalidProblem}
    assert one_of("a", (3,)).must == "a must be 3"
    assert positive("a").because("why", "fix") == positive("a", why="why", fix="fix")


def test_malformed_rules_are_named():
    for rule, text in (
        (positive("width"), "'width'"),
        (multiple_of("a", "width"), "'width'"),
        (between("a", "low", "high"), "'low'"),
        (one_of("a", ()), "empty"),
    ):
        problems_found = list(rule.problems(Problem))
        assert problems_found
        assert text in problems_found[0]
        assert rule.name in problems_found[0]
    assert not list(multiple_of("twice", "a + b").problems(Problem))


@given(problems, integers, st.integers(1, 50))
def test_expressions_are_arithmetic_over_attributes(p, n, d):
    p = attrs.evolve(p, b=d)
    for text, value in (
        (f"a + b * {d}", p.a + d * d), ("a // b", p.a // d), ("a % b", p.a % d), ("-a - 1", -p.a - 1),
        ("ceil_div(a, b)", -(-p.a // d)), ("min(a, b)", min(p.a, d)), ("max(a, b, 3)", max(p.a, d, 3)),
        ("twice", 2 * p.a), ("shape", p.shape), (str(abs(n)), abs(n)), (n, n),
    ):  # fmt: skip
        assert Expr(text)(p) == value


@pytest.mark.parametrize(
    "text",
    ["a.b", "a[0]", "a / b", "a ** b", "__import__('os')", "lambda: 1", "1.5", "'a'", "a if b else 1", "a <", "a == b",
     "open(a)", "[a]", "True", "a and b", "", "(lambda: a)()", "min.__self__(a)"],
)  # fmt: skip
def test_anything_else_is_no_expression(text):
    with pytest.raises(ValueError, match=r"not allowed|no expression|not an expression|may be called"):
        Expr(text)


def test_expressions_are_values():
    assert Expr("a + 1") == Expr("a + 1") != Expr("a+1")
    assert len({Expr("a"), Expr("a"), Expr("b")}) == 2
    assert repr(Expr("a + 1")) == "a + 1"
    assert set(Expr("a + min(b, a)").names) == {"a", "b"}
    assert list(Expr("a + width").unknown_names(Problem)) == ["width"]


@pytest.mark.parametrize(
    ("field", "wrong", "text"),
    [("a", None, "a must be an int, not None"), ("a", (1, 2), "a must be an int, not"),
     ("b", (1,), "b must be an int, or None, not"), ("shape", 3, "shape must be a tuple of ints, not 3"),
     ("shape", None, "shape must be a tuple of ints, not None")],
)  # fmt: skip
def test_a_field_of_ints_takes_what_its_annotation_says(field, wrong, text):
    given = {"a": 1, field: wrong}
    with pytest.raises(TypeError, match=re.escape(text)):
        Problem(**given)
    assert Problem(1, None, [2, 3]).shape == (2, 3)
