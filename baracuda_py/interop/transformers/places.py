"""Where a checkpoint's tensors go in a model of transformers, by its own tables of old and new names.

Models hold the experts of a layer in two tensors, `gate_up_proj` (experts, 2 * intermediate, hidden) and `down_proj`
(experts, hidden, intermediate); checkpoints have three matrices an expert, called e.g. `experts.3.gate_proj.weight` or
`experts.3.w1.weight`.
"""

from __future__ import annotations

import re
from typing import Any

from attrs import frozen
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

__all__ = ["ExpertMatrix", "Places"]

_LAST = re.compile(r"(?:.*\.)?(\d+)\.(\w+)\.weight")


@frozen
class ExpertMatrix:
    """One matrix of one expert.

    Attributes:
        experts: the module that holds the layer's experts, in the model.
        number: of the expert.
        part: `"gate"`, `"up"` or `"down"`.
        name: as the checkpoint calls it: `"w1"`, `"gate_proj"`.
    """

    experts: str
    number: int
    part: str
    name: str

    @property
    def fused(self) -> str:
        """The parameter of `experts` that holds it."""
        return "down_proj" if self.part == "down" else "gate_up_proj"


class Places:
    """Names in a model, as it is now, of a checkpoint's tensors."""

    def __init__(self, model: Any) -> None:
        conversions = get_model_conversion_mapping(model)
        self._renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
        self._converters = [one for one in conversions if isinstance(one, WeightConverter)]
        self._converter_of = {source: one for one in self._converters for source in one.source_patterns}
        self._model = model.base_model_prefix, dict.fromkeys(model.state_dict(), True)
        self._ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
        # Patterns of parameters that the model wants in f32 whatever its dtype, such as the weight of a router.
        wanted = model._get_dtype_plan(model.dtype)
        self._dtypes = {re.compile(pattern.replace("*", ".*")): dtype for pattern, dtype in wanted.items()}

    def tensor(self, name: str) -> str:
        """The model's name for a tensor; a base model takes what a head has put its prefix before, and the other way
        round."""
        renamed, _ = rename_source_key(name, self._renamings, [], *self._model)
        if renamed in self._model[1]:
            return renamed
        alike, _ = rename_source_key(name, [], [], *self._model)
        return alike if alike in self._model[1] else renamed

    def module(self, name: str) -> str:
        """The model's name for a linear."""
        return self.tensor(f"{name}.weight").removesuffix(".weight")

    def is_there(self, place: str) -> bool:
        """Whether the model has a parameter or a buffer of that name."""
        return place in self._model[1]

    def is_ignored(self, place: str) -> bool:
        """Whether the model does without that tensor where it has no place for it, such as an extra layer's."""
        return not self.is_there(place) and any(pattern.search(place) for pattern in self._ignored)

    def dtype(self, place: str, made: Any) -> Any:
        """The dtype of a parameter, by its name in the model, that was made with the dtype `made`."""
        return next((dtype for pattern, dtype in self._dtypes.items() if pattern.search(place)), made)

    def expert(self, name: str) -> ExpertMatrix | None:
        """What the tensor is among experts that the model holds in one tensor; None if it is no such matrix."""
        fused, source = rename_source_key(name, self._renamings, self._converters, *self._model)
        apart, _ = rename_source_key(name, self._renamings, [], *self._model)
        last = _LAST.fullmatch(apart)
        if source is None or last is None or fused not in self._model[1]:
            return None
        part = _part(self._converter_of[source], source)
        experts, _, parameter = fused.rpartition(".")
        if part is None or parameter != ("down_proj" if part == "down" else "gate_up_proj"):
            return None
        return ExpertMatrix(experts, int(last[1]), part, last[2])


def _part(converter: WeightConverter, source: str) -> str | None:
    """What a source of a conversion is, if that only puts experts, and gate before up, behind one another."""
    steps = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
    merge = (MergeModulelist, 0)
    if steps == [merge] and len(converter.source_patterns) == 1:
        return "down"
    if steps == [merge, (Concatenate, 1)] and len(converter.source_patterns) == 2:
        return ("gate", "up")[converter.source_patterns.index(source)]
    return None
