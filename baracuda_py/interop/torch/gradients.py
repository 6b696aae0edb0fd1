"""That an operator has no gradient, said wherever torch would ask for one.

An output of a call under autograd has a node whose backward raises. In forward mode, and for an operator that changes a
tensor in place, the call itself raises: afterwards it could not be told. A change in place counts as one for autograd.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

__all__ = ["kernel_without_gradient"]


def kernel_without_gradient(overload: Any, changed: bool) -> Any:
    """What is registered for the key Autograd, with its key set, of an operator.

    Args:
        overload: the operator, e.g. `torch.ops.baracuda.softmax.default`.
        changed: whether it changes its last tensor in place.
    """
    error = f"{overload.name()} has no gradient: run it under torch.no_grad(), or detach its inputs"

    def below(keys: Any, tensors: Any, options: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keys & torch._C._after_autograd_keyset, *tensors, **options)

    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(_context: Any, keys: Any, options: Any, *tensors: Any) -> Any:
            made = below(keys, tensors, options)
            return tuple(made) if isinstance(made, list) else made

        @staticmethod
        def backward(_context: Any, *_gradients: Any) -> Any:
            raise RuntimeError(error)

    def kernel(keys: Any, *tensors: Any, **options: Any) -> Any:
        given = [tensor for tensor in tensors if tensor is not None]
        if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(one).tangent is not None for one in given):
            raise RuntimeError(error)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
            if changed:
                raise RuntimeError(error)
            made = NoGradient.apply(keys, options, *tensors)
            return list(made) if str(overload._schema.returns[0].type).startswith("List") else made
        made = below(keys, tensors, options)
        if changed and not tensors[-1].is_inference():
            torch.autograd.graph.increment_version(tensors[-1])
        return made

    return kernel
