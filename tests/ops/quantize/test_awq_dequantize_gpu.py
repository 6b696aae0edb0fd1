"""AWQ dequantisation on the GPU, at the shapes of real layers: the bits that the host makes."""

from __future__ import annotations

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.ops.quantize.awq_dequantize import OP
from baracuda_py.testing.data import inputs_for
from baracuda_py.vocab.elements import numpy_dtype

pytestmark = pytest.mark.gpu

SIZES = ((896, 896, 64), (4096, 4096, 128), (10944, 2048, 32), (4864, 1032, -1))
ELEMENTS = (bp.ElementKind.F16, bp.ElementKind.BF16, bp.ElementKind.F32)


@pytest.mark.parametrize(("ic", "oc", "group_size"), SIZES)
@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
@pytest.mark.parametrize("order", [bp.LayoutSku.RRR, bp.LayoutSku.RCR], ids=lambda order: order.name)
def test_the_gpu_makes_the_bits_that_the_host_makes(ic, oc, group_size, layout, element, order):
    desc = bp.Int4AwqDequantizeDescriptor(ic, oc, group_size, layout, element, layout=order)
    inputs = inputs_for(OP, desc)
    results = []
    for device in ("host", 0):
        placed = {
            name: array if array is None or device == "host" else bp.to_device(array, device)
            for name, array in inputs.items()
        }
        output = np.full(desc.output_shape, np.nan, numpy_dtype(element))
        output = output if device == "host" else bp.to_device(output, device)
        bp.select(desc, device).run(None, bp.Workspace.NONE, bp.Int4AwqDequantizeArgs(**placed, output=output))
        results.append(output if device == "host" else output.numpy())
    assert results[1].tobytes() == results[0].tobytes()
