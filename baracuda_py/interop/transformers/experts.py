"""`AwqExperts`: the experts of a mixture, a linear a matrix, in the place of a module that holds them in one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from transformers.integrations import moe

from baracuda_py.errors import Unsupported
from baracuda_py.interop.transformers.places import ExpertMatrix

__all__ = ["AwqExperts", "put_experts"]


class AwqExperts(torch.nn.Module):
    """down(act(gate(x)) * up(x)) of a token's experts, each times its weight, summed.

    The matrices of expert 3 are `self.get_submodule("3.gate_proj")` and the like, by the checkpoint's names: an
    `AwqLinear` where the checkpoint has packed weights, else a `torch.nn.Linear`.

    A call sorts the tokens by expert and runs the experts that have any, on just those tokens. The host waits for the
    sizes, once a call, so this cannot be captured in a CUDA graph: there it raises Unsupported. With `dense_dispatch`
    every expert runs on every token, and what was not chosen is dropped: the same launches whatever the tokens, which
    graphs and `torch.compile(fullgraph=True)` take, at the price of reading all experts' weights for each batch. That
    costs little where a batch's tokens need most of the experts anyway, and experts / chosen times as much for a single
    token.

    Attributes:
        num_experts: how many.
        dense_dispatch: may be changed between calls, e.g. set for decoding and not for prefill.

    Args:
        fused: the model's module; of which only sizes and the activation are used.
        names: of gate, up and down.
    """

    def __init__(self, fused: Any, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.num_experts, both, hidden = fused.gate_up_proj.shape
        self.dense_dispatch = False
        self.act_fn = fused.act_fn
        self._names = names
        sizes = ((hidden, both // 2), (hidden, both // 2), (both // 2, hidden))
        dtype = fused.gate_up_proj.dtype
        for number in range(self.num_experts):
            expert = torch.nn.Module()
            for name, (ic, oc) in zip(names, sizes, strict=True):
                expert.add_module(name, torch.nn.Linear(ic, oc, bias=False, dtype=dtype, device="meta"))
            self.add_module(str(number), expert)

    def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        """y (tokens, hidden).

        Args:
            hidden_states: (tokens, hidden).
            top_k_index: (tokens, k), of experts; `num_experts` stands for none.
            top_k_weights: (tokens, k).
        """
        if self.dense_dispatch:
            return self._every_expert(hidden_states, top_k_index, top_k_weights)
        if hidden_states.is_cuda and torch.cuda.is_current_stream_capturing():
            raise Unsupported(
                "AwqExperts", "a CUDA graph cannot hold experts that are chosen by what the tokens are",
                rule="dense_dispatch", why="how many tokens each has is known only when they have been routed",
                fix="Set dense_dispatch = True on every AwqExperts of the model, or leave experts out of the graph",
            )  # fmt: skip
        chosen, order = top_k_index.flatten().sort(stable=True)
        bounds = torch.arange(self.num_experts + 1, device=chosen.device, dtype=chosen.dtype)
        starts = torch.searchsorted(chosen, bounds).tolist()
        rows = hidden_states[order // top_k_index.shape[1]]
        made = [
            self._expert(number, rows[start:stop])
            for number, (start, stop) in enumerate(pairwise(starts))
            if start < stop
        ]
        made.append(rows.new_zeros((len(rows) - starts[-1], rows.shape[1])))
        y = torch.empty_like(rows)
        y[order] = torch.cat(made)
        # In one place after the other: adding rows where they belong would give other bits on a GPU every time.
        return (y.view(*top_k_index.shape, y.shape[1]) * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)

    def _every_expert(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        total = torch.zeros_like(hidden_states, dtype=torch.float32)
        for number in range(self.num_experts):
            chosen = top_k_index == number
            weight = (top_k_weights * chosen).sum(-1, keepdim=True)
            y = self._expert(number, hidden_states) * weight
            # Dropped, not multiplied by 0: a token may overflow in experts that are not its own.
            total += torch.where(chosen.any(-1, keepdim=True), y, 0)
        return total.to(hidden_states.dtype)

    def _expert(self, number: int, x: Any) -> Any:
        expert = self._modules[str(number)]
        assert expert is not None
        gate, up, down = (expert._modules[name] for name in self._names)
        assert gate is not None
        assert up is not None
        assert down is not None
        return down(self.act_fn(gate(x)) * up(x))

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"num_experts={self.num_experts}, dense_dispatch={self.dense_dispatch}"


def put_experts(
    model: Any, packed: Mapping[str, ExpertMatrix], plain: Iterable[ExpertMatrix]
) -> dict[str, AwqExperts]:
    """Put an `AwqExperts` without data in the place of each module that some packed matrices belong to.

    Args:
        model: of transformers.
        packed: what the packed layers among experts are, by their names in the checkpoint.
        plain: what the other matrices are.

    Returns:
        those made, by their names in the model.

    Raises:
        Unsupported: experts that compute something else than `AwqExperts` does.
    """
    names: dict[str, dict[str, str]] = {}
    for name, matrix in packed.items():
        if matrix.experts not in names:
            if wrong := ", ".join(_differences(model.get_submodule(matrix.experts))):
                raise Unsupported(
                    name, "packed experts must be down(act(gate(x)) * up(x)) without biases", rule="experts", got=wrong
                )
            names[matrix.experts] = {}
        names[matrix.experts][matrix.part] = matrix.name
    for matrix in plain:
        if matrix.experts in names:
            names[matrix.experts].setdefault(matrix.part, matrix.name)
    made = {}
    for place, given in names.items():
        gate, up, down = (given.get(part, f"{part}_proj") for part in ("gate", "up", "down"))
        parent, _, last = place.rpartition(".")
        made[place] = AwqExperts(model.get_submodule(place), (gate, up, down))
        setattr(model.get_submodule(parent), last, made[place])
    return made


def _differences(experts: Any) -> Iterator[str]:
    """What a module of transformers does otherwise, by what `use_experts_implementation` says of it."""
    name = type(experts).__name__
    for attribute, wanted in (
        ("has_gate", True), ("has_bias", False), ("is_transposed", False), ("is_concatenated", True),
        ("has_post_expert_norm", False),
    ):  # fmt: skip
        found = getattr(experts, attribute, False)  # 5.17 says nothing of has_post_expert_norm: none has one
        if found is not wanted:
            yield f"{name} with {attribute} = {found}"
    if getattr(type(experts), "_apply_gate", None) is not getattr(moe, "_default_apply_gate", None):
        yield f"{name} with a gate of its own"
    if not callable(getattr(experts, "act_fn", None)):
        yield f"{name} without act_fn"
