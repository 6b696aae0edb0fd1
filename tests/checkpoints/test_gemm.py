"""The AWQ GEMM, with weights from each format, on the host and on a GPU agrees with the generator's float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoint_files import MARLIN_SIZES, NAME, weight, write

import baracuda_py as bp
from baracuda_py import checkpoints
from baracuda_py.checkpoints import PackedFormat
from baracuda_py.cli.run import run_layer
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tolerance import relative_tolerance


@pytest.mark.parametrize("device", ["host", pytest.param(0, marks=pytest.mark.gpu)])
@pytest.mark.parametrize("layout", AwqWeightLayout)
@pytest.mark.parametrize("element", [ElementKind.F16, ElementKind.BF16])
@pytest.mark.parametrize("format", PackedFormat)
def test_the_gemm_of_each_format_agrees_with_the_oracle(format, element, layout, device, tmp_path):
    made = weight(30, *MARLIN_SIZES, 128, symmetric=format is PackedFormat.AWQ_MARLIN, least_zero=1)
    bias = np.random.default_rng(31).integers(-64, 64, MARLIN_SIZES[1]) / 8
    layer = checkpoints.open(write(tmp_path, format.value, made, bias=bias))[NAME]
    operands = layer.gemm_operands(layout)
    desc = layer.descriptor(5, element=element, layout=layout)
    plan = bp.select(desc, device)

    dtype = numpy_dtype(element)
    x = np.random.default_rng(32).standard_normal((5, layer.ic)).astype(dtype)
    y = np.full((5, layer.oc), np.nan, dtype)
    args = operands.args(x, y)
    if device != "host":
        arrays = {spec.name: getattr(args, spec.name) for spec in plan.op.specs}
        args = plan.op.args(
            **{name: None if array is None else bp.to_device(array, device) for name, array in arrays.items()}
        )
    plan.run(None, bp.allocate_workspace(plan), args)
    if device != "host":
        y = args.output.numpy()

    exact = x.astype(np.float64) @ made.exact + bias
    error = np.linalg.norm(y.astype(np.float64) - exact) / np.linalg.norm(exact)
    assert error <= relative_tolerance(plan.precision_guarantee, element)


@pytest.mark.parametrize("format", PackedFormat)
def test_the_command_line_runs_each_format(format, tmp_path):
    made = weight(33, *MARLIN_SIZES, 128, symmetric=format is PackedFormat.AWQ_MARLIN, least_zero=1)
    layer = checkpoints.open(write(tmp_path, format.value, made, bias=np.ones(MARLIN_SIZES[1])))[NAME]
    outcome = run_layer(layer, 3, device="host", repeat=1)
    assert outcome.passed
    assert outcome.relative_error > 0
