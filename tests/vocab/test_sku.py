"""SKUs and guarantees: tokens parse back and sort, malformed ones are refused, and promises cover what they cover."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baracuda_py as bp
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
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

maths, elements = st.sampled_from(MathPrecision), st.sampled_from(ElementKind)
complete = st.builds(PrecisionGuarantee, maths, elements, elements, st.booleans(), st.booleans(), st.booleans())
maybe = st.none() | st.booleans()
partial = st.builds(
    PrecisionGuarantee, st.none() | maths, st.none() | elements, st.none() | elements, maybe, maybe, maybe
)


@st.composite
def skus(draw):
    category = draw(st.sampled_from([c for c in OpCategory if len(KIND_OF_CATEGORY[c])]))
    return KernelSku(
        category, draw(st.sampled_from(list(KIND_OF_CATEGORY[category]))), draw(elements), draw(elements),
        draw(st.sampled_from(LayoutSku)), draw(st.sampled_from(EpilogueKind)), draw(st.sampled_from(ArchSku)),
        draw(st.sampled_from(BackendKind)), draw(complete), draw(st.from_regex(r"[a-z0-9_]{0,8}", fullmatch=True)),
    )  # fmt: skip


@given(skus())
def test_a_token_parses_back_to_an_equal_sku(sku):
    again = KernelSku.parse(sku.token)
    assert again == sku
    assert hash(again) == hash(sku)
    assert again.token == str(sku) == sku.token
    assert again.kind is sku.kind


@given(skus(), skus())
def test_skus_sort_as_their_tokens_and_equal_tokens_mean_equal_skus(one, two):
    assert (one < two) == (one.token < two.token)
    assert (one == two) == (one.token == two.token)
    assert sorted([two, one]) == sorted([one, two])


@given(skus(), st.data())
def test_a_changed_token_is_another_sku_or_none(sku, data):
    token = sku.token
    place = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz0123456789._-XSDB "))
    changed = token[:place] + letter + token[place + 1 :]
    try:
        parsed = KernelSku.parse(changed)
    except ValueError:
        assert changed != token
        return
    assert parsed.token == changed
    assert (parsed == sku) == (changed == token)


@pytest.mark.parametrize("token", ["", "a.b", "gemm", ".".join("x" * 9), "softmax.softmax.f32.f32.rrr.identity.sm80"])
def test_what_is_no_token_is_refused(token):
    with pytest.raises(ValueError, match=r"token|names no"):
        KernelSku.parse(token)


GOOD = "gemm.dense.f16.f16.rrr.identity.sm80.cublas.f16-f32-f32-sd"


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [
        (0, "gem", "category 'gem' names no OpCategory"), (1, "softmax", "op 'softmax' names no GemmKind"),
        (2, "f17", "element 'f17' names no ElementKind"), (3, "", "aux_element '' names no ElementKind"),
        (4, "abc", "layout 'abc' names no LayoutSku"), (5, "relu", "epilogue 'relu' names no EpilogueKind"),
        (6, "sm_80", "arch 'sm_80' names no ArchSku"), (7, "x", "backend 'x' names no BackendKind"),
        (8, "f16-f32-f32", "its parts must be 4, not 3"), (8, "any-f32-f32-sd", "guarantee must set every field"),
        (8, "f16-f32-f99-sd", "partial_sums 'f99' names no ElementKind"), (0, "GEMM", "the canonical form is 'gemm."),
        (8, "f16-f32-f32-sd.", "the canonical form is"), (8, "f16-f32-f32-sd.A", "variant 'A'"),
        (8, "f16-f32-f32-sd.a.b", "fields must be 9 or 10, not 11"),
    ],
)  # fmt: skip
def test_a_token_with_one_part_wrong_is_refused_by_that_part(place, text, said):
    parts = GOOD.split(".")
    assert KernelSku.parse(GOOD).token == GOOD
    parts[place] = text
    token = ".".join(parts)
    with pytest.raises(ValueError) as refused:
        KernelSku.parse(token)
    assert str(refused.value).startswith(f"{token!r} is no SKU token: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("what", [None, 3, b"f16-f32-f32-sd", ArchSku.SM80], ids=repr)
def test_what_is_no_text_is_no_token(what):
    for kind in (KernelSku, PrecisionGuarantee):
        with pytest.raises(TypeError, match="a token must be text, not"):
            kind.parse(what)


def test_every_registered_sku_has_a_token_of_its_own_that_parses_back():
    registered = bp.default_registry().skus()
    assert list(registered) == sorted(registered)
    assert len({sku.token for sku in registered}) == len(registered)
    for sku in registered:
        assert KernelSku.parse(sku.token) == sku
        assert sku.precision_guarantee.complete


@given(skus())
def test_a_sku_needs_a_kind_of_its_category_a_clean_variant_and_a_whole_guarantee(sku):
    for wrong in (
        {"op": 9999},
        {"variant": "Upper"},
        {"variant": "a.b"},
        {"precision_guarantee": PrecisionGuarantee()},
    ):
        with pytest.raises(ValueError, match=r"is no|variant|guarantee"):
            attrs.evolve(sku, **wrong)


@given(partial)
def test_a_guarantee_token_parses_back(guarantee):
    assert PrecisionGuarantee.parse(guarantee.token) == guarantee


@given(partial)
def test_a_guarantee_is_complete_when_every_field_is_set(guarantee):
    assert guarantee.complete == (None not in attrs.astuple(guarantee))


@given(complete, partial)
def test_a_promise_covers_a_requirement_field_by_field(promise, required):
    unmet = {
        name
        for name, wanted in attrs.asdict(required, recurse=False).items()
        if wanted is not None and wanted is not False and getattr(promise, name) != wanted
    }
    assert set(promise.unmet(required)) == unmet
    assert promise.satisfies(required) == (not unmet)


@given(complete)
def test_a_promise_covers_itself_and_the_empty_requirement(promise):
    assert promise.satisfies(promise)
    assert promise.satisfies(PrecisionGuarantee())


@pytest.mark.parametrize("token", ["f32", "f32-f32-f32-x", "f32-f32-f32-ds", "f99-f32-f32-0", "f32-f32-f32-dd"])
def test_what_is_no_guarantee_is_refused(token):
    with pytest.raises(ValueError, match=r"token|names no"):
        PrecisionGuarantee.parse(token)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("f32", "its parts must be 4, not 1"), ("f32-f32-f32-sx", "'x' is no flag"),
        ("f99-f32-f32-0", "math_precision 'f99' names no MathPrecision"),
        ("f32-tf32-f32-0", "accumulator 'tf32' names no ElementKind"),
        ("f32-f32--0", "partial_sums '' names no ElementKind"), ("f32-f32-f32-ds", "the canonical form is"),
        ("f32-f32-f32-", "the canonical form is 'f32-f32-f32-0'"), ("ANY-f32-f32-0", "'ANY' names no MathPrecision"),
    ],
)  # fmt: skip
def test_what_is_no_guarantee_is_told_by_the_part_that_is_wrong(token, said):
    with pytest.raises(ValueError) as refused:
        PrecisionGuarantee.parse(token)
    assert str(refused.value).startswith(f"{token!r} is no guarantee token: ")
    assert said in str(refused.value)


def test_a_preference_takes_a_token_for_a_sku_and_refuses_the_wrong_types():
    sku = bp.default_registry().skus()[0]
    assert bp.PlanPreference(sku=sku.token) == bp.PlanPreference(sku=sku)
    assert hash(bp.PlanPreference(sku=sku.token)) == hash(bp.PlanPreference(sku=sku))
    for wrong in ({"prefer_backend": "host"}, {"max_workspace_bytes": 1.5}, {"require": "f32"}):
        with pytest.raises(TypeError):
            bp.PlanPreference(**wrong)
    with pytest.raises(ValueError, match="max_workspace_bytes"):
        bp.PlanPreference(max_workspace_bytes=-1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"math_precision": ElementKind.F32}, {"accumulator": MathPrecision.F32},
        {"partial_sums": 2}, {"deterministic": 1},
    ],
)
def test_a_guarantee_takes_members_of_its_own_enums_only(wrong):
    with pytest.raises(TypeError):
        PrecisionGuarantee(**wrong)


@pytest.mark.parametrize("name", ["category", "element", "aux_element", "layout", "epilogue", "arch", "backend"])
def test_a_field_of_another_enum_is_refused(name):
    sku = bp.default_registry().skus()[0]
    other = next(kind for kind in (ElementKind, LayoutSku) if kind is not type(getattr(sku, name)))
    with pytest.raises(TypeError, match=f"{name} must be of"):
        attrs.evolve(sku, **{name: other(0)})
