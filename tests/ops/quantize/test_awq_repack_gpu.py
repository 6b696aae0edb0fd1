"""AWQ repacking on the GPU, at the shapes of real layers: the bytes that the host makes."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.ops.quantize.awq_repack import OP
from baracuda_py.testing.data import inputs_for

pytestmark = pytest.mark.gpu


SIZES = [
    (ic, oc, group_size)
    for ic, oc in ((896, 896), (4096, 4096), (14336, 1032), (10944, 2048))
    for group_size in (32, 64, 128, -1)
    if group_size == -1 or ic % group_size == 0
]


@pytest.mark.parametrize(("ic", "oc", "group_size"), SIZES)
@pytest.mark.parametrize(
    ("source", "target"), permutations(bp.AwqWeightLayout, 2), ids=lambda layout: layout.name.lower()
)
def test_the_gpu_makes_the_bytes_that_the_host_makes(source, target, ic, oc, group_size):
    desc = bp.Int4AwqRepackDescriptor(ic, oc, group_size, source, target)
    inputs = inputs_for(OP, desc)
    results = []
    for device in ("host", 0):
        plan = bp.select(desc, device)
        outputs = {
            spec.name: np.full(spec.shape_on(desc), -1, np.float16 if "scales" in spec.name else np.int32)
            for spec in OP.specs if spec.written and spec.needed_on(desc)
        }  # fmt: skip
        tensors = inputs | {"zeros_repacked": None} | outputs
        placed = {
            name: array if array is None or device == "host" else bp.to_device(array, device)
            for name, array in tensors.items()
        }
        plan.run(None, bp.Workspace.NONE, OP.args(**placed))
        results.append({
            name: placed[name] if device == "host" else placed[name].numpy() for name in outputs
        })  # fmt: skip
    for name, expected in results[0].items():
        assert results[1][name].tobytes() == expected.tobytes(), name
