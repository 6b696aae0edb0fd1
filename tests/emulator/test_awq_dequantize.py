"""AWQ dequantisation on the emulated GPU: there is one rounding, so the bits are the host's."""

from __future__ import annotations

import pytest
from cuda_emulator.problems import cuda_kernels, problems

from baracuda_py.testing.calls import Call, Case
from baracuda_py.testing.data import same_bits
from baracuda_py.vocab.enums import ArchSku, QuantizeKind

KERNELS = [kernel for kernel in cuda_kernels() if kernel.sku.kind is QuantizeKind.INT4_AWQ_DEQUANTIZE]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: str(kernel.sku))
def test_a_kernel_makes_the_bits_that_the_host_makes(kernel, registry):
    checked = 0
    for case in problems(registry, kernel):
        sku = kernel.sku
        [on_host] = registry.skus(
            op=sku.kind, element=sku.element, layout=sku.layout, arch=ArchSku.HOST, variant="numpy"
        )
        host = Case(registry, case.op, registry.kernel(on_host), case.descriptor, registry.device("host"))
        assert same_bits(Call.of(case).run(), Call.of(host).run()), str(case)
        checked += 1
    assert checked
