"""Calls of `AwqLinear` behind the first, which only find addresses: on the CPU over a launch that runs at addresses."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import weakref
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.interop.torch import kept
from baracuda_py.plan import Plan

sys.path.insert(0, str(Path(__file__).parent))
from test_torch_linear import IC, LAYOUTS, OC, close, filled

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def launched(monkeypatch):
    """Addresses of each launch that no check came before; host kernels stand in for what only needs addresses."""
    found = []

    def relocatable(plan, args, workspace=bp.Workspace.NONE, *, overlap=False):
        executable, _, views = plan._ready(None, workspace, args)
        if executable is None:
            return None
        forms = [None if view is None else view.moved(view.pointer, None) for view in views]

        def launch(owner, workspace, addresses):
            assert owner.data_ptr() == addresses[0]
            found.append(addresses)
            operands = zip(forms, addresses, strict=True)
            executable.run(0, workspace, [None if form is None else form.moved(at, None) for form, at in operands])

        return launch

    monkeypatch.setattr(Plan, "relocatable", relocatable)
    monkeypatch.setattr(kept, "plans", {})
    monkeypatch.setattr(kept, "launches", {})
    return found


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_second_call_of_a_shape_only_launches(launched, layout, bias):
    module, w = filled(layout, bias=bias)
    for shape in ((IC,), (3, IC), (2, 5, IC), (1, 1, IC)):
        for again in (False, True):
            launched.clear()
            x = torch.randn(shape).half()
            y = module(x)
            assert y.shape == (*shape[:-1], OC)
            close(y, x, w, module.bias)
            assert len(launched) == again
    absent = [address == 0 for address in launched[0]]
    assert absent == [False, False, layout.holds_scales, layout.holds_scales, False, not bias]


def test_rows_that_are_to_be_fp8_are_not_launched_as_16_bits(launched):
    module, _ = filled(bp.AwqWeightLayout.TILED)
    other, _ = filled(bp.AwqWeightLayout.TILED)
    few, many = torch.randn(2, IC).half(), torch.randn(8, IC).half()
    for _ in range(2):
        other(many)  # of the same sizes: its launches are shared
        plain = module(many)
    module.fp8_rows = 4
    module(few)
    launched.clear()
    module(few)
    assert len(launched) == 1
    for _ in range(2):
        assert not torch.equal(module(many), plain)
    assert len(launched) == 1
    module.fp8_rows = None
    assert torch.equal(module(many), plain)


def test_an_input_that_lies_otherwise_is_checked(launched):
    module, w = filled()
    x = torch.randn(4, IC).half()
    module(x)
    wide = torch.zeros(4 * IC + 8).half()
    for other in (
        x.t().contiguous().t(), wide[1 : 4 * IC + 1].view(4, IC).copy_(x), torch._neg_view(-x), x[:1].expand(4, -1),
    ):  # fmt: skip
        launched.clear()
        close(module(other), other, w, module.bias)
        assert not launched
    launched.clear()
    with pytest.raises(InvalidProblem, match=f"must have {IC}"):
        module(torch.zeros(4, IC + 8).half())
    with pytest.raises(Unsupported, match="F32"):
        module(x.float())
    assert not launched


def test_what_was_checked_is_not_checked_once_more(launched, monkeypatch):
    module, _ = filled()
    x = torch.randn(4, IC).half()
    asked = []
    before = Plan.relocatable
    monkeypatch.setattr(Plan, "relocatable", lambda *given, **named: asked.append(1) or before(*given, **named))
    for other in (x, x, x.t().contiguous().t(), x.t().contiguous().t()):
        module(other)
    assert len(asked) == 1


def test_other_weights_are_checked_and_taken(launched):
    module, w = filled()
    x = torch.randn(2, IC).half()
    module(x)
    module(x)
    for part in ("qweight", "scales", "qzeros", "bias"):
        launched.clear()
        module._buffers[part] = module._buffers[part].clone()  # as offloading does
        close(module(x), x, w, module.bias)
        assert not launched
        module(x)
        assert len(launched) == 1
    module.bias = torch.full((OC,), 3.0).half()
    close(module(x), x, w, module.bias)
    module.bias.fill_(-5)  # in place: the same memory
    launched.clear()
    close(module(x), x, w, module.bias)
    assert len(launched) == 1
    module.scales = module.scales[:1]
    with pytest.raises(InvalidProblem):
        module(x)


def test_other_data_of_the_same_tensors_is_checked_and_taken(launched):
    module, w = filled()
    x = torch.randn(2, IC).half()
    for part in ("qweight", "scales", "qzeros", "bias"):
        module(x)
        module(x)
        buffer = getattr(module, part)
        buffer.data = buffer.data.clone()
        launched.clear()
        close(module(x), x, w, module.bias)
        assert not launched
        module(x)
        assert len(launched) == 1
    before = module.scales.data
    for dtype in (torch.bfloat16, torch.float16):
        module.scales.data = before.to(dtype)
        launched.clear()
        torch.testing.assert_close(module(x).double(), x.double() @ w.T + module.bias, rtol=0.05, atol=0.05)
        assert not launched
    module(x)
    module.scales.data = module.scales.data.view(torch.bfloat16)  # at the same address
    launched.clear()
    module(x)
    assert not launched
    module.scales.data = before
    module(x)
    module.qweight.data = module.qweight.data[: IC // 2].clone()
    with pytest.raises(InvalidProblem):
        module(x)
    assert not launched


def test_weights_of_another_form_are_not_taken_for_those_before(launched):
    module, w = filled(dtype=torch.bfloat16)
    x = torch.randn(2, IC).half()
    for layout in (*LAYOUTS, LAYOUTS[0]):
        module.repack_(layout)
        for _ in range(2):
            close(module(x), x, w, module.bias)
    module.repack_(bp.AwqWeightLayout.HF_GEMM)
    module(x)
    other, v = filled(dtype=torch.float16)
    module.load_state_dict(other.state_dict())
    for _ in range(2):
        close(module(x), x, v, module.bias)


def test_modules_of_one_sort_share_launches_and_keep_their_weights(launched):
    one, w = filled()
    two = copy.deepcopy(one)
    two.scales.mul_(2)
    x = torch.randn(3, IC).half()
    for _ in range(2):
        close(one(x), x, w, one.bias)
        close(two(x), x, 2 * w, two.bias)
    assert len(kept.launches) == 1


def test_a_bias_of_another_dtype_is_read_at_each_call(launched):
    module, w = filled(dtype=torch.bfloat16)
    x = torch.randn(3, IC).half()
    for value in (1.0, 2.0, 3.0):
        module.bias.fill_(value)
        close(module(x), x, w, module.bias)
    assert len(launched) == 2


def test_a_workspace_lives_as_long_as_the_launch(launched, monkeypatch):
    seen = []

    def relocatable(plan, args, workspace, *, overlap=False, before=Plan.relocatable):
        launch = before(plan, args, overlap=overlap)

        def checked(owner, room, addresses):
            seen.append(room)
            between = torch.empty(4096, dtype=torch.uint8)  # what was freed would be given out again
            assert between.data_ptr() != room
            launch(owner, room, addresses)

        return checked

    monkeypatch.setattr(Plan, "relocatable", relocatable)
    module, w = filled()
    x = torch.randn(3, IC).half()
    module(x)
    (launches,) = kept.launches.values()
    launches.update({key: (launch, shape, 4096) for key, (launch, shape, _) in launches.items()})
    close(module(x), x, w, module.bias)
    assert seen[0] != 0


def test_old_weights_are_not_kept_alive(launched):
    module, _ = filled()
    x = torch.randn(2, IC).half()
    module(x)
    module(x)
    old = [weakref.ref(buffer) for buffer in module.buffers()]
    for part in ("qweight", "scales", "qzeros", "bias"):
        setattr(module, part, None)
    gc.collect()
    assert [ref() for ref in old] == [None] * 4


def test_what_was_checked_is_not_pickled(launched):
    module, w = filled()
    x = torch.randn(2, IC).half()
    module(x)
    again = pickle.loads(pickle.dumps(module))
    launched.clear()
    close(again(x), x, w, again.bias)
    assert not launched


def test_gradients_are_refused_still(launched):
    module, _ = filled()
    x = torch.randn(2, IC).half()
    module(x)
    with pytest.raises(RuntimeError, match="no gradient"):
        module(x.requires_grad_())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_first_call_with_strided_rows_leaves_nothing_for_contiguous_ones(launched, layout):
    module, w = filled(layout)
    prefill = torch.randn(2, 7, IC).half()
    close(module(prefill[:, -1:, :]), prefill[:, -1:, :], w, module.bias)  # as the head is given the last positions
    step = torch.randn(2, 1, IC).half()
    for _ in range(2):
        close(module(step), step, w, module.bias)
    assert launched, "contiguous ones are launched"
    close(module(prefill[:, -1:, :]), prefill[:, -1:, :], w, module.bias)
