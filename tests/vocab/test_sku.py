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
