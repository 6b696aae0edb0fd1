"""A registry with the GEMM ops over a double of cuBLASLt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from attrs import define

from baracuda_py.backends.cublaslt import CublasLtBackend
from baracuda_py.backends.host import HostBackend
from baracuda_py.backends.null import NullBackend
from baracuda_py.ops.gemm import OPS
from baracuda_py.plan import new_registry
from baracuda_py.registry import Registry
from baracuda_py.vocab.device import Device

sys.path.insert(0, str(Path(__file__).parent))

from cublaslt_double import FakeContext, FakeCublasLt, FakeCuda


@define
class Setting:
    """A registry with the GEMM ops, whose cuBLASLt is the double."""

    device: Device
    context: FakeContext
    api: FakeCublasLt
    backend: CublasLtBackend
    registry: Registry[Any]


@pytest.fixture
def setting() -> Setting:
    device = Device("cuda", 0, (9, 0), 132, "fake")
    context = FakeContext(device)
    api = FakeCublasLt(context)
    backend: Any = CublasLtBackend(FakeCuda(context), lambda: None, lambda: api)  # type: ignore[arg-type]
    registry = new_registry()
    for one in (NullBackend(device), HostBackend(), backend):
        registry.register_backend(one)
    for op in OPS:
        registry.register(op)
    return Setting(device, context, api, backend, registry)
