"""Plans: dry runs, workspaces, arguments of the wrong kind, named classes, and what a backend is asked to run."""

from __future__ import annotations

import gc
import pickle
import re
import weakref
from types import SimpleNamespace

import attrs
import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.backends.host import HostBackend
from baracuda_py.backends.null import NullBackend
from baracuda_py.errors import InvalidProblem, MisalignedOperand, NoKernel, Unsupported, WorkspaceTooSmall
from baracuda_py.plan import Plan, new_registry, plan_class
from baracuda_py.testing.toys import ToyKernel, toy_op
from baracuda_py.vocab.code import WORKSPACE, Launch, Pointer, PtxCode, Stride, f32
from baracuda_py.vocab.device import HOST, Device
from baracuda_py.vocab.enums import ArchSku, BackendKind
from baracuda_py.vocab.tensors import HOST_MEMORY

GPU = Device("cuda", 0, (9, 0), 132, "pretended")
AWQ = bp.Int4AwqGemmDescriptor(3, 256, 64, split_k_iters=2)


def _launches(descriptor, device):
    rows = (Pointer("x"), Stride("x", 0), Pointer("y"), Stride("y", 0), Pointer(WORKSPACE, 16))
    sizes = (descriptor.rows, descriptor.columns, f32(2.0))
    return (Launch("double_sm80_f32", (descriptor.rows, 1, 1), (128, 1, 1), (*rows, *sizes)),)


def gpu_op(workspace_nbytes=0):
    """A toy op whose one kernel is PTX."""
    op = toy_op("doubling", [ToyKernel("gpu", workspace_nbytes=workspace_nbytes)])
    kernel = op.kernels[0]
    sku = attrs.evolve(kernel.sku, arch=ArchSku.SM80, backend=BackendKind.BESPOKE)
    code = PtxCode("toy", ArchSku.SM80, _launches)
    return attrs.evolve(op, kernels=(attrs.evolve(kernel, sku=sku, code=code, alignment={"x": 16}),))


def pretended(workspace_nbytes=0):
    """A registry with a GPU that records, the op, and a plan for two rows."""
    registry = new_registry()
    backend = registry.register_backend(NullBackend(GPU))
    op = registry.register(gpu_op(workspace_nbytes))
    return registry, backend, op, registry.select(op.descriptor(2))


def gpu_args(op, *, x=0x1000, y=0x2000, shape=(2, 4)):
    f = bp.ElementKind.F32
    return op.args(bp.TensorRef(x, shape, f, device=0), bp.TensorMut(y, shape, f, device=0))


@pytest.mark.parametrize("device", ["sm_80", "sm_89", "sm_90a", "sm_120"])
def test_a_dry_run_plan_shows_everything_and_refuses_to_run(device):
    plan = bp.select(AWQ, device)
    assert plan.device.dry
    assert plan.launches
    assert plan.workspace_size >= 0
    assert plan.sku.arch is not ArchSku.HOST
    assert plan.explain().chosen is plan.kernel
    assert "dry run" in repr(plan)
    w = bp.ElementKind.I32
    args = bp.Int4AwqGemmArgs(
        bp.TensorRef(0x10000, (3, 256), bp.ElementKind.F16),
        bp.TensorRef(0x20000, (64, 32), w),
        bp.TensorRef(0x30000, (2, 64), bp.ElementKind.F16),
        bp.TensorRef(0x40000, (2, 8), w),
        bp.TensorMut(0x50000, (3, 64), bp.ElementKind.F16),
    )
    assert plan.can_implement(args)
    for attempt in (lambda: plan.run(None, bp.Workspace.NONE, args), lambda: plan.bind(args)):
        with pytest.raises(Unsupported, match="dry-run") as refused:
            attempt()
        assert refused.value.rule == "dry run"
        assert refused.value.fix


def test_a_run_gives_the_backend_its_stream_workspace_and_operands():
    _, backend, op, plan = pretended(workspace_nbytes=64)
    args = gpu_args(op)
    workspace = bp.Workspace.borrowed(0x9000, 64)
    plan.run(7, workspace, args)
    plan.bind(args, workspace, 7)()
    assert len(backend.runs) == 2
    first, second = backend.runs
    assert first == second
    assert (first.stream, first.workspace) == (7, 0x9000)
    assert [view.pointer for view in first.operands] == [0x1000, 0x2000]
    assert first.launches == plan.launches == _launches(plan.descriptor, GPU)


def test_a_stream_object_is_asked_for_its_handle():
    class Stream:
        def __cuda_stream__(self):
            return 0, 0xABC

    _, backend, op, plan = pretended()
    plan.run(Stream(), bp.Workspace.NONE, gpu_args(op))
    assert backend.runs[0].stream == 0xABC


@pytest.mark.parametrize("nbytes", [0, 1, 63])
def test_a_small_workspace_is_refused_with_both_sizes(nbytes):
    _, backend, op, plan = pretended(workspace_nbytes=64)
    lent = bp.Workspace.borrowed(0x9000, nbytes) if nbytes else bp.Workspace.NONE
    for attempt in (lambda: plan.run(0, lent, gpu_args(op)), lambda: plan.bind(gpu_args(op), lent)):
        with pytest.raises(WorkspaceTooSmall) as refused:
            attempt()
        assert (refused.value.needed, refused.value.got) == (64, nbytes)
    assert not backend.runs


def test_a_misaligned_or_foreign_workspace_is_refused():
    _, backend, op, plan = pretended(workspace_nbytes=64)
    with pytest.raises(MisalignedOperand) as refused:
        plan.run(0, bp.Workspace.borrowed(0x9008, 64), gpu_args(op))
    assert refused.value.rule == "workspace alignment"
    for elsewhere in (1, HOST_MEMORY):
        with pytest.raises(InvalidProblem) as refused:
            plan.run(0, bp.Workspace(0x9000, 64, device=elsewhere), gpu_args(op))
        assert refused.value.rule == "workspace device"
    assert not backend.runs


def test_a_workspace_over_an_output_is_refused():
    _, backend, op, plan = pretended(workspace_nbytes=64)
    with pytest.raises(InvalidProblem) as refused:
        plan.run(0, bp.Workspace.borrowed(0x2010, 64), gpu_args(op))
    assert refused.value.rule == "y overlap"
    assert not backend.runs


def test_raw_addresses_of_a_workspace_need_a_size():
    for nbytes in (None, -1):
        with pytest.raises(InvalidProblem):
            bp.Workspace.borrowed(0x1000, nbytes)
    with pytest.raises(InvalidProblem, match="contiguous"):
        bp.Workspace.borrowed(np.empty((4, 8), np.float32)[:, ::2])
    buffer = np.empty((4, 8), np.float32)
    lent = bp.Workspace.borrowed(buffer)
    assert (lent.pointer, lent.nbytes) == (buffer.ctypes.data, 128)


def test_alignment_is_of_the_address_and_of_the_rows():
    _, backend, op, plan = pretended()
    plan.run(0, bp.Workspace.NONE, gpu_args(op))
    with pytest.raises(MisalignedOperand) as refused:
        plan.run(0, bp.Workspace.NONE, gpu_args(op, x=0x1004))
    assert refused.value.rule == "x alignment"
    f = bp.ElementKind.F32
    odd = bp.TensorRef(0x1000, (2, 4), f, strides=(5, 1), device=0)
    with pytest.raises(MisalignedOperand) as refused:
        plan.run(0, bp.Workspace.NONE, op.args(odd, bp.TensorMut(0x2000, (2, 4), f, device=0)))
    assert refused.value.rule == "x alignment"
    plan.run(0, bp.Workspace.NONE, gpu_args(op, y=0x2004))  # y is asked for its element's alignment only
    assert len(backend.runs) == 2


def test_an_empty_problem_runs_nothing_and_still_checks_its_arguments():
    registry, backend, op, _ = pretended(workspace_nbytes=64)
    plan = registry.select(op.descriptor(0))
    assert plan.workspace_size == 0
    assert plan.launches == ()
    plan.run(None, bp.Workspace.NONE, gpu_args(op, shape=(0, 4)))
    plan.bind(gpu_args(op, shape=(0, 4)))()
    with pytest.raises(InvalidProblem) as refused:
        plan.run(None, bp.Workspace.NONE, gpu_args(op, shape=(1, 4)))
    assert refused.value.rule == "x shape"
    with pytest.raises(InvalidProblem) as refused:
        plan.run(None, None, gpu_args(op, shape=(0, 4)))
    assert refused.value.rule == "workspace"
    assert not backend.runs


def test_args_of_another_class_are_refused():
    _, _, op, plan = pretended()
    other = toy_op("other", [ToyKernel("other")])
    for wrong in (gpu_args(other), None, (1, 2)):
        with pytest.raises(InvalidProblem) as refused:
            plan.run(0, bp.Workspace.NONE, wrong)
        assert refused.value.rule == "args"
    assert op.name in str(refused.value)


def test_a_read_only_output_is_refused():
    op = toy_op("doubling", [ToyKernel("host")])
    registry = new_registry()
    registry.register_backend(HostBackend())
    registry.register(op)
    plan = registry.select(op.descriptor(2), HOST)
    y = np.zeros((2, 4), np.float32)
    y.flags.writeable = False
    with pytest.raises(InvalidProblem) as refused:
        plan.run(None, bp.Workspace.NONE, op.args(np.ones((2, 4), np.float32), y))
    assert refused.value.rule == "writable"
    assert "y" in str(refused.value)


def test_columns_of_one_buffer_do_not_overlap():
    op = toy_op("doubling", [ToyKernel("host")])
    registry = new_registry()
    registry.register_backend(HostBackend())
    registry.register(op)
    plan = registry.select(op.descriptor(3), HOST)
    both = np.arange(24, dtype=np.float32).reshape(3, 8)
    plan.run(None, bp.Workspace.NONE, op.args(both[:, :4], both[:, 4:]))
    assert np.array_equal(both[:, 4:], 2 * both[:, :4])
    with pytest.raises(InvalidProblem) as refused:
        plan.run(None, bp.Workspace.NONE, op.args(both[:, :4], both[:, 3:7]))
    assert refused.value.rule == "y overlap"


@pytest.mark.parametrize(
    ("one", "two", "apart"),
    [
        (np.s_[..., :4], np.s_[..., 4:], True),
        (np.s_[:, 0::2, :4], np.s_[:, 1::2, :4], True),
        (np.s_[:, :2, 0::2], np.s_[:, :2, 1::2], True),
        (np.s_[:, :2, 0::2], np.s_[:, :2, 2::2], False),
        (np.s_[:, 0:2, :4], np.s_[:, 1:3, :4], False),
    ],
    ids=str,
)
def test_views_of_one_buffer_that_share_no_byte_do_not_overlap(one, two, apart):
    buffer = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)
    x, y = buffer[one], buffer[two][..., : buffer[one].shape[-1]]
    x = x[..., : y.shape[-1]]
    plan = bp.select(bp.SoftmaxDescriptor(x.shape), "host")
    if not apart:
        with pytest.raises(InvalidProblem, match="must not share memory with"):
            plan.can_implement(bp.SoftmaxArgs(x, y))
        return
    expected = np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
    plan.run(None, bp.Workspace.NONE, bp.SoftmaxArgs(x, y))
    assert np.allclose(y, expected)


@pytest.mark.parametrize(
    ("shape", "strides", "fits"),
    [
        ((3, 5, 8), (50, 10, 1), True), ((3, 5, 8), (48, 10, 1), True), ((3, 5, 8), (8, 24, 1), True),
        ((3, 5, 8), (47, 10, 1), False), ((3, 5, 8), (7, 24, 1), False), ((3, 5, 8), (0, 8, 1), False),
        ((3, 5, 8), (-50, 10, 1), False), ((3, 1, 8), (8, 0, 1), True),
    ],
)  # fmt: skip
def test_rows_and_matrices_of_a_batch_may_lie_in_any_order_apart(shape, strides, fits):
    batch, m, k = shape
    desc = bp.DenseGemmDescriptor(m, 4, k, batch=batch, element=bp.ElementKind.F32)
    plan = bp.select(desc, "host")
    memory = np.random.default_rng(0).standard_normal(400).astype(np.float32)
    a = np.lib.stride_tricks.as_strided(memory[150:], shape, [4 * stride for stride in strides])
    b = np.ones((batch, k, 4), np.float32)
    args = bp.DenseGemmArgs(a, b, np.zeros((batch, m, 4), np.float32))
    if fits:
        plan.run(None, bp.Workspace.NONE, args)
        assert np.allclose(args.output, a @ b, atol=1e-5)
    else:
        with pytest.raises(InvalidProblem, match="must have a stride of at least"):
            plan.can_implement(args)


def test_named_plans_are_the_registrys_plans():
    plan = bp.Int4AwqGemmPlan.select("sm_80", AWQ)
    assert isinstance(plan, bp.Int4AwqGemmPlan)
    assert isinstance(plan, Plan)
    assert plan is bp.select(AWQ, "sm_80")
    assert bp.Int4AwqGemmPlan is plan_class(bp.default_registry().op("int4_awq_gemm"))
    assert plan.precision_guarantee is plan.sku.precision_guarantee


def test_a_stream_or_array_says_on_which_device():
    registry, _, _, _ = pretended()

    class Stream:
        def __cuda_stream__(self):
            return 0, 5

    assert registry.device(Stream()) == GPU
    assert registry.device(bp.TensorRef(0, (1,), bp.ElementKind.F32, device=0)) == GPU
    assert registry.device(np.zeros(1)) == HOST
    assert registry.device("cuda:0") == registry.device(0) == GPU
    assert registry.device(GPU) is GPU


def test_errors_travel_between_processes_with_their_facts():
    with pytest.raises(NoKernel) as refused:
        bp.select(AWQ, "sm_80", bp.PlanPreference(require=bp.PrecisionGuarantee(math_precision=bp.MathPrecision.F64)))
    copy = pickle.loads(pickle.dumps(refused.value))
    assert str(copy) == str(refused.value)
    assert [r.sku for r in copy.refusals] == [r.sku for r in refused.value.refusals]
    small = pickle.loads(pickle.dumps(WorkspaceTooSmall("op", 8, 4)))
    assert (small.needed, small.got, small.rule) == (8, 4, "workspace")


def test_builders_return_copies_with_one_field_changed():
    for field in attrs.fields(bp.Int4AwqGemmDescriptor):
        if field.default is not attrs.NOTHING:
            value = {"group_size": 64, "split_k_iters": None, "weight_layout": bp.AwqWeightLayout.HF_GEMM,
                     "element": bp.ElementKind.BF16, "epilogue": bp.EpilogueKind.BIAS,
                     "scales_element": bp.ElementKind.F16}[field.name]  # fmt: skip
            changed = getattr(AWQ, f"with_{field.name}")(value)
            assert changed == attrs.evolve(AWQ, **{field.name: value})
            assert changed != AWQ
            assert hash(changed) == hash(attrs.evolve(AWQ, **{field.name: value}))


def test_a_bound_call_keeps_its_stream_alive():
    class Stream:
        def __cuda_stream__(self):
            return 0, 0xABC

    _, backend, op, plan = pretended()
    stream = Stream()
    alive = weakref.ref(stream)
    call = plan.bind(gpu_args(op), stream=stream)
    del stream
    gc.collect()
    assert alive() is not None
    call()
    assert backend.runs[0].stream == 0xABC
    del call
    gc.collect()
    assert alive() is None


def test_a_workspace_at_address_0_is_refused():
    _, backend, op, plan = pretended(workspace_nbytes=64)
    with pytest.raises(InvalidProblem) as refused:
        plan.run(0, bp.Workspace.borrowed(0, 64), gpu_args(op))
    assert refused.value.rule == "workspace address"
    assert not backend.runs


def test_on_the_host_memory_of_an_unknown_device_is_refused():
    plan = bp.select(bp.SoftmaxDescriptor((2, 4)), "host")
    x, y = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32)
    raw = bp.TensorRef(x.ctypes.data, (2, 4), bp.ElementKind.F32)
    with pytest.raises(InvalidProblem) as refused:
        plan.can_implement(bp.SoftmaxArgs(raw, y))
    assert refused.value.rule == "input device"
    raw.device = HOST_MEMORY
    plan.run(None, bp.Workspace.NONE, bp.SoftmaxArgs(raw, y))
    assert (y == 0.25).all()


@pytest.mark.parametrize(
    ("shape", "strides", "distinct"),
    [
        ((4, 8), (8, 1), True), ((4, 8), (1, 4), True), ((4, 8), (-8, -1), True), ((1, 8), (0, 1), True),
        ((4, 8), (4, 1), False), ((4, 8), (1, 1), False), ((4, 8), (8, 0), False), ((4, 8), (-1, 3), False),
    ],
)  # fmt: skip
def test_an_output_whose_elements_share_memory_is_refused(shape, strides, distinct):
    plan = bp.select(bp.SoftmaxDescriptor(shape), "sm_90")
    f = bp.ElementKind.F32
    args = bp.SoftmaxArgs(bp.TensorRef(1 << 20, shape, f), bp.TensorMut(1 << 16, shape, f, strides=strides))
    if distinct:
        assert plan.can_implement(args)
    else:
        with pytest.raises(InvalidProblem, match="twice"):
            plan.can_implement(args)


@pytest.mark.parametrize("shape", [(4, 8), (4, 1), (1, 1)])  # the last is contiguous, half of a pair or not
def test_a_tensor_with_a_pending_sign_is_refused_also_behind_one_like_it_without(shape):
    torch = pytest.importorskip("torch")
    pairs = torch.randn(shape, dtype=torch.complex64)
    plan, output = bp.select(bp.SoftmaxDescriptor(shape), "host"), torch.empty(shape)
    plan.run(None, bp.Workspace.NONE, bp.SoftmaxArgs(pairs.imag, output))
    with pytest.raises(Unsupported) as refused:
        plan.run(None, bp.Workspace.NONE, bp.SoftmaxArgs(pairs.conj().imag, output))
    assert refused.value.rule == "pending sign"
    plan.run(None, bp.Workspace.NONE, bp.SoftmaxArgs(pairs.conj().imag.resolve_neg(), output))
    assert torch.allclose(output, torch.softmax(pairs.conj().imag, -1))


def test_splits_beyond_the_depth_of_a_grid_go_to_another_kernel():
    desc = bp.Int4AwqGemmDescriptor(16, 32 * (1 << 16), 64, split_k_iters=1 << 16)
    splitk = next(c for c in bp.explain(desc, "sm_90").candidates if c.sku.variant == "splitk_oc_major"
                  and c.sku.element is desc.element and c.sku.epilogue is desc.epilogue)  # fmt: skip
    assert splitk.refusal is not None
    assert splitk.refusal.rule == "split_k_iters <= 65535"
    plan = bp.Int4AwqGemmPlan.select
    assert bp.select(desc, "sm_90").launches[0].grid[2] < 1 << 16
    assert plan("sm_90", desc).sku == bp.select(desc, "sm_90").sku


def test_args_of_another_class_are_refused_behind_a_call_that_passed():
    torch = pytest.importorskip("torch")
    _, _, op, plan = pretended()
    launched = []
    plan._run_at = lambda *given: launched.append(given)
    tensors = [torch.zeros(2, 4), torch.zeros(2, 4)]
    plan._checker.alike = SimpleNamespace(addresses=lambda *_: (1, 2), views=())
    other = SimpleNamespace(**dict(zip(("x", "y"), tensors, strict=True)))
    for wrong in (None, other):
        with pytest.raises(InvalidProblem) as refused:
            plan.run(0, bp.Workspace.NONE, wrong)
        assert refused.value.rule == "args"
    assert not launched
    plan.run(0, bp.Workspace.NONE, op.args(*tensors))
    assert len(launched) == 1


def test_the_stride_of_an_axis_of_one_element_does_not_count():
    desc = bp.DenseGemmDescriptor(1, 16, 16, batch=4, element=bp.ElementKind.F32)
    plan = bp.select(desc, "host")
    a = np.random.default_rng(0).standard_normal((5, 4, 16), np.float32).transpose(1, 0, 2)[:, :1]
    assert a.strides[0] < a.strides[1]
    b = np.random.default_rng(1).standard_normal(desc.b_shape, np.float32)
    output = np.full(desc.output_shape, np.nan, np.float32)
    plan.run(None, bp.Workspace.NONE, plan.op.args(a=a, b=b, bias=None, output=output))
    np.testing.assert_allclose(output, a @ b, rtol=1e-5, atol=1e-5)


def test_a_workspace_of_which_nothing_is_used_may_lie_anywhere():
    plan = bp.select(bp.SoftmaxDescriptor((2, 4)), "host")
    assert plan.workspace_size == 0
    x, y = np.zeros((2, 4), np.float32), np.empty((2, 4), np.float32)
    for place in (x.reshape(-1), x.reshape(-1)[4:]):
        plan.run(None, bp.Workspace.borrowed(place), bp.SoftmaxArgs(x, y))


def test_what_serves_nowhere_here_is_told_in_a_few_lines():
    with pytest.raises(NoKernel) as refused:
        bp.select(AWQ, "host", bp.PlanPreference(require=bp.PrecisionGuarantee(batch_invariant=True)))
    first, *reasons = str(refused.value).splitlines()
    assert "on the host" in first
    names, _, reason = reasons[0].partition(": ")
    assert "numpy" in names
    assert reason == "the guarantee must cover the required batch_invariant (got batch_invariant = False)."
    assert re.fullmatch(r"  \d+ more are for devices of sm80 or sm90a\.", reasons[1])
    assert len(reasons) == 3
    assert len(refused.value.refusals) == len(bp.default_registry().op("int4_awq_gemm").kernels)


@pytest.mark.parametrize("shape", [(1 << 19, 4), (3, 1 << 18, 4), (3, 2, 1 << 19)])
def test_softmax_takes_many_rows_together(shape, monkeypatch):
    passes = []
    exp = np.exp
    monkeypatch.setattr(np, "exp", lambda x: passes.append(x.size) or exp(x))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y = np.full_like(x, np.nan)
    bp.select(bp.SoftmaxDescriptor(shape), "host").run(None, bp.Workspace.NONE, bp.SoftmaxArgs(x, y))
    assert len(passes) == -(-x.size // (1 << 20))
    assert max(passes) <= 1 << 20
    for index in np.ndindex(shape[:-2]):
        assert np.allclose(y[index][:9], exp(x[index][:9]) / exp(x[index][:9]).sum(-1, keepdims=True), atol=1e-6)
