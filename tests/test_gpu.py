"""The laws of `baracuda_py.testing` over every GPU kernel of the default registry, and capture from torch."""

from __future__ import annotations

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.testing.calls import Call, Case, cases
from baracuda_py.testing.data import POISONS
from baracuda_py.testing.harness import laws_for
from baracuda_py.vocab.enums import ArchSku, ElementKind

pytestmark = pytest.mark.gpu

REGISTRY = bp.default_registry()
SKUS = [sku for sku in REGISTRY.skus() if sku.arch is not ArchSku.HOST]


def _cases(sku):
    device = REGISTRY.device(0)
    kernel = REGISTRY.kernel(sku)
    if not device.loads(sku.arch):
        pytest.skip(f"{sku.arch.name.lower()} code does not run on {device}")
    missing = REGISTRY.backend(kernel.code.executor).missing(kernel.code, device)
    if missing is not None:
        pytest.skip(str(missing))
    return cases(REGISTRY, device, kernel)


@pytest.mark.parametrize("sku", SKUS, ids=str)
def test_every_gpu_kernel_keeps_the_laws_on_the_examples_of_its_op(sku):
    broken, checked = [], 0
    for case in _cases(sku):
        for law in laws_for(case):
            checked += 1
            try:
                law(case)
            except AssertionError as error:
                broken.append(f"{law.__name__}, {case}: {error}")
            except Exception as error:  # a driver error may be final for the process: the first one tells the most
                error.add_note(f"{law.__name__}, {case}; broken before: {broken or 'nothing'}")
                raise
    assert checked
    assert not broken, "\n".join(broken)


def _torch_tensor(torch, memory):
    """A torch tensor on the GPU with the values of fenced memory."""
    values = memory.values()
    if memory.view.element is ElementKind.BF16:
        return torch.from_numpy(values.view(np.int16)).cuda().view(torch.bfloat16)
    if memory.view.element is ElementKind.FP8_E4M3:
        return torch.from_numpy(values.view(np.uint8)).cuda().view(torch.float8_e4m3fn)
    if values.dtype == np.uint32:
        values = values.view(np.int32)
    return torch.from_numpy(values).cuda()


def _captured_by_torch(torch, case: Case) -> None:
    call = Call.of(case)
    expected = call.run()
    call.poison(POISONS[0])
    tensors = {name: None if memory is None else _torch_tensor(torch, memory) for name, memory in call.tensors.items()}
    args = case.op.args(**tensors)
    nbytes = case.plan.workspace_size
    workspace = bp.Workspace.NONE
    if nbytes:
        workspace = bp.Workspace.borrowed(torch.empty(nbytes, dtype=torch.uint8, device="cuda"))
    initial = {name: tensors[name].clone() for name in expected}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.plan.run(None, workspace, args)
    for _ in range(2):
        for name, values in initial.items():
            tensors[name].copy_(values)
        graph.replay()
        torch.cuda.synchronize()
        for name, values in expected.items():
            found = tensors[name].contiguous().view(torch.uint8).cpu().numpy().tobytes()
            assert found == values.tobytes(), f"{name}: a replayed torch graph differs from a run"


def test_what_is_loaded_allocated_or_freed_during_a_capture_does_not_end_it():
    torch = pytest.importorskip("torch")
    x = torch.randn(4, 8, device="cuda")
    y = torch.full_like(x, np.nan)
    warm = bp.select(bp.SoftmaxDescriptor((4, 8)), 0)
    garbage = bp.empty((1 << 20,), ElementKind.F32, 0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # in the mode "global", which lets no thread of the process do such a thing
        garbage.free()
        made = bp.empty((1 << 20,), ElementKind.F32, 0)
        fresh = bp.default_registry().plan(warm.sku, bp.SoftmaxDescriptor((4, 8)), 0)
        fresh.run(None, bp.allocate_workspace(fresh), bp.SoftmaxArgs(x, y))
    graph.replay()
    torch.cuda.synchronize()
    assert made.pointer
    assert torch.allclose(y, torch.softmax(x, -1), atol=1e-6)


@pytest.mark.parametrize("sku", SKUS, ids=str)
def test_torch_captures_every_gpu_kernel_on_its_current_stream(sku):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    checked = 0
    for case in _cases(sku):
        if not case.empty:
            _captured_by_torch(torch, case)
            checked += 1
    assert checked
