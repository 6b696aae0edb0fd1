"""Registered ops as functions of JAX arrays: eager, and inside `jax.jit`, where they leave no trace but their call.

A function takes the op's inputs and returns new arrays. What an op reads and writes is an argument and a result: XLA
gives both one buffer, and copies first what is needed later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.interop.jax.handlers import Problem
from baracuda_py.interop.jax.primitive import Target, form, register, xla_call
from baracuda_py.interop.signatures import Signature
from baracuda_py.operands import OperandChecker
from baracuda_py.plan import Plan
from baracuda_py.registry import Registry
from baracuda_py.vocab.device import HOST
from baracuda_py.vocab.elements import element_of_dtype
from baracuda_py.vocab.preference import PlanPreference, Workspace
from baracuda_py.vocab.tensors import HOST_MEMORY, TensorMut

__all__ = ["Operators"]

_CALLS_KEPT = 4096  # compiled; an engine with ragged m has one a descriptor
_problem = lru_cache(maxsize=_CALLS_KEPT)(Problem)


class Operators:
    """The ops of a registry as functions of JAX arrays: `ops.softmax(x, axis=-1)`.

    A function takes the op's inputs, in the order of its `Signature` or by name, and by keyword those fields of the
    descriptor that the inputs do not tell; enum members may be named. It returns an array, or a tuple of several.

    Args:
        registry: whose ops they are, those included that are registered later.
        target: what the calls are named in XLA; another name for each registry.
    """

    def __init__(self, registry: Registry[Plan], target: str) -> None:
        self._registry = registry
        self._target = Target(registry, target)
        register(self._target)

    def call(self, descriptor: Any, preference: PlanPreference | None = None, /, **arrays: Any) -> Any:
        """Compute what `descriptor` describes: an array, or a tuple of several.

        Args:
            descriptor: of a registered op.
            preference: as for `bp.select`; a compiled call stays with the kernel that was chosen by it.
            arrays: the op's inputs, by name. One that the op also writes may be left out: it then starts as zeros.

        Raises:
            InvalidProblem: an array that is missing, one too many, or not of the descriptor's shape or dtype.
            as `bp.select`, when the call is compiled; jax.errors.JaxRuntimeError for what is found when it runs.
        """
        problem = _problem(self._registry.op_for(descriptor), descriptor, preference)
        names = tuple(spec.name for spec in problem.inputs if arrays.get(spec.name) is not None)
        given = [arrays.pop(name) for name in names]
        for name, array in arrays.items():
            if array is not None:
                raise InvalidProblem(
                    f"{problem.op.name}: {name}", "it must be left out of this call", rule=f"{name} presence",
                    fix=f"The call takes {', '.join(spec.name for spec in problem.inputs)}",
                )  # fmt: skip
        return _compiled(self._target, problem, names)(*given)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            op = self._registry.op(name)
        except Unsupported as error:
            raise AttributeError(str(error)) from None
        made = partial(self._by_signature, Signature.of(op))
        made.__doc__ = op.doc
        self.__dict__[name] = made
        return made

    def __dir__(self) -> list[str]:
        return ["call", *(op.name for op in self._registry.ops())]

    def _by_signature(self, signature: Signature, *positional: Any, **keywords: Any) -> Any:
        name, inputs = signature.op.name, [spec.name for spec in signature.inputs]
        if len(positional) > len(inputs):
            raise TypeError(f"{name} takes {len(inputs)} arrays: {', '.join(inputs)}")
        given = dict(zip(inputs, positional, strict=False))
        given |= {one: keywords.pop(one) for one in inputs if one in keywords and one not in given}
        known = [option.name for option in signature.options]
        for keyword in keywords:
            if keyword not in known:
                raise TypeError(f"{name} takes no {keyword!r} here; it takes {', '.join((*inputs, *known))}")
        telling = {source for source, _ in signature.from_shape.values()} | {*signature.from_dtype.values()}
        missing = [one for one in inputs if one in telling and given.get(one) is None]
        if missing:
            raise TypeError(f"{name} must be given {', '.join(missing)}")
        arrays = {
            one: array if array is None or isinstance(array, jax.Array) else jnp.asarray(array)
            for one, array in given.items()
        }
        return self.call(signature.op.descriptor(**signature.fields(arrays, keywords, element_of_dtype)), **arrays)


@lru_cache(maxsize=_CALLS_KEPT)
def _compiled(target: Target, problem: Problem, names: tuple[str, ...]) -> Callable[..., Any]:
    """The call as a function of the arrays named."""

    def call(*arrays: Any) -> Any:
        given = dict(zip(names, arrays, strict=True))
        for spec in problem.inputs:
            if spec.written and spec.name not in given:
                given[spec.name] = jnp.zeros(*form(spec, problem.descriptor))
        _check(problem, given)
        made = xla_call.bind(*(given[spec.name] for spec in problem.inputs), target=target, problem=problem)
        return made[0] if len(made) == 1 else tuple(made)

    call.__name__ = problem.op.name
    return jax.jit(call, inline=True)


def _check(problem: Problem, given: Mapping[str, Any]) -> None:
    """Raise what a plan would, of arrays whose memory is yet to come."""
    op, descriptor = problem.op, problem.descriptor
    op.check(descriptor)
    places = iter(range(1 << 40, 1 << 62, 1 << 40))  # addresses that are apart from one another
    made: dict[str, Any] = {spec.name: None for spec in op.specs}
    for name, array in given.items():
        element = element_of_dtype(np.dtype(array.dtype))
        if element is None:
            raise Unsupported(
                f"{op.name}: {name}", "its dtype must stand for an element", rule="dtype", got=str(array.dtype)
            )
        made[name] = TensorMut(next(places), array.shape, element, device=HOST_MEMORY)
    for spec in problem.outputs:
        if made[spec.name] is None:
            element = spec.elements_on(descriptor)[0]
            made[spec.name] = TensorMut(next(places), spec.shape_on(descriptor), element, device=HOST_MEMORY)
    OperandChecker(op.name, op.specs, descriptor, {}, HOST, 0).views(op.args(**made), Workspace.NONE, 0)
