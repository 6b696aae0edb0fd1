"""Laws of AWQ dequantisation beyond those that hold for every op."""

from __future__ import annotations

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.errors import MisalignedOperand, NoKernel
from baracuda_py.sys import module

TILED = bp.AwqWeightLayout.TILED
ORDERS = {bp.LayoutSku.RRR: "ic_oc", bp.LayoutSku.RCR: "oc_ic"}


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
@pytest.mark.parametrize("element", [bp.ElementKind.F16, bp.ElementKind.BF16, bp.ElementKind.F32], ids=lambda e: e.name)
@pytest.mark.parametrize(("ic", "oc", "blocks"), [(4096, 4096, 2048), (32, 8, 1), (160, 72, 4)])
def test_tiled_weights_take_a_thread_block_for_64_by_128_channels(ic, oc, blocks, element, order):
    desc = bp.Int4AwqDequantizeDescriptor(ic, oc, 32, TILED, element, layout=order)
    (launch,) = bp.select(desc, "sm_80").launches
    assert launch.entry == f"awq_dequantize_sm80_{element.name.lower()}_tiled_{ORDERS[order]}"
    assert launch.grid == (blocks, 1, 1)
    assert launch.block == (module("quantize.awq_dequantize.tiled", "sm80").constant("kTiledThreads"), 1, 1)


def test_a_grid_holds_the_largest_tiled_weights_that_are_taken():
    for ic, oc in ((1 << 17, 1 << 26), (1 << 26, 1 << 17)):
        (launch,) = bp.select(bp.Int4AwqDequantizeDescriptor(ic, oc, 32, TILED), "sm_80").launches
        assert launch.grid[0] < 1 << 31
        with pytest.raises(NoKernel, match="a grid has at most"):
            bp.select(bp.Int4AwqDequantizeDescriptor(2 * ic, oc, 32, TILED), "sm_80")


def test_tiled_weights_must_be_aligned_for_loads_of_16_bytes():
    desc = bp.Int4AwqDequantizeDescriptor(128, 64, 128, TILED)
    output = bp.TensorMut(0x20000, (128, 64), bp.ElementKind.F16)
    plan = bp.select(desc, "sm_80")
    for address in (0x10000, 0x10010):
        weight = bp.TensorRef(address, desc.weight_shape, bp.ElementKind.I32)
        assert plan.can_implement(bp.Int4AwqDequantizeArgs(weight, None, None, output))
    weight = bp.TensorRef(0x10008, desc.weight_shape, bp.ElementKind.I32)
    with pytest.raises(MisalignedOperand):
        plan.can_implement(bp.Int4AwqDequantizeArgs(weight, None, None, output))


@pytest.mark.parametrize("layout", bp.AwqWeightLayout, ids=lambda layout: layout.name)
def test_both_orders_are_transposes_of_each_other(layout):
    from baracuda_py.ops.quantize.awq_dequantize import OP
    from baracuda_py.testing.data import inputs_for

    desc = bp.Int4AwqDequantizeDescriptor(224, 72, 32, layout)
    inputs = inputs_for(OP, desc)
    found = {}
    for order in ORDERS:
        turned = desc.with_layout(order)
        output = np.full(turned.output_shape, np.nan, np.float16)
        plan = bp.select(turned, "host")
        plan.run(None, bp.Workspace.NONE, bp.Int4AwqDequantizeArgs(**inputs, output=output))
        found[order] = output
    np.testing.assert_array_equal(found[bp.LayoutSku.RRR].T, found[bp.LayoutSku.RCR])
