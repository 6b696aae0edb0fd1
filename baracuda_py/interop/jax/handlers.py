"""What XLA calls: the problem from the call's attribute, the plan from the registry, tensors and workspace from XLA.

The attribute is the problem as text, so that an executable that was saved, or cached on disk by JAX, means the same in
another process. The plan is selected where the call lands.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from typing import Any, Self

from attrs import field, frozen

from baracuda_py.errors import InvalidProblem, NoKernel
from baracuda_py.interop.jax.frames import Frame
from baracuda_py.interop.signatures import Signature
from baracuda_py.plan import Plan
from baracuda_py.registry import Op, Registry
from baracuda_py.vocab.descriptors import TensorSpec, from_fields, to_fields
from baracuda_py.vocab.device import HOST, Device
from baracuda_py.vocab.preference import PlanPreference, Workspace
from baracuda_py.vocab.tensors import HOST_MEMORY

__all__ = ["Problem", "on_cuda", "on_the_host"]

_PROBLEMS_KEPT = 4096  # read from their text; an engine with ragged m has one a descriptor


@frozen(cache_hash=True, repr=False)
class Problem:
    """What a call computes, and of which arrays.

    Attributes:
        op: the operation.
        descriptor: of it.
        preference: what selection is told.
        inputs: arguments of the XLA call, in order.
        outputs: its results, in order; behind them, one more where a plan needs a workspace.
    """

    op: Op
    descriptor: Any
    preference: PlanPreference | None = None
    inputs: tuple[TensorSpec, ...] = field(init=False, eq=False)
    outputs: tuple[TensorSpec, ...] = field(init=False, eq=False)

    @inputs.default
    def _inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in Signature.of(self.op).inputs if spec.needed_on(self.descriptor))

    @outputs.default
    def _outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(spec for spec in self.op.specs if spec.written and spec.needed_on(self.descriptor))

    def __repr__(self) -> str:  # a jaxpr shows it
        return repr(self.descriptor)

    def text_for(self, plan: Plan) -> str:
        """What `read` makes a problem from; with a preference, it is pinned to the kernel that was chosen by it."""
        told: dict[str, Any] = {"op": self.op.name, "descriptor": to_fields(self.descriptor)}
        if self.preference is not None:
            told["sku"] = str(plan.sku)
        return json.dumps(told, sort_keys=True)

    @classmethod
    def read(cls, registry: Registry[Plan], text: bytes) -> Self:
        """The problem of a text; the registry's error where it has no such op or kernel."""
        told = json.loads(text)
        op = registry.op(told["op"])
        pinned = PlanPreference(sku=registry.kernel(told["sku"]).sku) if "sku" in told else None
        return cls(op, from_fields(op.descriptor, told["descriptor"]), pinned)

    def run(self, registry: Registry[Plan], where: Device, frame: Frame, stream: int, device: int) -> None:
        """Enqueue it on the memory that XLA gave.

        A saved program lends what the kernel needed that was selected where it was made. Where another one would be
        taken now that needs more, the best that makes do is.
        """
        plan = registry.select(self.descriptor, where, self.preference)
        arguments, results = frame.arguments(device), frame.results(device)
        lent = results[len(self.outputs) :]
        tensors: dict[str, Any] = {spec.name: None for spec in self.op.specs}
        tensors |= {spec.name: view for spec, view in zip(self.inputs, arguments, strict=True)}
        for spec, view in zip(self.outputs, results[: len(self.outputs)], strict=True):
            before = tensors[spec.name]
            if before is not None and before.pointer != view.pointer:
                raise InvalidProblem(
                    f"{self.op.name}: {spec.name}", "XLA must give the argument and the result one buffer", rule="alias"
                )
            tensors[spec.name] = view
        workspace = Workspace(lent[0].pointer, lent[0].span_bytes, device) if lent else Workspace.NONE
        if plan.workspace_size > workspace.nbytes and self.preference is None:
            with suppress(NoKernel):  # then the error is that the workspace is too small
                plan = registry.select(self.descriptor, where, PlanPreference(max_workspace_bytes=workspace.nbytes))
        plan.run(stream, workspace, self.op.args(**tensors))


def _reader(registry: Registry[Plan]) -> Callable[[bytes], Problem]:
    @lru_cache(maxsize=_PROBLEMS_KEPT)
    def read(text: bytes) -> Problem:
        return Problem.read(registry, text)

    return read


def on_the_host(registry: Registry[Plan]) -> Callable[[Frame], None]:
    """What a handler for XLA's CPU platform does."""
    read = _reader(registry)

    def call(frame: Frame) -> None:
        with _usual_arithmetic():
            problem = read(frame.only_attribute())
            problem.run(registry, HOST, frame, 0, HOST_MEMORY)

    return call


def on_cuda(registry: Registry[Plan]) -> Callable[[Frame], None]:
    """What a handler for XLA's CUDA platform does: it enqueues, and neither allocates nor waits."""
    read = _reader(registry)

    @cache
    def device_of(ordinal: int) -> Device:
        return registry.device(ordinal)

    def call(frame: Frame) -> None:
        problem, ordinal = read(frame.only_attribute()), frame.ordinal()
        problem.run(registry, device_of(ordinal), frame, frame.stream(), ordinal)

    return call


@cache
def _floating_point() -> Any:
    """glibc's fegetenv and fesetenv; None elsewhere."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.PyDLL("libm.so.6")
    except OSError:
        return None
    library.fegetenv.argtypes = library.fesetenv.argtypes = (ctypes.c_void_p,)
    return library


@contextmanager
def _usual_arithmetic() -> Iterator[None]:
    """A block that computes with subnormal numbers: XLA has its CPU threads take them for zero."""
    library = _floating_point()
    if library is None:
        yield
        return
    before = (ctypes.c_uint64 * 8)()  # fenv_t: 32 bytes on x86-64, 8 on aarch64
    library.fegetenv(before)
    library.fesetenv(-1)  # FE_DFL_ENV
    try:
        yield
    finally:
        library.fesetenv(before)
