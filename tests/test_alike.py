"""A call is taken for one like the last that passed only if nothing but its addresses differs: on torch tensors."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

import baracuda_py as bp
from baracuda_py.errors import BaracudaError
from baracuda_py.plan import new_registry
from baracuda_py.testing.toys import ToyKernel, toy_op

torch = pytest.importorskip("torch")

M, IC, OC = 4, 64, 64
DESCRIPTOR = bp.Int4AwqGemmDescriptor(M, IC, OC, 64, None)


def fresh_plan():
    """A plan that has seen no call."""
    registry = new_registry()
    registry.register_backend(bp.default_registry().backend("host"))
    registry.register(bp.default_registry().op_for(DESCRIPTOR))
    return registry.select(DESCRIPTOR, "host")


def words(*shape):
    return torch.randint(-(1 << 31), 1 << 31, shape, dtype=torch.int64).to(torch.int32)


def tensors(**changed):
    made = {
        "activation": torch.randn(M, IC).half(), "weight_packed": words(OC, IC // 8),
        "scales": torch.rand(1, OC).half(), "zeros": words(1, OC // 8),
        "output": torch.full((M, OC), torch.nan, dtype=torch.float16),
    }  # fmt: skip
    return bp.Int4AwqGemmArgs(**(made | changed))


def alike(plan, args, workspace=bp.Workspace.NONE):
    """Addresses if the call is taken for one like the last; the plan has seen one."""
    assert plan._checker.alike is not None
    return plan._checker.alike.addresses(args, workspace.pointer, workspace.pointer + workspace.nbytes)


def after_a_call():
    plan = fresh_plan()
    plan.can_implement(tensors())
    return plan


def test_other_tensors_of_the_same_form_are_alike():
    plan, args = after_a_call(), tensors()
    assert alike(plan, args) == (
        args.activation.data_ptr(), args.weight_packed.data_ptr(), args.scales.data_ptr(), args.zeros.data_ptr(),
        args.output.data_ptr(), 0,
    )  # fmt: skip


def _wide(rows, columns, dtype=torch.float16):
    return torch.zeros(rows, 2 * columns, dtype=dtype)


WRONG = {
    "shape": {"activation": torch.zeros(M + 1, IC).half()},
    "rank": {"scales": torch.zeros(OC).half()},
    "dtype": {"zeros": torch.zeros(1, OC // 8)},
    "element of the same size": {"activation": torch.zeros(M, IC, dtype=torch.bfloat16)},
    "innermost stride": {"activation": _wide(M, IC)[:, ::2]},
    "transposed": {"weight_packed": words(IC // 8, OC).t()},
    "row stride of a contiguous argument": {"weight_packed": _wide(OC, IC // 8, torch.int32)[:, : IC // 8]},
    "device": {"scales": torch.zeros(1, OC, dtype=torch.float16, device="meta")},
    "type": {"scales": [[0.0] * OC]},
    "absence": {"scales": None},
    "presence": {"bias": torch.zeros(OC).half()},
    "no memory": {"output": torch.zeros(M, OC, dtype=torch.float16, device="meta")},
}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG)
def test_a_call_that_is_wrong_is_refused_as_if_it_were_the_first(changed):
    plan, args = after_a_call(), tensors(**changed)
    with pytest.raises(BaracudaError) as first:
        fresh_plan().can_implement(args)
    for attempt in (plan.can_implement, lambda args: plan.run(None, bp.Workspace.NONE, args)):
        with pytest.raises(BaracudaError) as later:
            attempt(args)
        assert str(later.value) == str(first.value)
    if changed.keys() != {"output"}:
        assert args.output.isnan().all()


def test_an_output_over_any_input_is_refused():
    for name in ("activation", "weight_packed", "scales", "zeros"):
        plan, args = after_a_call(), tensors()
        memory = torch.zeros(1 << 16, dtype=torch.uint8)
        mine = getattr(args, name)
        nbytes = mine.numel() * mine.element_size()
        start = 4096 - nbytes + 16  # its last 16 bytes are the output's first
        inside = memory[start : start + nbytes].view(mine.dtype).view(mine.shape)
        over = memory[4096 : 4096 + 2 * M * OC].view(torch.float16).view(M, OC)
        args = tensors(**{name: inside, "output": over})
        with pytest.raises(BaracudaError) as refused:
            plan.can_implement(args)
        assert refused.value.rule == "output overlap", name
        beside = memory[4096 - nbytes : 4096].view(mine.dtype).view(mine.shape)
        assert alike(plan, tensors(**{name: beside, "output": over})) is not None, name


def test_an_argument_in_the_workspace_is_not_alike():
    plan, args = after_a_call(), tensors()
    start = args.scales.data_ptr()
    assert alike(plan, args, bp.Workspace(start + 2 * OC - 1, 8)) is None
    assert alike(plan, args, bp.Workspace(start - 8, 9)) is None


def test_metadata_changed_in_place_is_seen():
    plan = after_a_call()
    args = tensors(activation=torch.zeros(IC, M).half())
    args.activation.t_()
    with pytest.raises(BaracudaError, match="innermost stride"):
        plan.can_implement(args)
    args = tensors()
    plan.can_implement(args)
    args.output.resize_(M, OC - 8)
    with pytest.raises(BaracudaError, match="shape"):
        plan.can_implement(args)


def test_rows_with_a_stride_are_alike_only_with_that_stride():
    plan = fresh_plan()
    plan.can_implement(tensors(activation=_wide(M, IC)[:, :IC]))
    assert alike(plan, tensors(activation=_wide(M, IC)[:, IC:])) is not None
    assert alike(plan, tensors()) is None
    assert alike(plan, tensors(activation=torch.zeros(M, 3 * IC).half()[:, :IC])) is None


def test_a_plan_keeps_no_tensor_alive():
    plan, args = fresh_plan(), tensors()
    plan.can_implement(args)
    alive = [weakref.ref(getattr(args, name)) for name in ("activation", "output")]
    del args
    gc.collect()
    assert all(one() is None for one in alive)


def test_threads_that_share_a_plan_get_their_own_addresses():
    plan, wrong = after_a_call(), []
    forms = [tensors(), tensors(activation=_wide(M, IC)[:, :IC])]

    def work(args):
        for _ in range(500):
            views = plan._checker.views(args, bp.Workspace.NONE, 0)
            if views[0].pointer != args.activation.data_ptr() or views[0].strides != args.activation.stride():
                wrong.append(views)

    threads = [threading.Thread(target=work, args=(forms[number % 2],)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_contiguous_tensor_with_a_pending_sign_is_not_alike():
    halves = torch.view_as_complex(torch.ones(M, IC, 2).half())
    negated = halves.conj().imag.as_strided((M, IC), (IC, 1))
    assert negated.is_contiguous()
    assert negated.is_neg()
    plan = after_a_call()
    assert alike(plan, tensors(activation=negated)) is None
    with pytest.raises(BaracudaError, match="pending"):
        plan.run(None, bp.Workspace.NONE, tensors(activation=negated))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_a_sparse_tensor_of_the_same_shape_is_refused_by_its_name():
    plan = after_a_call()
    sparse = tensors(activation=torch.eye(M, IC).half().to_sparse_csr())
    assert alike(plan, sparse) is None
    with pytest.raises(BaracudaError, match="activation"):
        plan.run(None, bp.Workspace.NONE, sparse)


@pytest.mark.parametrize("pending", ["conj", "_neg_view"])
def test_a_complex_tensor_with_a_pending_sign_is_not_alike(pending):
    op = toy_op("complex", [ToyKernel("host", bp.ElementKind.COMPLEX32, function=lambda desc, x, y: None)])
    registry = new_registry()
    registry.register_backend(bp.default_registry().backend("host"))
    registry.register(op)
    plan = registry.select(op.descriptor(2, element=bp.ElementKind.COMPLEX32), "host")
    x, y = torch.view_as_complex(torch.randn(2, 4, 2)), torch.zeros(2, 4, dtype=torch.complex64)
    plan.run(None, bp.Workspace.NONE, op.args(x, y))
    assert alike(plan, op.args(x.clone(), y)) is not None
    turned = getattr(torch if pending == "_neg_view" else torch.Tensor, pending)(x)
    assert alike(plan, op.args(turned, y)) is None
    with pytest.raises(BaracudaError, match="pending"):
        plan.run(None, bp.Workspace.NONE, op.args(turned, y))
