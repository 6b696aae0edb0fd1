"""What both loaders ask of a model before and after an `AwqLinear` takes the place of a `torch.nn.Linear`."""

from __future__ import annotations

from typing import Any

from baracuda_py.interop.torch import AwqLinear

__all__ = ["find_module", "untie_packed"]


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
