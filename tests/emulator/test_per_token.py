"""Quantisation to fp8 on the emulated GPU makes the host's bits: for every tie, what is not finite, and any shape."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from cuda_emulator.problems import cuda_kernels, problems

import baracuda_py as bp
from baracuda_py.testing.calls import Call, Case
from baracuda_py.testing.data import same_bits
from baracuda_py.vocab.enums import ArchSku, QuantizeKind

KERNELS = [kernel for kernel in cuda_kernels() if kernel.sku.kind is QuantizeKind.PER_TOKEN]
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: str(kernel.sku))
def test_a_kernel_makes_the_bits_that_the_host_makes(kernel, registry):
    for case in problems(registry, kernel):
        [on_host] = registry.skus(op=kernel.sku.kind, element=kernel.sku.element, arch=ArchSku.HOST)
        host = Case(registry, case.op, registry.kernel(on_host), case.descriptor, registry.device("host"))
        assert same_bits(Call.of(case).run(), Call.of(host).run()), str(case)


def _run(registry, device, x):
    arrays = [x, np.zeros(x.shape, E4M3), np.full(len(x), np.nan, np.float32)]
    placed = arrays if device == "host" else [bp.to_device(array, device) for array in arrays]
    desc = bp.QuantizePerTokenDescriptor(*x.shape, bp.ElementKind.F32)
    registry.select(desc, device).run(None, bp.Workspace.NONE, bp.QuantizePerTokenArgs(*placed))
    return [one if device == "host" else one.numpy() for one in placed[1:]]


def test_every_tie_and_its_neighbours_and_what_is_not_finite(registry):
    values = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
    values = np.sort(values[np.isfinite(values)])
    ties = (values[1:] + values[:-1]) / 2
    near = [np.nextafter(ties, np.float32(sign * np.inf)) for sign in (1, -1)]
    row = np.concatenate([[448], values, ties, *near, [np.nan]]).astype(np.float32)
    x = np.stack([row, row * np.float32(0.37), np.where(row == 448, np.inf, row), row * 0, row * np.float32(2.0**-140)])
    here, there = _run(registry, "host", x), _run(registry, 0, x)
    nan = [np.isnan(found[0].astype(np.float32)) for found in (here, there)]
    np.testing.assert_array_equal(*nan)  # the sign of a NaN is left open
    np.testing.assert_array_equal(here[0].view(np.uint8)[~nan[0]], there[0].view(np.uint8)[~nan[0]])
    np.testing.assert_array_equal(here[1], there[1])
    np.testing.assert_array_equal(here[0][0, 1 : 1 + len(values)].astype(np.float32), values)
