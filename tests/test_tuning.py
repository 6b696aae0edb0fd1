"""Tuning tables: what measured times say of estimates, where tables come from, and how well selection goes by them."""

from __future__ import annotations

import json
import math
from collections import defaultdict

import pytest
from attrs import evolve, fields_dict
from hypothesis import given
from hypothesis import strategies as st

import baracuda_py as bp
from baracuda_py import tuning
from baracuda_py.errors import InvalidProblem
from baracuda_py.ops import builtin_ops
from baracuda_py.plan import new_registry
from baracuda_py.vocab.descriptors import from_fields, to_fields
from baracuda_py.vocab.device import HOST, Device, dry_device
from baracuda_py.vocab.tuning import Calibration, Problem, TuningTable, kernel_label

D = bp.Int4AwqGemmDescriptor
SIZES = ("m", "ic", "oc")
H100 = Device("cuda", None, (9, 0), 132, name="NVIDIA H100 80GB HBM3")
TABLES = tuning._tables("")


@pytest.mark.parametrize("op", builtin_ops(), ids=lambda op: op.name)
def test_a_descriptor_comes_back_from_its_fields_as_json(op):
    for example in op.examples:
        fields = json.loads(json.dumps(to_fields(example)))
        assert from_fields(op.descriptor, fields) == example
        assert all(getattr(example, name) != fields_dict(op.descriptor)[name].default for name in fields)


def test_fields_that_there_are_not_are_errors():
    with pytest.raises(TypeError):
        from_fields(D, {"m": 1, "ic": 32, "oc": 8, "n": 3})
    with pytest.raises(KeyError):
        from_fields(D, {"m": 1, "ic": 32, "oc": 8, "element": "f12"})


descriptors = st.builds(
    D, st.integers(1, 5000), st.integers(1, 300).map(lambda n: 32 * n), st.integers(1, 2000).map(lambda n: 8 * n),
    element=st.sampled_from([bp.ElementKind.F16, bp.ElementKind.BF16]),
)  # fmt: skip
points = st.lists(st.tuples(descriptors, st.floats(0.1, 1e5)), min_size=1, max_size=12, unique_by=lambda one: one[0])


def model(descriptor):
    return 3 + descriptor.m * descriptor.ic * descriptor.oc / 1e6


@given(points, descriptors)
def test_measured_problems_are_estimated_as_measured_and_others_between_the_corrections(measured, other):
    calibration = Calibration.of(SIZES, model, measured)
    for descriptor, time_us in measured:
        assert model(descriptor) * calibration.factor(descriptor) == pytest.approx(time_us, rel=1e-9)
    corrections = [time_us / model(descriptor) for descriptor, time_us in measured]
    assert min(corrections) * (1 - 1e-9) <= calibration.factor(other) <= max(corrections) * (1 + 1e-9)


@given(points, descriptors, st.floats(0.01, 100))
def test_a_gpu_that_is_slower_by_a_factor_is_estimated_so(measured, other, factor):
    one = Calibration.of(SIZES, model, measured)
    two = Calibration.of(SIZES, model, [(descriptor, factor * time_us) for descriptor, time_us in measured])
    assert two.factor(other) == pytest.approx(factor * one.factor(other), rel=1e-6)


def test_nearer_problems_count_for_more_and_other_elements_a_little_less():
    near, far = D(16, 4096, 4096), D(1024, 4096, 4096)
    calibration = Calibration.of(SIZES, model, [(near, 2 * model(near)), (far, 8 * model(far))])
    assert calibration.factor(D(17, 4096, 4096)) < 2.1
    assert calibration.factor(D(128, 4096, 4096)) == pytest.approx(4, rel=1e-9)
    bf16 = near.with_element(bp.ElementKind.BF16)
    assert 2 < calibration.factor(bf16) < 2.01
    assert calibration.factor(near) == pytest.approx(2)


def test_nothing_measured_corrects_nothing():
    assert Calibration.of(SIZES, model, []) is None


# -- where tables come from ----------------------------------------------------------------------------------------


def table(gpu="Some GPU", capability=(9, 0), sm_count=100, **times):
    problem = Problem({"m": 1, "ic": 4096, "oc": 4096}, times or {"sm80.bespoke.small_m_oc_major": 7.5})
    return TuningTable(
        Device("cuda", None, capability, sm_count, name=gpu), {"int4_awq_gemm": (problem,)}, {"driver": "580"}
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(tuning.FOLDER, str(tmp_path))
    tuning._tables.cache_clear()
    yield tmp_path
    tuning._tables.cache_clear()


def test_a_table_comes_back_from_its_file():
    made = tuning.read_table(tuning.table_json(table()), "file")
    assert (made.device, made.device.name) == (table().device, "Some GPU")
    assert made.problems == table().problems
    assert made.origin == {"driver": "580"}


def test_the_users_tables_come_before_the_packages(folder):
    mine = table(gpu=H100.name, sm_count=132)
    (folder / "mine.json").write_text(tuning.table_json(mine))
    assert tuning.table_for(H100).problems == mine.problems


def test_a_gpu_takes_its_own_table_or_that_of_the_one_most_like_it(folder):
    for name, capability, sm_count in (("A", (8, 0), 108), ("B", (8, 0), 56), ("C", (12, 0), 188)):
        (folder / f"{name}.json").write_text(tuning.table_json(table(name, capability, sm_count)))
    find = tuning.table_for
    assert find(Device("cuda", 0, (8, 0), 60, name="B")).device.name == "B"
    assert find(Device("cuda", 0, (8, 0), 56, name="a")).device.name == "A"
    assert find(Device("cuda", 0, (8, 0), 60, name="Other")).device.name == "B"
    assert find(dry_device("sm_120")).device.name == "C"
    assert find(dry_device("sm_86")) is None
    assert find(HOST) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"gpu": "x", "capability": "90", "sm_count": 1, "ops": {}}',
             '{"gpu": "x", "capability": "sm_90", "sm_count": 1, "ops": {"a": [{"problem": {}}]}}'],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused_by_name(folder, text):
    (folder / "bad.json").write_text(text)
    with pytest.raises(InvalidProblem, match=r"bad\.json"):
        tuning.table_for(H100)


# -- what selection makes of them ----------------------------------------------------------------------------------


def registry_with(made):
    registry = new_registry(tables=lambda device: None if device.kind == "host" else made)
    default = bp.default_registry()
    for name in ("host", "cuda", "cublaslt"):
        registry.register_backend(default.backend(name))
    for op in builtin_ops():
        registry.register(op)
    return registry


def estimates(registry, descriptor):
    """Estimated time of each kernel of ours that serves, by its label."""
    found = registry.explain(descriptor, "sm_90")
    return {kernel_label(one.sku): one.cost_us for one in found.candidates if one.cost_us is not None}


def test_a_measured_time_is_the_estimate_and_decides():
    descriptor = D(1, 4096, 4096)
    fast = {"sm80.bespoke.small_m_oc_major": 50.0, "sm80.bespoke.tile_oc_major": 2.0}
    registry = registry_with(table(**fast, sm_count=132))
    found = estimates(registry, descriptor)
    assert {label: found[label] for label in fast} == pytest.approx(fast)
    assert registry.select(descriptor, "sm_90").sku.variant == "tile_oc_major"
    explained = registry.explain(descriptor, "sm_90")
    assert {one.sku.variant: one.calibrated for one in explained.candidates[:3]}["tile_oc_major"]
    assert "by measurements" in str(explained)
    assert estimates(registry, D(1, 4096, 4096, element=bp.ElementKind.BF16))["sm80.bespoke.tile_oc_major"] < 2.1
    assert bp.explain(descriptor, "host").candidates[0].calibrated is False


def test_an_empty_problem_and_an_op_without_sizes_are_not_corrected():
    registry = registry_with(table(sm_count=132))
    assert set(estimates(registry, D(0, 4096, 4096)).values()) == {0.0}
    softmax = bp.SoftmaxDescriptor((4, 8))
    assert not any(one.calibrated for one in registry.explain(softmax, "sm_90").candidates)


@pytest.mark.parametrize("found", TABLES, ids=lambda found: found.device.name)
def test_a_committed_table_knows_its_kernels_and_problems(found):
    for name, problems in found.problems.items():
        op = bp.default_registry().op(name)
        labels = {kernel_label(kernel.sku) for kernel in op.kernels}
        seen = set()
        for problem in problems:
            descriptor = from_fields(op.descriptor, problem.fields)
            op.check(descriptor)
            assert descriptor not in seen
            seen.add(descriptor)
            assert problem.times_us.keys() <= labels
            assert all(math.isfinite(us) and us > 0 for us in problem.times_us.values())
    assert found.origin["commit"]
    assert found.origin["samples"] >= 20


def slowdowns(found, problems, registry_of):
    """How many times slower than the fastest measured kernel the selected one is, by problem."""
    op = bp.default_registry().op("int4_awq_gemm")
    result = {}
    for problem in problems:
        descriptor = from_fields(op.descriptor, problem.fields)
        guessed = estimates(registry_of(problem), descriptor)
        chosen = min(problem.times_us, key=lambda label: guessed[label])
        result[descriptor] = problem.times_us[chosen] / min(problem.times_us.values())
    return result


@pytest.mark.parametrize("found", TABLES, ids=lambda found: found.device.name)
def test_selection_is_within_five_percent_of_the_best_on_the_table_and_on_shapes_held_out_of_it(found):
    problems = found.problems["int4_awq_gemm"]
    by_shape = defaultdict(list)
    for problem in problems:
        by_shape[problem.fields["ic"], problem.fields["oc"]].append(problem)
    whole = registry_with(found)
    on_table = slowdowns(found, problems, lambda _problem: whole)
    assert max(on_table.values()) == 1
    held_out = {}
    for shape, those in by_shape.items():
        others = tuple(one for key, some in by_shape.items() if key != shape for one in some)
        registry = registry_with(evolve(found, problems={"int4_awq_gemm": others}))
        held_out |= slowdowns(found, those, lambda _problem, registry=registry: registry)
    worst = max(held_out, key=held_out.__getitem__)
    assert held_out[worst] <= 1.05, f"{worst}: {held_out[worst]:.3f}"
