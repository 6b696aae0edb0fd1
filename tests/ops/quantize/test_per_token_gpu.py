"""Quantisation to fp8 with a scale a token on the GPU, at the shapes of real layers: the bits that the host makes."""

from __future__ import annotations

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.vocab.elements import numpy_dtype

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("element", [bp.ElementKind.F16, bp.ElementKind.BF16, bp.ElementKind.F32], ids=lambda e: e.name)
@pytest.mark.parametrize(("rows", "columns"), [(1, 4096), (17, 896), (512, 14336), (3, 28672), (64, 4095)])
def test_the_gpu_makes_the_bits_that_the_host_makes(rows, columns, element):
    random = np.random.default_rng(rows)
    sizes = 10.0 ** random.integers(-3, 4, (rows, 1))
    x = (random.standard_normal((rows, columns)) * sizes).astype(numpy_dtype(element))
    desc = bp.QuantizePerTokenDescriptor(rows, columns, element)
    results = []
    for device in ("host", 0):
        arrays = [x, np.zeros(x.shape, numpy_dtype(bp.ElementKind.FP8_E4M3)), np.full(rows, np.nan, np.float32)]
        placed = arrays if device == "host" else [bp.to_device(array, device) for array in arrays]
        bp.select(desc, device).run(None, bp.Workspace.NONE, bp.QuantizePerTokenArgs(*placed))
        results.append([one if device == "host" else one.numpy() for one in placed[1:]])
    for here, there in zip(*results, strict=True):
        assert here.tobytes() == there.tobytes()
