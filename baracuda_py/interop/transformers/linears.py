"""What both loaders ask of a model before and after an `AwqLinear` takes the place of a `torch.nn.Linear`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from baracuda_py.errors import CheckpointError, Unsupported
from baracuda_py.interop.torch import AwqLinear

__all__ = ["check_bias", "check_called", "find_module", "stand_in_weight", "untie_packed"]

# Linears that modules of transformers and torch never call, by the module's class: they multiply by the weight itself.
# The mixers of Jamba and Falcon Mamba call theirs where the configuration says that the model is quantised.
_UNCALLED = {
    "MambaMixer": ("dt_proj",),
    "MultiheadAttention": ("out_proj",),
    "WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


def check_called(parent: Any, last: str, name: str) -> None:
    """Raise Unsupported if a packed layer would be the linear `last` of a module that does without calling it.

    Args:
        parent: the module that has the linear.
        last: the linear's own name.
        name: of the packed layer.
    """
    kind = next((one.__name__ for one in type(parent).__mro__ if last in _UNCALLED.get(one.__name__, ())), None)
    if kind is not None:
        raise Unsupported(
            name, f"{last} of a {kind} must not be packed", rule="called",
            why=f"{kind} multiplies by its weight without calling it, and a packed layer has none",
            fix=f"Quantise the model anew, and leave {last} as it is",
        )  # fmt: skip


def check_bias(found: Any, name: str, file: object, read: Callable[[], Any] | None) -> None:
    """Raise CheckpointError if a packed layer has a bias and the model's linear has none, or the other way round.

    Args:
        found: the model's.
        name: of the packed layer.
        file: that has it.
        read: gives the bias, which may be zeros where there should be none: writers of GPTQ put them everywhere. None:
            the layer has no bias.
    """
    if found.bias is not None and read is None:
        raise CheckpointError(
            file, "the layer must have a bias, as the model has one", tensor=f"{name}.bias", rule="missing", got="none",
            fix="Take it from the model that was quantised, or add zeros if that had none",
        )  # fmt: skip
    if found.bias is None and read is not None and read().any():
        raise CheckpointError(
            file, "the bias must be zeros, as the model has none", tensor=f"{name}.bias", rule="unexpected",
            got="another one", fix="Correct the configuration, or remove the bias if it is not wanted",
        )  # fmt: skip


def find_module(model: Any, name: str) -> Any:
    """The module of that name, or None."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def untie_packed(model: Any) -> None:
    """Drop the ties of packed layers: they have their own weights, whatever the configuration says."""

    def is_packed(name: str) -> bool:
        return isinstance(find_module(model, name.rpartition(".")[0]), AwqLinear)

    model.all_tied_weights_keys = {
        target: source
        for target, source in model.all_tied_weights_keys.items()
        if not is_packed(target) and not is_packed(source)
    }


def stand_in_weight(layer: Any, weight: Any) -> None:
    """Give an `AwqLinear` what models initialise, until it is deleted again: a tensor like `weight`, without memory."""
    layer.weight = torch.empty_like(weight, device="meta", requires_grad=False)
    layer.weight._is_hf_initialized = True
