"""One JAX primitive for every op, lowered to calls of XLA's foreign function interface.

Its parameters are a `Target` and a `Problem`. Outputs and workspace are XLA's buffers: a call allocates nothing.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
from attrs import frozen
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from baracuda_py.errors import Unsupported
from baracuda_py.interop.jax.frames import Traits, handler, header_version
from baracuda_py.interop.jax.handlers import Problem, on_cuda, on_the_host
from baracuda_py.plan import Plan
from baracuda_py.registry import Registry
from baracuda_py.vocab.descriptors import TensorSpec
from baracuda_py.vocab.device import HOST
from baracuda_py.vocab.elements import numpy_dtype

__all__ = ["Target", "form", "register", "xla_call"]

_handlers: list[Any] = []  # XLA may call them as long as the process lives

xla_call = Primitive("baracuda_call")
xla_call.multiple_results = True


@frozen(repr=False)
class Target:
    """Where a call goes: what it is named in XLA, and the registry that serves it there."""

    registry: Registry[Plan]
    name: str

    def __repr__(self) -> str:  # a jaxpr shows it
        return self.name


def register(target: Target) -> None:
    """Make the target's handlers known to XLA, for backends that it has and that it will have."""
    version = header_version()
    for platform, call, traits in (
        ("cpu", on_the_host(target.registry), Traits.NONE),
        # The launches of a problem are the same at every call, and capture as those of any plan do.
        ("CUDA", on_cuda(target.registry), Traits.COMMAND_BUFFER_COMPATIBLE),
    ):
        made = handler(call, traits, version, _end_in_order)
        _handlers.append(made)
        jax.ffi.register_ffi_target(target.name, jax.ffi.pycapsule(made), platform=platform)


@cache
def _end_in_order() -> None:
    """Let the process end while XLA's threads may still want to call Python.

    JAX takes its clients down at exit with the GIL held; they wait for their threads, which wait for the GIL. So the
    clients are kept: what somebody holds is finished first, what nobody holds ends with the process.
    """

    @atexit.register  # runs before what JAX registered when it was imported
    def end() -> None:
        for client in jax.extend.backend.backends().values():
            for array in client.live_arrays():
                with suppress(Exception):  # it may have been deleted, or have failed
                    array.block_until_ready()
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def form(spec: TensorSpec, descriptor: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of a tensor."""
    return spec.shape_on(descriptor), numpy_dtype(spec.elements_on(descriptor)[0])


def _result_forms(problem: Problem, arguments: Any) -> list[tuple[tuple[int, ...], Any]]:
    """Shape and dtype of each result; what is also an argument has the argument's."""
    given = {spec.name: argument for spec, argument in zip(problem.inputs, arguments, strict=True)}
    return [
        (given[spec.name].shape, given[spec.name].dtype) if spec.name in given else form(spec, problem.descriptor)
        for spec in problem.outputs
    ]


@xla_call.def_impl
def _run_one(*arrays: Any, **parameters: Any) -> Any:
    with jax.disable_jit(False):  # XLA runs no call but a compiled one
        return jax.jit(partial(xla_call.bind, **parameters))(*arrays)


@xla_call.def_abstract_eval
def _results(*arguments: Any, target: Target, problem: Problem) -> list[Any]:
    forms = _result_forms(problem, arguments)
    if not arguments:
        return [jax.core.ShapedArray(*one) for one in forms]
    widest = max(arguments, key=lambda argument: len(_varying(argument)))
    if any(_varying(argument) - _varying(widest) for argument in arguments):
        raise Unsupported(
            problem.op.name, "inside shard_map, one array must vary along all axes that any does", rule="varying axes",
            fix="Let it vary by jax.lax.pcast, or pass check_vma=False to shard_map",
        )  # fmt: skip
    return [
        # Whole on every device: where an argument is cut, XLA gathers it.
        widest.update(
            shape=shape, dtype=dtype, weak_type=False,
            sharding=NamedSharding(widest.sharding.mesh, PartitionSpec(*(None for _ in shape))),
        )
        for shape, dtype in forms
    ]  # fmt: skip


def _varying(argument: Any) -> frozenset[Any]:
    """The axes of a shard_map along which it varies."""
    manual = getattr(argument, "mat", None)  # older versions of JAX have the axes in the type itself
    found: frozenset[Any] = getattr(argument, "vma", frozenset()) if manual is None else manual.varying
    return found


def _lowered(plans_for: Callable[[Target, Problem], list[Plan]], *arrays: Any, target: Target, problem: Problem) -> Any:
    plans = plans_for(target, problem)
    nbytes = max(plan.workspace_size for plan in plans)
    results = [jax.ShapeDtypeStruct(*one) for one in _result_forms(problem, arrays)]
    lent = [jax.ShapeDtypeStruct((nbytes,), np.uint8)] if nbytes else []
    names = [spec.name for spec in problem.outputs]
    aliases = {index: names.index(spec.name) for index, spec in enumerate(problem.inputs) if spec.written}
    call = jax.ffi.ffi_call(target.name, [*results, *lent], input_output_aliases=aliases)
    return call(*arrays, problem=problem.text_for(plans[0]))[: len(results)]


def _host_plans(target: Target, problem: Problem) -> list[Plan]:
    return [target.registry.select(problem.descriptor, HOST, problem.preference)]


def _cuda_plans(target: Target, problem: Problem) -> list[Plan]:
    """One for each GPU of JAX, whichever the call will run on; made now, so that the first run loads nothing."""
    try:
        gpus = jax.local_devices(backend="cuda")
    except RuntimeError as error:
        raise Unsupported(
            problem.op.name, "JAX must have a GPU to lower a call for CUDA", rule="device", why=str(error),
            fix="Lower it where there is such a GPU: kernel and workspace depend on it",
        ) from None  # fmt: skip
    return [target.registry.select(problem.descriptor, gpu.local_hardware_id, problem.preference) for gpu in gpus]


for _platform, _plans in (("cpu", _host_plans), ("cuda", _cuda_plans)):
    mlir.register_lowering(xla_call, mlir.lower_fun(partial(_lowered, _plans), multiple_results=True), _platform)


def _no_gradient(_primals: Any, _tangents: Any, *, target: Target, problem: Problem) -> Any:
    raise Unsupported(
        problem.op.name, "it must not be differentiated", rule="gradient", why="it has no gradient",
        fix="Put jax.lax.stop_gradient around its arguments, or give it a gradient by jax.custom_vjp",
    )  # fmt: skip


ad.primitive_jvps[xla_call] = _no_gradient


def _one_after_the_other(arrays: Any, axes: Any, **parameters: Any) -> Any:
    """vmap: a descriptor says how large a problem is, so that each element of the batch is a problem of its own."""
    mapped = [jnp.moveaxis(array, axis, 0) for array, axis in zip(arrays, axes, strict=True) if axis is not None]

    def one(elements: Any) -> Any:
        rest = iter(elements)
        chosen = [array if axis is None else next(rest) for array, axis in zip(arrays, axes, strict=True)]
        return xla_call.bind(*chosen, **parameters)

    made = jax.lax.map(one, mapped)
    return made, [0] * len(made)


batching.primitive_batchers[xla_call] = _one_after_the_other
