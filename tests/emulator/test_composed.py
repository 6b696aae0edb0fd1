"""Kernels made of others, on the emulated GPU: the launches that a plan shows are those that it runs."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_emulator.problems import composed_kernels, problems

from baracuda_py.ops.quantize.awq_dequantize import OP as DEQUANTIZE
from baracuda_py.ops.quantize.awq_dequantize import Int4AwqDequantizeDescriptor
from baracuda_py.testing.calls import Call
from baracuda_py.vocab.code import PtxCode
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import EpilogueKind, LayoutSku
from baracuda_py.vocab.preference import Workspace

KERNELS = [kernel for kernel in composed_kernels() if kernel.sku.epilogue is EpilogueKind.IDENTITY]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: str(kernel.sku))
def test_the_launches_that_a_plan_shows_leave_the_dense_weight_at_the_start_of_the_workspace(kernel, registry, backend):
    checked = 0
    for case in problems(registry, kernel):
        call, desc = Call.of(case), case.descriptor
        shown = PtxCode("none", kernel.sku.arch, lambda _desc, _device, plan=case.plan: plan.launches)
        names = tuple(call.tensors)
        executable = backend.prepare(shown, desc, case.device, names, str(case))
        operands = [None if memory is None else memory.view for memory in call.tensors.values()]
        executable.run(0, call.workspace.pointer, operands)
        turned = desc.weight_layout.value != "hf_gemm"
        dense = Int4AwqDequantizeDescriptor(
            desc.ic, desc.oc, desc.group_size, desc.weight_layout, desc.element, desc.scales_kind,
            LayoutSku.RCR if turned else LayoutSku.RRR,
        )  # fmt: skip
        expected = np.empty(dense.output_shape, numpy_dtype(desc.element))
        given = {name: None if memory is None else memory.values() for name, memory in call.tensors.items()}
        args = DEQUANTIZE.args(given["weight_packed"], given["scales"], given["zeros"], expected)
        registry.select(dense, "host").run(None, Workspace.NONE, args)
        assert call.workspace_memory.values()[: expected.nbytes].tobytes() == expected.tobytes(), str(case)
        checked += 1
    assert checked
