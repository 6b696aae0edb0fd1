"""baracuda_py: one registry and one calling style (descriptor -> select -> plan -> run) for ML kernels.

Importing it loads no NumPy, no framework and no CUDA; names are resolved when they are first used.
"""

from __future__ import annotations

import threading
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from baracuda_py import errors as errors
    from baracuda_py.arrays import allocate_workspace as allocate_workspace
    from baracuda_py.arrays import to_device as to_device
    from baracuda_py.ops.gemm.dense_gemm import DenseGemmArgs as DenseGemmArgs
    from baracuda_py.ops.gemm.dense_gemm import DenseGemmDescriptor as DenseGemmDescriptor
    from baracuda_py.ops.gemm.dense_gemm import GeluForm as GeluForm
    from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout as AwqWeightLayout
    from baracuda_py.ops.quantize.awq_gemm import Int4AwqGemmArgs as Int4AwqGemmArgs
    from baracuda_py.ops.quantize.awq_gemm import Int4AwqGemmDescriptor as Int4AwqGemmDescriptor
    from baracuda_py.plan import Plan as Plan
    from baracuda_py.registry import Explanation as Explanation
    from baracuda_py.registry import Kernel as Kernel
    from baracuda_py.registry import Op as Op
    from baracuda_py.registry import Registry as Registry
    from baracuda_py.vocab.device import Device as Device
    from baracuda_py.vocab.enums import ArchSku as ArchSku
    from baracuda_py.vocab.enums import BackendKind as BackendKind
    from baracuda_py.vocab.enums import ElementKind as ElementKind
    from baracuda_py.vocab.enums import EpilogueKind as EpilogueKind
    from baracuda_py.vocab.enums import LayoutSku as LayoutSku
    from baracuda_py.vocab.enums import MathPrecision as MathPrecision
    from baracuda_py.vocab.enums import OpCategory as OpCategory
    from baracuda_py.vocab.enums import QuantizeKind as QuantizeKind
    from baracuda_py.vocab.enums import SoftmaxKind as SoftmaxKind
    from baracuda_py.vocab.preference import PlanPreference as PlanPreference
    from baracuda_py.vocab.preference import Workspace as Workspace
    from baracuda_py.vocab.sku import KernelSku as KernelSku
    from baracuda_py.vocab.sku import PrecisionGuarantee as PrecisionGuarantee
    from baracuda_py.vocab.tensors import TensorMut as TensorMut
    from baracuda_py.vocab.tensors import TensorRef as TensorRef

    DenseGemmPlan: type[Plan]
    Int4AwqGemmPlan: type[Plan]

__version__ = "0.1.0"

# Modules whose `__all__` is public here. The ops' descriptors, args and plans come on top (`_op_names`).
_PUBLIC_MODULES = (
    "arrays",
    "registry",
    "plan",
    "vocab.device",
    "vocab.enums",
    "vocab.preference",
    "vocab.sku",
    "vocab.tensors",
)


_registry: Registry[Plan] | None = None
_registry_lock = threading.Lock()


def default_registry() -> Registry[Plan]:
    """The registry of the built-in ops and backends, and of installed plug-ins; made at the first call."""
    global _registry
    if _registry is None:
        with _registry_lock:  # functools.cache would let two first callers make one each
            if _registry is None:
                _registry = _make_default_registry()
    return _registry


def _make_default_registry() -> Registry[Plan]:
    from baracuda_py.backends.cublaslt import CublasLtBackend
    from baracuda_py.backends.cuda import CudaBackend
    from baracuda_py.backends.host import HostBackend
    from baracuda_py.backends.sequence import SequenceBackend
    from baracuda_py.ops import builtin_ops
    from baracuda_py.plan import new_registry
    from baracuda_py.tuning import table_for

    registry = new_registry(plugins=True, tables=table_for)
    cuda = CudaBackend()
    for backend in (HostBackend(), cuda, CublasLtBackend(cuda), SequenceBackend(registry.backend)):
        registry.register_backend(backend)
    for op in builtin_ops():
        registry.register(op)
    return registry


def select(descriptor: Any, device: Any = None, preference: PlanPreference | None = None) -> Plan:
    """The plan of the best kernel for `descriptor`; see `Registry.select`."""
    return default_registry().select(descriptor, device, preference)


def explain(descriptor: Any, device: Any = None, preference: PlanPreference | None = None) -> Explanation:
    """Why `select` takes the kernel it takes; see `Registry.explain`."""
    return default_registry().explain(descriptor, device, preference)


@cache
def _op_names() -> dict[str, Any]:
    from baracuda_py.ops import builtin_ops
    from baracuda_py.plan import plan_class

    names: dict[str, Any] = {}
    for op in builtin_ops():
        module = import_module(op.descriptor.__module__)
        names |= {name: getattr(module, name) for name in module.__all__ if name != "OP"}
        named = plan_class(op)
        names[named.__name__] = named
    return names


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "errors":
        return import_module(f"{__name__}.errors")
    for path in _PUBLIC_MODULES:
        module = import_module(f"{__name__}.{path}")
        if name in module.__all__:
            value = globals()[name] = getattr(module, name)
            return value
    if name in _op_names():
        value = globals()[name] = _op_names()[name]
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    names = {name for path in _PUBLIC_MODULES for name in import_module(f"{__name__}.{path}").__all__}
    return sorted(names | set(_op_names()) | {"default_registry", "select", "explain", "errors"})
