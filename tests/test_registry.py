"""The registry against a model, from several threads, and with plug-ins that work and that do not."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import baracuda_py as bp
from baracuda_py import registry as registry_module
from baracuda_py.backends.host import HostBackend
from baracuda_py.backends.null import NullBackend
from baracuda_py.errors import InvalidProblem, NoKernel, RegistrationError, Unsupported
from baracuda_py.plan import new_registry, plan_class
from baracuda_py.registry import Op
from baracuda_py.testing.toys import ToyKernel, toy_op
from baracuda_py.vocab.code import HostCode, Launch, Pointer, PtxCode, Stride, TensorMap
from baracuda_py.vocab.device import HOST, Device, dry_device
from baracuda_py.vocab.enums import ArchSku, BackendKind, ElementKind, MathPrecision, OpCategory, UnaryKind
from baracuda_py.vocab.rules import multiple_of, one_of
from baracuda_py.vocab.sku import PrecisionGuarantee

ELEMENTS = (ElementKind.F16, ElementKind.F32, ElementKind.F64)


def host_registry(*ops, plugins=False):
    registry = new_registry(plugins=plugins)
    registry.register_backend(HostBackend())
    for op in ops:
        registry.register(op)
    return registry


class RegistryMachine(RuleBasedStateMachine):
    """Registers ops, good and bad, and compares every look-up with a plain dictionary."""

    @initialize()
    def start(self):
        self.registry = host_registry()
        self.model = {}
        self.made = 0

    def _kernels(self, data):
        rows = st.none() | st.integers(0, 6)
        shapes = data.draw(
            st.lists(st.tuples(st.sampled_from(ELEMENTS), rows, st.integers(1, 5)), min_size=1, max_size=4)
        )
        kernels = []
        for element, most_rows, cost in shapes:
            self.made += 1
            kernels.append(ToyKernel(f"v{self.made}", element, None if not kernels else most_rows, float(cost)))
        return kernels

    @rule(data=st.data())
    def register(self, data):
        kernels = self._kernels(data)
        op = toy_op(f"op{self.made}", kernels)
        assert self.registry.register(op) is op
        self.model[op.name] = (op, dict(zip((k.sku for k in op.kernels), kernels, strict=True)))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def a_taken_name_or_sku_is_refused_and_nothing_is_added(self, data):
        name = data.draw(st.sampled_from(sorted(self.model)))
        _, kernels = self.model[name]
        fresh = ToyKernel(f"fresh{self.made}")
        for op, what in (
            (toy_op(name, [fresh]), "duplicate op"),
            (toy_op("other", [fresh, *kernels.values()]), "duplicate SKU"),
            (toy_op("other", [fresh, fresh]), "duplicate SKU"),
        ):
            with pytest.raises(RegistrationError) as refused:
                self.registry.register(op)
            assert refused.value.rule == what
            assert op.name in str(refused.value)

    @rule()
    def a_malformed_op_is_refused_by_name_and_nothing_is_added(self):
        good = ToyKernel("malformed")
        for op, text in (
            (toy_op("malformed", [good], rules=[multiple_of("width", 2)]), "width"),
            (toy_op("malformed", [good], rules=[multiple_of("rows", "depth")]), "depth"),
            (toy_op("malformed", [good], rules=[one_of("rows", ())]), "set is empty"),
            (toy_op("malformed", [good], x_shape=("rows", "height")), "height"),
            (toy_op("Malformed", [good]), "lower case"),
            (toy_op("malformed", []), "at least one"),
            (toy_op("malformed", [ToyKernel("m", rules=(multiple_of("depth", 2),))]), "depth"),
            (toy_op("malformed", [ToyKernel("m", rules=(one_of("rows", (77,)),))]), "none of the op's examples"),
            (toy_op("malformed", [ToyKernel("m", function=lambda _d, x: None)]), "'y'"),
            (toy_op("malformed", [ToyKernel("m", function=lambda _d, x, y, z: None)]), "'z'"),
        ):
            with pytest.raises(RegistrationError) as refused:
                self.registry.register(op)
            assert text in str(refused.value)
            assert refused.value.rule
            assert op.name in str(refused.value)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), rows=st.integers(-2, 8), columns=st.integers(-1, 5), element=st.sampled_from(ElementKind))
    def select(self, data, rows, columns, element):
        op, kernels = self.model[data.draw(st.sampled_from(sorted(self.model)))]
        descriptor = op.descriptor(rows, columns, element)
        known = {kernel.element for kernel in kernels.values()}
        if rows < 0 or columns < 0 or element not in known:
            expected = InvalidProblem if rows < 0 or columns < 0 else Unsupported
            with pytest.raises(expected) as refused:
                self.registry.select(descriptor, HOST)
            assert type(refused.value) is expected
            return
        serving = {
            sku: kernel
            for sku, kernel in kernels.items()
            if kernel.element is element and (kernel.most_rows is None or rows <= kernel.most_rows)
        }
        if serving:
            best = min(serving, key=lambda sku: (serving[sku].cost if rows and columns else 0, sku.token))
            plan = self.registry.select(descriptor, HOST)
            assert plan.sku == best
            assert self.registry.select(op.descriptor(rows, columns, element), HOST) is plan
            assert self.registry.explain(descriptor, HOST).chosen is plan.kernel
        else:
            with pytest.raises(NoKernel) as refused:
                self.registry.select(descriptor, HOST)
            assert {r.sku for r in refused.value.refusals} == kernels.keys()
            told, others = str(refused.value), 0
            for one in refused.value.refusals:
                if one.refusal.rule.startswith("element in"):
                    others += 1
                    continue
                reason = str(one.refusal).removeprefix(f"{one.refusal.where}: ")
                [line] = [line for line in told.splitlines() if line.endswith(f": {reason}")]
                assert one.sku.variant in line.removesuffix(f": {reason}").strip().split(", ")
            assert (f"  {others} more are for another element." in told) == (others > 0)
        for sku in kernels:
            if sku in serving:
                assert self.registry.plan(sku.token, descriptor, HOST).sku == sku
            else:
                with pytest.raises(Unsupported) as pinned:
                    self.registry.plan(sku, descriptor, HOST)
                assert pinned.value.rule.startswith(("element in", "rows <="))

    @rule(
        element=st.none() | st.sampled_from(ELEMENTS),
        category=st.sampled_from([None, OpCategory.UNARY_ELEMENTWISE, OpCategory.GEMM]),
        backend=st.sampled_from([None, BackendKind.HOST, BackendKind.BESPOKE]),
        arch=st.sampled_from([None, ArchSku.HOST, ArchSku.SM80]),
        guarantee=st.sampled_from(
            [None, PrecisionGuarantee(deterministic=True), PrecisionGuarantee(MathPrecision.F16)]
        ),
        by_kind=st.sampled_from([None, UnaryKind.NEG, UnaryKind.ABS]),
        data=st.data(),
    )
    def filters(self, element, category, backend, arch, guarantee, by_kind, data):
        name = data.draw(st.none() | st.sampled_from([*sorted(self.model), "nothing"]))
        found = self.registry.skus(
            element=element, category=category, backend=backend, arch=arch, guarantee=guarantee, op=name or by_kind
        )
        expected = [
            sku
            for op, kernels in self.model.values()
            for sku in kernels
            if element in (None, sku.element)
            and category in (None, OpCategory.UNARY_ELEMENTWISE)
            and backend in (None, BackendKind.HOST)
            and arch in (None, ArchSku.HOST)
            and (guarantee is None or guarantee.math_precision is None)
            and (op.name == name if name else by_kind in (None, UnaryKind.NEG))
        ]
        assert list(found) == sorted(expected, key=lambda sku: sku.token)

    @invariant()
    def looks_like_the_model(self):
        assert [op.name for op in self.registry.ops()] == sorted(self.model)
        assert set(self.registry.skus()) == {sku for _, kernels in self.model.values() for sku in kernels}
        for name, (op, kernels) in self.model.items():
            assert self.registry.op(name) is op
            assert self.registry.op_for(op.examples[0]) is op
            for sku in kernels:
                assert self.registry.kernel(sku.token).sku == sku


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=40, stateful_step_count=15)


def test_unknown_names_are_refused_with_the_known_ones():
    registry = host_registry(toy_op("known", [ToyKernel("a")]))
    with pytest.raises(Unsupported, match="known"):
        registry.op("unknown")
    with pytest.raises(Unsupported):
        registry.op_for(object())
    with pytest.raises(Unsupported):
        registry.backend("unknown")
    with pytest.raises(Unsupported, match="parse"):
        registry.kernel("no token")
    with pytest.raises(RegistrationError, match="backend"):
        registry.register_backend(HostBackend())


def test_a_kernel_of_another_op_cannot_be_pinned():
    one, two = toy_op("one", [ToyKernel("a")]), toy_op("two", [ToyKernel("b")])
    registry = host_registry(one, two)
    with pytest.raises(Unsupported, match="two") as refused:
        registry.plan(two.kernels[0].sku, one.examples[1], HOST)
    assert refused.value.rule == "sku"


def test_what_is_pinned_and_not_registered_is_explained():
    op = toy_op("one", [ToyKernel("a")])
    registry = host_registry(op)
    unknown = evolve(op.kernels[0].sku, variant="nowhere")
    explained = registry.explain(op.examples[1], HOST, bp.PlanPreference(sku=unknown))
    assert explained.chosen is None
    with pytest.raises(Unsupported) as refused:
        registry.select(op.examples[1], HOST, bp.PlanPreference(sku=unknown))
    assert str(refused.value) == str(explained.error)


def test_preferences_change_the_choice_and_are_named_when_none_is_left():
    cheap = ToyKernel("cheap", cost=1.0, batch_invariant=False, workspace_nbytes=64)
    dear = ToyKernel("dear", cost=2.0)
    op = toy_op("doubling", [cheap, dear])
    registry = host_registry(op)
    d = op.examples[1]
    assert registry.select(d, HOST).sku.variant == "cheap"
    for preference in (
        bp.PlanPreference(require=PrecisionGuarantee(batch_invariant=True)),
        bp.PlanPreference(max_workspace_bytes=63),
        bp.PlanPreference(sku=op.kernels[1].sku),
    ):
        assert registry.select(d, HOST, preference).sku.variant == "dear"
    for preference, rule_name in (
        (bp.PlanPreference(require=PrecisionGuarantee(math_precision=MathPrecision.F64)), "require"),
        (bp.PlanPreference(require=PrecisionGuarantee(batch_invariant=True), sku=op.kernels[0].sku), "require"),
        (bp.PlanPreference(max_workspace_bytes=63, sku=op.kernels[0].sku), "max_workspace_bytes"),
    ):
        explanation = registry.explain(d, HOST, preference)
        assert explanation.chosen is None
        assert rule_name in {refused.refusal.rule for refused in explanation.refusals}
        assert str(explanation.error)
        with pytest.raises(Unsupported):
            registry.select(d, HOST, preference)


def test_host_code_belongs_to_the_host_and_launches_to_known_arguments():
    good = toy_op("good", [ToyKernel("a")]).kernels[0]
    op = toy_op("gpu", [ToyKernel("b")])

    def code(*parameters):
        return PtxCode("m", ArchSku.SM80, lambda d, device: (Launch("e", (1, 1, 1), (1, 1, 1), parameters),))

    import attrs

    sku = attrs.evolve(good.sku, arch=ArchSku.SM80, backend=BackendKind.BESPOKE)
    for kernel, text in (
        (attrs.evolve(good, sku=sku), "host code"),
        (attrs.evolve(good, code=code(Pointer("x"), Pointer("y"))), "host code"),
        (attrs.evolve(good, sku=sku, code=code(Pointer("x"), Pointer("z"), Pointer("y"))), "'z'"),
        (attrs.evolve(good, sku=sku, code=code(Pointer("x"))), "'y'"),
        (attrs.evolve(good, alignment={"w": 16}), "'w'"),
    ):
        with pytest.raises(RegistrationError, match=text):
            host_registry(attrs.evolve(op, kernels=(kernel,)))
    assert isinstance(good.code, HostCode)


@given(st.sampled_from(["sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm90", "sm_100", "sm_120"]))
def test_an_architecture_name_is_a_dry_device(name):
    device = bp.default_registry().device(name)
    assert device.dry
    assert device.loads(ArchSku.SM80)
    assert device.loads(ArchSku.SM90A) == (device.capability == (9, 0))
    assert not device.loads(ArchSku.HOST)


@pytest.mark.parametrize("name", ["sm_70", "sm_", "gfx90a", "hopper"])
def test_an_unknown_architecture_is_refused(name):
    with pytest.raises(Unsupported, match="sm_80"):
        bp.default_registry().device(name)


def test_device_none_is_the_gpu_where_there_is_one_and_else_the_host():
    op = toy_op("doubling", [ToyKernel("a")])
    registry = host_registry(op)
    assert registry.select(op.examples[1]).device.kind == "host"
    gpu = dry_device("sm_90")
    registry.register_backend(NullBackend(gpu))
    assert registry.device(None) == gpu
    with pytest.raises(NoKernel) as refused:
        registry.select(op.examples[1])
    assert [r.refusal.rule for r in refused.value.refusals] == ["arch"]


def test_threads_that_select_and_register_see_whole_ops_only():
    registry = host_registry()
    ops = [toy_op(f"op{i}", [ToyKernel(f"op{i}_{j}", cost=float(j + 1)) for j in range(5)]) for i in range(30)]
    failures = []
    start = threading.Barrier(9)

    def select():
        start.wait()
        for _ in range(40):
            for op in ops:
                try:
                    plan = registry.select(op.descriptor(2), HOST)
                except Unsupported as error:
                    if error.rule != "descriptor":
                        failures.append(error)
                except BaseException as error:
                    failures.append(error)
                else:
                    if plan.sku != op.kernels[0].sku:
                        failures.append(plan)

    threads = [threading.Thread(target=select) for _ in range(8)]
    for thread in threads:
        thread.start()
    start.wait()
    for op in ops:
        registry.register(op)
    for thread in threads:
        thread.join()
    assert not failures
    assert all(registry.select(op.descriptor(2), HOST) is registry.select(op.descriptor(2), HOST) for op in ops)


def test_an_op_is_found_only_once_all_that_selection_needs_of_it_is_there():
    registry = host_registry()
    op = toy_op("doubling", [ToyKernel("a")])
    seen = []

    class Watched(type(registry)):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if name in ("_ops", "_by_descriptor", "_kernels", "_implied"):  # as another thread would, in between
                with contextlib.suppress(Unsupported):
                    seen.append(registry.select(op.descriptor(2), HOST).sku)

    registry.__class__ = Watched
    registry.register(op)
    assert seen == [op.kernels[0].sku]


def test_devices_that_differ_in_name_alone_have_plans_of_their_own():
    table = {"B": "dear"}
    registry = host_registry(op := toy_op("doubling", [ToyKernel("cheap", cost=1.0), ToyKernel("dear", cost=2.0)]))
    registry._estimate = lambda _op, kernel, _d, device: float(kernel.sku.variant != table.get(device.name, "cheap"))
    named = [Device("host", name=name) for name in ("A", "B")]
    for devices in (named, named[::-1]):
        for device in devices:
            plan = registry.select(op.descriptor(2), device)
            assert (plan.sku.variant, plan.device.name) == (table.get(device.name, "cheap"), device.name)


def test_what_a_registration_overtakes_is_not_remembered():
    registry = host_registry(op := toy_op("doubling", [ToyKernel("a")]))
    make_plan = registry._make_plan

    def overtaken(selection):
        if not registry._backends.get("late"):
            registry.register_backend(NullBackend(dry_device("sm_90"), name="late"))
        return make_plan(selection)

    registry._make_plan = overtaken
    first = registry.select(op.descriptor(2), "host")
    assert registry.select(op.descriptor(2), "host") is not first
    assert registry.select(op.descriptor(2), "host") is registry.select(op.descriptor(2), "host")


def test_a_device_named_by_an_array_is_remembered_too():
    registry = host_registry(op := toy_op("doubling", [ToyKernel("a")]))
    first = registry.select(op.descriptor(2), np.zeros(3))
    made = []
    registry._make_plan = made.append
    for device in (np.zeros(4), SimpleNamespace(type="cpu", index=None), "host", HOST):
        assert registry.select(op.descriptor(2), device) is first
    assert not made


def test_a_device_made_by_hand_is_completed_or_refused():
    registry = host_registry(toy_op("doubling", [ToyKernel("a")]))
    gpu = Device("cuda", 0, (9, 0), 132)
    registry.register_backend(NullBackend(gpu))
    assert registry.device(Device("cuda", 0)) is gpu
    assert registry.device(Device("cuda", 0, (9, 0))) is gpu
    assert registry.device(Device("cuda", None, (9, 0))).sm_count == 132
    assert registry.device(Device("cuda", None, (9, 0), 114)).sm_count == 114
    with pytest.raises(Unsupported, match="ordinal or a capability"):
        registry.device(Device("cuda"))


def test_first_callers_in_several_threads_share_one_default_registry_and_one_plan_class(monkeypatch):
    make, op = bp._make_default_registry, toy_op("shared", [ToyKernel("a")])
    monkeypatch.setattr(bp, "_registry", None)
    monkeypatch.setattr(bp, "_make_default_registry", lambda: time.sleep(0.05) or make())
    start, found = threading.Barrier(8), []

    def call():
        start.wait()
        found.append((bp.default_registry(), plan_class(op)))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


# -- plug-ins ----------------------------------------------------------------------------------------------------


def _entry_point(name, register, group="baracuda_py.ops"):
    return SimpleNamespace(name=name, group=group, value=f"{name}:register", load=lambda: register)


def _broken_loading():
    raise ImportError("no module named gone")


def _install(monkeypatch, *points):
    scans = []

    def entry_points(*, group):
        scans.append(group)
        return [point for point in points if point.group == group]

    monkeypatch.setattr(registry_module, "entry_points", entry_points)
    monkeypatch.delenv(registry_module.NO_PLUGINS, raising=False)
    return scans


def test_plug_ins_are_scanned_at_the_first_look_up_and_broken_ones_leave_nothing_but_their_name(monkeypatch):
    def half(registry):
        registry.register(toy_op("half", [ToyKernel("half")]))
        raise RuntimeError("half way")

    unloadable = _entry_point("unloadable", None)
    unloadable.load = _broken_loading
    backend = NullBackend(dry_device("sm_90"), name="extra")
    scans = _install(
        monkeypatch,
        _entry_point("a_good", lambda r: r.register(toy_op("good", [ToyKernel("good")]))),
        _entry_point("b_half", half),
        _entry_point("c_duplicate", lambda r: r.register(toy_op("good", [ToyKernel("again")]))),
        _entry_point("d_not_callable", "text"),
        unloadable,
        _entry_point("z_backend", lambda r: r.register_backend(backend), group="baracuda_py.backends"),
    )
    registry = host_registry(plugins=True)
    assert not scans
    with pytest.warns(RuntimeWarning) as warned:
        names = [op.name for op in registry.ops()]
    assert names == ["good"]
    assert {sku.variant for sku in registry.skus()} == {"good"}
    assert registry.backend("extra") is backend
    broken = {"b_half", "c_duplicate", "d_not_callable", "unloadable"}
    assert {name.partition(":")[2] for name in registry.plugin_errors} == broken
    assert all(any(name in str(warning.message) for warning in warned) for name in broken)
    assert registry.select(registry.op("good").examples[1], HOST).sku.variant == "good"
    assert scans == list(registry_module.PLUGIN_GROUPS), "each group is scanned once, backends first"


def test_the_environment_turns_plug_ins_off(monkeypatch):
    scans = _install(monkeypatch, _entry_point("good", lambda r: r.register(toy_op("good", [ToyKernel("good")]))))
    monkeypatch.setenv(registry_module.NO_PLUGINS, "1")
    assert host_registry(plugins=True).ops() == ()
    assert not scans


def test_a_look_up_beside_a_scan_waits_for_it_and_one_inside_it_does_not(monkeypatch):
    entered, seen = threading.Event(), []

    def slow(registry):
        entered.set()
        seen.append([op.name for op in registry.ops()])
        time.sleep(0.1)
        registry.register(toy_op("slow", [ToyKernel("slow")]))

    _install(monkeypatch, _entry_point("slow", slow))
    registry = host_registry(plugins=True)
    thread = threading.Thread(target=registry.ops)
    thread.start()
    entered.wait()
    assert registry.op("slow").name == "slow"
    thread.join()
    assert seen == [[]]


def test_no_plug_in_ends_the_scan_and_what_it_selected_goes_with_it(monkeypatch):
    broken = toy_op("broken", [ToyKernel("broken")])

    def leaves(registry):
        registry.register(broken)
        registry.select(broken.descriptor(2), HOST)
        raise SystemExit(3)

    good = _entry_point("b_good", lambda r: r.register(toy_op("good", [ToyKernel("good")])))
    _install(monkeypatch, _entry_point("a_leaves", leaves), good)
    registry = host_registry(plugins=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="a_leaves"):
            registry.ops()
    assert [op.name for op in registry.ops()] == ["good"]
    with pytest.raises(Unsupported):
        registry.select(broken.descriptor(2), HOST)


def test_what_a_broken_plug_in_made_of_measured_times_goes_with_it(monkeypatch):
    op = toy_op("one", [ToyKernel("one")])

    def leaves(registry):
        registry._calibrations["sku"] = registry._measured["op"] = object()
        raise RuntimeError("half way")

    _install(monkeypatch, _entry_point("a_leaves", leaves), _entry_point("b_good", lambda r: r.register(op)))
    registry = host_registry(plugins=True)
    with pytest.warns(RuntimeWarning, match="a_leaves"):
        registry.ops()
    assert not registry._calibrations
    assert not registry._measured


@pytest.mark.parametrize(
    ("box", "said"),
    [(TensorMap("inptu", ElementKind.F16, (8,), (), (8,)), "'inptu'"),
     (TensorMap("x", ElementKind.F16, (8, 8), (Stride("nonsense", 0),), (8, 8)), "'nonsense'")],
    ids=["argument", "stride"],
)  # fmt: skip
def test_what_a_tensor_map_names_must_be_an_argument(box, said):
    good = toy_op("gpu", [ToyKernel("b")])
    sku = evolve(good.kernels[0].sku, arch=ArchSku.SM80, backend=BackendKind.BESPOKE)

    def op_with(*parameters):
        code = PtxCode("m", ArchSku.SM80, lambda d, device: (Launch("e", (1, 1, 1), (1, 1, 1), parameters),))
        return evolve(good, kernels=(evolve(good.kernels[0], sku=sku, code=code),))

    with pytest.raises(RegistrationError, match=said):
        host_registry(op_with(Pointer("x"), Pointer("y"), box))
    host_registry(op_with(Pointer("x"), TensorMap("y", ElementKind.F16, (8,), (), (8,))))  # an output, by a map alone


@pytest.mark.parametrize("wrong", [None, 3, "softmax", Op, ToyKernel("a")], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_op_is_refused_and_nothing_is_added(wrong):
    registry = host_registry()
    with pytest.raises(RegistrationError, match="must be an `Op`") as refused:
        registry.register(wrong)
    assert refused.value.rule == "op"
    assert not registry.ops()


@pytest.mark.parametrize(
    ("part", "wrong", "said"),
    [
        ("name", 3, "name must be of str"), ("descriptor", 3, "descriptor must be of type"),
        ("args", int, "@arguments"), ("rules", (3,), "rules must be of Rule"),
        ("contract", ("m > 0",), "contract must be of Rule"),
        ("kernels", (ToyKernel("a"),), "kernels must be of Kernel"), ("examples", ({},), "examples must be of"),
        *((part, 3, f"{part} must be a collection") for part in ("rules", "contract", "examples", "kinds", "sizes")),
        ("kernels", None, "kernels must be a collection"),
    ],
)  # fmt: skip
def test_an_op_with_a_part_of_the_wrong_type_is_refused_and_nothing_is_added(part, wrong, said):
    registry = host_registry()
    with pytest.raises(RegistrationError, match=said) as refused:
        registry.register(evolve(toy_op("toy", [ToyKernel("a")]), **{part: wrong}))
    assert refused.value.rule == part
    assert not registry.ops()
    registry.register(toy_op("toy", [ToyKernel("a")]))


@pytest.mark.parametrize(
    "wrong", [None, "host", HostBackend, SimpleNamespace(name="x")], ids=lambda wrong: type(wrong).__name__
)
def test_what_is_no_backend_is_refused(wrong):
    with pytest.raises(RegistrationError, match="`missing` and `prepare`"):
        host_registry().register_backend(wrong)
