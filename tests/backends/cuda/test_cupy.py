"""Every op on CuPy's arrays, in their memory and on CuPy's current stream: with doubles here, and marked `gpu`."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.testing.calls import Case, cases, frobenius_error, reference_outputs
from baracuda_py.testing.data import inputs_for
from baracuda_py.vocab.code import PtxCode
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ArchSku
from baracuda_py.vocab.tolerance import relative_tolerance

SKUS = [sku for sku in bp.default_registry().skus() if sku.arch is not ArchSku.HOST]


class Double:
    """As a cupy.ndarray: bf16 is described as records of two bytes."""

    __module__ = "cupy"

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: Any) -> None:
        self.dtype, self.device = np.dtype(dtype), SimpleNamespace(id=0)
        typestr = "|V2" if self.dtype == ml_dtypes.bfloat16 else self.dtype.str
        self._interface = {"shape": shape, "typestr": typestr, "data": (pointer, False), "version": 3, "strides": None}

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self._interface


def _doubles(case: Case) -> dict[str, Any]:
    """Arguments, none of which has memory, at addresses that tell them apart."""
    made: dict[str, Any] = {}
    for number, spec in enumerate(case.op.specs):
        made[spec.name] = None
        if spec.needed_on(case.descriptor):
            dtype = numpy_dtype(spec.elements_on(case.descriptor)[0])
            made[spec.name] = Double((number + 1) << 40, spec.shape_on(case.descriptor), dtype)
    return made


def test_every_op_is_launched_on_cupys_current_stream_with_its_arrays_addresses(stub: Any) -> None:
    registry, streams = bp.default_registry(), [stub.stream(0), stub.stream(0)]
    current = list(streams)
    cupy = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        get_current_stream=lambda ordinal: SimpleNamespace(ptr=current[0] if ordinal == 0 else 0)
    )
    sys.modules["cupy"] = cupy
    checked, expected = set(), []
    for case in cases(registry, registry.device(0)):
        if case.empty or not isinstance(case.kernel.code, PtxCode) or case.kernel in checked:
            continue
        arrays = _doubles(case)
        plan, workspace = case.plan, bp.Workspace.NONE
        if plan.workspace_size:
            workspace = bp.Workspace.borrowed(Double(1 << 50, (plan.workspace_size,), np.uint8))
        args = case.op.args(**arrays)
        bound = plan.bind(args, workspace)
        for stream in streams:
            current[0] = stream
            plan.run(None, workspace, args)
            bound()
            addresses = {array.__cuda_array_interface__["data"][0] for array in arrays.values() if array is not None}
            expected += [(case, stream, len(plan.launches), addresses)] * 2
        checked.add(case.kernel)
    calls = iter(stub.calls("cuLaunchKernel"))
    for case, stream, launches, addresses in expected:
        made = [next(calls) for _ in range(launches)]
        assert {call["stream"] for call in made} == {stream}, case
        # The first 8 bytes of a tensor map, as the stub writes them, are the address too.
        values = [bytes.fromhex(value) for call in made for value in call["parameters"]]
        given = {int.from_bytes(value[: 8 if len(value) == 128 else None], "little") for value in values}
        assert addresses <= given, case
    assert next(calls, None) is None
    assert {kernel.sku for kernel in checked} == {
        sku for sku in registry.skus()
        if registry.device(0).loads(sku.arch) and isinstance(registry.kernel(sku).code, PtxCode)
    }  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("sku", SKUS, ids=str)
def test_every_gpu_kernel_on_cupys_arrays_and_stream_alone_and_captured(sku: Any) -> None:
    cupy = pytest.importorskip("cupy")
    registry = bp.default_registry()
    kernel, device = registry.kernel(sku), registry.device(0)
    if not device.loads(sku.arch):
        pytest.skip(f"{sku.arch.name.lower()} code does not run on {device}")
    missing = registry.backend(kernel.code.executor).missing(kernel.code, device)
    if missing is not None:
        pytest.skip(str(missing))
    if bp.ElementKind.BF16 in (sku.element, sku.aux_element) and int(cupy.__version__.split(".")[0]) < 14:
        pytest.skip("this CuPy has no bfloat16")
    problems = list(cases(registry, device, kernel))
    elements = {one for case in problems for spec in case.op.specs for one in spec.elements_on(case.descriptor)}
    if bp.ElementKind.FP8_E4M3 in elements:
        pytest.skip("CuPy has no float8_e4m3fn")
    stream = cupy.cuda.Stream(non_blocking=True)
    checked = 0
    with stream:
        for case in problems:
            if case.empty:
                continue
            inputs = inputs_for(case.op, case.descriptor)
            exact = reference_outputs(case.op, case.descriptor, inputs)
            arrays = {name: None if one is None else cupy.asarray(one) for name, one in inputs.items()}
            for spec in case.op.specs:
                if spec.role == "out":
                    needed, dtype = spec.needed_on(case.descriptor), _dtype(spec, case)
                    arrays[spec.name] = cupy.empty(spec.shape_on(case.descriptor), dtype) if needed else None
            lent = cupy.empty(max(case.plan.workspace_size, 16), cupy.uint8)
            args, workspace = case.op.args(**arrays), bp.Workspace.borrowed(lent)
            before = {name: arrays[name].copy() for name in exact}
            addresses = {name: arrays[name].data.ptr for name in exact}

            def check(case: Case = case, arrays: Any = arrays, exact: Any = exact) -> None:
                for name, values in exact.items():
                    found = cupy.asnumpy(arrays[name])
                    limit = relative_tolerance(case.guarantee, bp.TensorRef.of(arrays[name]).element)
                    assert frobenius_error(found, values) <= limit, (name, case)

            case.plan.run(None, workspace, args)
            check()
            assert {name: arrays[name].data.ptr for name in exact} == addresses
            stream.begin_capture()
            case.plan.run(None, workspace, args)
            graph = stream.end_capture()
            for name, values in before.items():
                arrays[name][...] = values
            graph.launch(stream)
            stream.synchronize()
            check()
            checked += 1
    assert checked


def _dtype(spec: Any, case: Case) -> Any:
    return numpy_dtype(spec.elements_on(case.descriptor)[0])
