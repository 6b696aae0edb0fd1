"""What `Int4AwqGemmPlan.select` and `bp.select` accept, against the contract written out a second time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem, NoKernel, Unsupported
from baracuda_py.ops.quantize.awq_gemm import OP
from baracuda_py.testing.strategies import UNBOUNDED, breakable, breaking, valid
from baracuda_py.vocab.code import PtxCode
from baracuda_py.vocab.enums import ArchSku, ElementKind, EpilogueKind

DEVICES = ("sm_80", "sm_90a", "host")
EXAMPLES = 2_000
HUGE = 1 << 19  # from here on a kernel may say that a dimension, or m * oc > 2**44, is too large for it

_numbers = st.one_of(
    st.integers(-3, 300),
    st.builds(lambda unit, count: unit * count, st.sampled_from([8, 32, 64, 96, 128]), st.integers(0, 40)),
    st.integers(-UNBOUNDED, UNBOUNDED),
)

#: Anything a descriptor can be made from, with values near those that the contract names.
anything = st.builds(
    bp.Int4AwqGemmDescriptor,
    m=_numbers,
    ic=_numbers,
    oc=_numbers,
    group_size=st.sampled_from([32, 64, 128, -1, 0, 1, 16, 96, 256, -2]) | st.integers(-200, 200),
    split_k_iters=st.none() | st.integers(-2, 40),
    weight_layout=st.sampled_from(bp.AwqWeightLayout),
    element=st.sampled_from([ElementKind.F16, ElementKind.BF16, *ElementKind]),
    epilogue=st.sampled_from(EpilogueKind),
    scales_element=st.sampled_from([None, None, ElementKind.F16, ElementKind.BF16, *ElementKind]),
)


def near(rules):
    """Descriptors on both sides of each rule: valid ones, ones that break just one, and anything."""
    broken = [breaking(OP, rule, rules) for rule in rules if breakable(OP, rule, rules)]
    return st.one_of(valid(OP, rules), valid(OP, rules, largest=UNBOUNDED), *broken, anything)


def contract_error(d) -> type[Exception] | None:
    """The class of the first rule of baracuda's contract that `d` breaks, in its order; then the scales' kind, ours."""
    if d.m < 0 or d.ic <= 0 or d.oc <= 0:
        return InvalidProblem
    if d.group_size != 64 and d.group_size != 128:
        return Unsupported
    if d.split_k_iters is not None and d.split_k_iters <= 0:
        return InvalidProblem
    if d.oc % 64 != 0:
        return InvalidProblem
    if d.ic % d.group_size != 0:
        return InvalidProblem
    if d.split_k_iters is not None and d.ic % (32 * d.split_k_iters) != 0:
        return InvalidProblem
    if d.element != ElementKind.F16 or d.weight_layout is bp.AwqWeightLayout.TILED:
        return Unsupported
    return None if d.scales_element in (None, ElementKind.F16, ElementKind.BF16) else Unsupported


def op_error(d) -> type[Exception] | None:
    """The class of the first of the op's own rules that `d` breaks, in the order of the design."""
    if d.m < 0 or d.ic <= 0 or d.oc <= 0:
        return InvalidProblem
    if d.group_size not in {32, 64, 128, -1}:
        return Unsupported
    if d.split_k_iters is not None and d.split_k_iters < 1:
        return InvalidProblem
    if d.oc % 8 or d.ic % 32 or (d.group_size != -1 and d.ic % d.group_size):
        return InvalidProblem
    if d.element not in {ElementKind.F16, ElementKind.BF16}:
        return Unsupported
    return None if d.scales_element in (None, ElementKind.F16, ElementKind.BF16) else Unsupported


def kernel_refusals(sku, d, device) -> set[str]:
    """Names of the rules for which the kernel `sku` must refuse a descriptor that the op allows; empty: it serves."""
    broken = set()
    if (sku.arch is ArchSku.HOST) != (device == "host") or (sku.arch is ArchSku.SM90A and device != "sm_90a"):
        broken.add("arch")
    if sku.element is not d.element:
        broken.add(f"element in {{{sku.element.name}}}")
    if sku.epilogue is not d.epilogue:
        broken.add(f"epilogue in {{{sku.epilogue.name}}}")
    for layout in bp.AwqWeightLayout:
        if sku.variant.endswith(layout.value) and d.weight_layout is not layout:
            broken.add(f"weight_layout in {{{layout.name}}}")
    if sku.variant.startswith(("bulk", "wide")) and d.ic % 64:
        broken.add("ic % 64")
    if sku.variant in ("bulk_hf_gemm", "bulk_oc_major") and d.oc % 32:
        broken.add("oc % 32")
    scaled = ("wide_tiled", "tile_tiled", "direct_tiled")  # they multiply weights by scales, in their own element
    if sku.variant in scaled and sku.element is ElementKind.F16 and d.scales_element is ElementKind.BF16:
        broken.add("scales_kind in {F16}")
    if sku.variant.startswith("small_m") and d.m > 8:
        broken.add("m <= 8")
    if sku.variant.startswith("splitk"):
        if d.group_size not in (64, 128):
            broken.add("group_size in {64, 128}")
        if d.oc % 64:
            broken.add("oc % 64")
        if d.split_k_iters is not None and d.ic % (32 * d.split_k_iters):
            broken.add("ic % (32 * split_k_iters)")
    return broken


def test_the_named_plan_accepts_exactly_what_the_contract_allows():
    seen: Counter[object] = Counter()

    @settings(max_examples=EXAMPLES)
    @given(near(OP.contract), st.sampled_from(DEVICES))
    def check(d, device):
        expected = contract_error(d)
        seen[expected] += 1
        if expected is None:
            if max(d.m, d.ic, d.oc) >= HUGE and bp.explain(d, device).chosen is None:
                return  # the next test says what the kernels' refusals are then
            plan = bp.Int4AwqGemmPlan.select(device, d)
            assert plan.descriptor == d
            assert plan.sku.element is d.element
            assert plan.sku.epilogue is d.epilogue
        else:
            with pytest.raises(expected) as refused:
                bp.Int4AwqGemmPlan.select(device, d)
            assert type(refused.value) is expected
            assert refused.value.rule
            assert str(refused.value).startswith("int4_awq_gemm: ")

    check()
    assert sum(seen.values()) >= EXAMPLES
    assert min(seen[outcome] for outcome in (None, InvalidProblem, Unsupported)) > 100, seen


@pytest.mark.parametrize("rule", OP.contract, ids=lambda rule: rule.name)
def test_breaking_one_rule_of_the_contract_is_refused_by_its_name(rule):
    @settings(max_examples=40)
    @given(breaking(OP, rule, OP.contract))
    def check(d):
        with pytest.raises(rule.error) as refused:
            bp.Int4AwqGemmPlan.select("sm_80", d)
        assert refused.value.rule == rule.name
        assert refused.value.value == getattr(d, rule.subject)

    check()


def test_select_raises_exactly_for_the_ops_own_rules_and_explain_names_every_refusal():
    seen: Counter[object] = Counter()

    @settings(max_examples=EXAMPLES)
    @given(near(OP.rules), st.sampled_from(DEVICES))
    def check(d, device):
        expected = op_error(d)
        seen[expected] += 1
        explanation = bp.explain(d, device)
        if expected is not None:
            with pytest.raises(expected) as refused:
                bp.select(d, device)
            assert type(refused.value) is expected
            assert type(explanation.error) is expected
            assert explanation.error.rule == refused.value.rule
            return
        serving, refused_names = set(), {}
        for candidate in explanation.candidates:
            sku = candidate.sku
            if sku.variant.startswith(("numpy", "small_m", "splitk", "tile", "direct", "stream", "bulk", "wide")):
                broken = kernel_refusals(sku, d, device)
                if max(d.m, d.ic, d.oc) >= HUGE and candidate.refusal is not None and "<=" in candidate.refusal.rule:
                    broken.add(candidate.refusal.rule)
                if candidate.refusal is None:
                    assert not broken, f"{sku} serves in spite of {broken}"
                else:
                    assert candidate.refusal.rule in broken, f"{sku}: {candidate.refusal.rule} is not in {broken}"
            if candidate.refusal is None:
                serving.add(sku)
            else:
                assert candidate.refusal.rule
                refused_names[sku] = candidate.refusal.rule
        if max(d.m, d.ic, d.oc) >= HUGE and not serving:
            with pytest.raises(NoKernel):
                bp.select(d, device)
            return
        assert serving, "every problem that the op's rules allow has a kernel"
        assert serving | refused_names.keys() == {kernel.sku for kernel in OP.kernels}
        assert bp.select(d, device).sku == explanation.chosen.sku
        assert explanation.chosen.sku in serving

    check()
    assert sum(seen.values()) >= EXAMPLES
    assert min(seen[outcome] for outcome in (None, InvalidProblem, Unsupported)) > 100, seen


@pytest.mark.parametrize("rule", OP.rules, ids=lambda rule: rule.name)
def test_breaking_one_of_the_ops_rules_is_refused_by_its_name_everywhere(rule):
    @settings(max_examples=40)
    @given(breaking(OP, rule), st.sampled_from(DEVICES))
    def check(d, device):
        for attempt in (
            lambda: bp.select(d, device),
            lambda: bp.default_registry().plan(OP.kernels[0].sku, d, device),
        ):
            with pytest.raises(rule.error) as refused:
                attempt()
            assert refused.value.rule == rule.name

    check()


@settings(max_examples=300)
@given(
    valid(OP) | valid(OP, (*OP.contract, *OP.rules)),
    st.sampled_from(("sm_80", "sm_90a", "sm_120")),
    st.sampled_from(bp.AwqWeightLayout),
)
def test_the_contract_kernels_workspace_follows_its_formula_and_is_0_without_rows(d, device, layout):
    d = d.with_weight_layout(layout)
    for candidate in bp.explain(d, device).candidates:
        if candidate.refusal is not None:
            continue
        plan = bp.default_registry().plan(candidate.sku, d, device)
        if d.m == 0:
            assert plan.workspace_size == 0
            assert plan.launches == ()
        elif candidate.sku.variant.startswith("splitk") and d.split_k_iters is not None:
            rows = (d.m + 127) // 128 * 128
            assert plan.workspace_size == d.split_k_iters * rows * d.oc * 4  # f32 partials: twice baracuda's f16
        elif candidate.sku.variant.startswith(("small_m", "stream")):
            assert plan.workspace_size == 0
        else:
            assert plan.workspace_size >= 0
            assert plan.launches


@settings(max_examples=200)
@given(valid(OP), st.integers(0, 1 << 24))
def test_a_workspace_limit_is_kept_or_refused(d, limit):
    preference = bp.PlanPreference(max_workspace_bytes=limit)
    explanation = bp.explain(d, "sm_80", preference)
    if explanation.chosen is None:
        with pytest.raises(NoKernel) as error:
            bp.select(d, "sm_80", preference)
        assert "max_workspace_bytes" in {refused.refusal.rule for refused in error.value.refusals}
    else:
        assert bp.select(d, "sm_80", preference).workspace_size <= limit


def test_the_named_plan_refuses_another_ops_descriptor():
    with pytest.raises(InvalidProblem, match="Int4AwqGemmDescriptor"):
        bp.Int4AwqGemmPlan.select("sm_80", bp.SoftmaxDescriptor((2, 3)))


@pytest.mark.parametrize("field", ["m", "ic", "oc", "group_size", "split_k_iters"])
def test_a_float_is_no_dimension(field):
    with pytest.raises(TypeError):
        bp.Int4AwqGemmDescriptor(**{"m": 1, "ic": 128, "oc": 64, field: 64.0})


PTX_KERNELS = [kernel for kernel in OP.kernels if isinstance(kernel.code, PtxCode)]


@pytest.mark.parametrize("kernel", PTX_KERNELS, ids=lambda kernel: str(kernel.sku))
@pytest.mark.parametrize(("size", "beyond"), [("ic", 16 * 128), ("oc", 128)])
def test_sizes_leave_room_for_what_kernels_count_beyond_them(kernel, size, beyond):
    # Sixteen warps along ic take blocks of 128 channels each, and the one behind the last is counted too; a tile of the
    # bulk kernel and of warpgroup_tiled is 128 output channels. wide_tiled rounds ic up to one block, and oc up to 64.
    variant = kernel.sku.variant
    if variant.startswith("wide"):
        beyond = {"ic": 128, "oc": 64}[size]
    if size == "oc" and not variant.startswith(("bulk", "warpgroup", "wide")):
        beyond = 1
    step = {"ic": 128, "oc": 8}[size]
    layout = next(layout for layout in bp.AwqWeightLayout if variant.endswith(layout.value))

    def serves(value):
        sizes = {"ic": 128, "oc": 64, size: value}
        desc = bp.Int4AwqGemmDescriptor(
            1, **sizes, split_k_iters=None, weight_layout=layout, element=kernel.sku.element,
            epilogue=kernel.sku.epilogue,
        )  # fmt: skip
        return all(rule.holds(desc) for rule in kernel.rules)

    largest = (1 << 31) - step
    while not serves(largest):
        largest -= step
        assert largest > (1 << 31) - 64 * 128, "the limit is further below than it must be"
    assert largest + beyond - 1 < 1 << 31
