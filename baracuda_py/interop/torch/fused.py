"""AWQ layers that share their input computed by one GEMM: queries, keys and values; gate and up.

One weight of 6144 x 4096 is read in less time than three of 4096, 1024 and 1024, because a launch has a start and an
end however small it is. The layers keep their places and names in the model, which calls them as before: whichever is
called first computes all, and the others hand out their parts.

Whoever records operators (`torch.compile`, `torch.export`) gets a product for each part: what is recorded runs again
when nobody is there to see whether the tensor is still what it was.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from baracuda_py.errors import InvalidProblem
from baracuda_py.interop.torch import kept
from baracuda_py.interop.torch.linear import AwqLinear, operators_are_seen
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.ops.quantize.awq_tiles import TILE_ROWS

__all__ = ["AwqPart", "fuse", "fuse_projections"]

_SIBLINGS = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")  # as transformers names them


class _Result:
    """What the last call of the whole layer made, until every part of it has been handed out or its input is gone."""

    def __init__(self) -> None:
        self.input: Any = None  # a weak reference, and those of the weights
        self.weights: list[Any] = []
        self.state: Any = None
        self.parts: list[Any] = []

    def take(self, whole: AwqLinear, sizes: Sequence[int], index: int, x: Any, state: Any) -> Any:
        """Part `index` of `whole(x)`, computed unless an earlier part of the same tensor's in the same state was."""
        weights, parts = list(whole._buffers.values()), self.parts
        if (
            not parts or parts[index] is None or self.input() is not x or self.state != state
            or not all(map(operator.is_, [weight() for weight in self.weights], weights))
        ):  # fmt: skip
            parts = list(whole(x).split(sizes, -1))

            def forget(_: Any) -> None:
                parts.clear()  # whatever others have been made since

            self.input, self.weights = weakref.ref(x, forget), [kept.weak(weight) for weight in weights]
            self.state, self.parts = state, parts
        part = parts[index]
        parts[index] = None
        if not [other for other in parts if other is not None]:
            self.parts = []
        return part


class _Results(threading.local):
    """The result of each thread."""

    def __init__(self) -> None:
        self.own = _Result()

    def __reduce__(self) -> Any:
        return _Results, ()  # of a copy, and of a file, nothing has been computed


def _state(whole: AwqLinear, x: Any) -> tuple[Any, ...] | None:
    """What makes a result another one, or of no use: a change of the tensor or the weights, another stream or mode.

    None where that cannot be known: tensors of the inference mode count no changes.
    """
    stream = torch._C._cuda_getCurrentRawStream(x.device.index) if x.is_cuda else 0
    try:
        weights = [(weight._version, weight.data_ptr()) for weight in whole._buffers.values() if weight is not None]
        return x._version, x.data_ptr(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(), stream, weights
    except RuntimeError:
        return None


class AwqPart(torch.nn.Module):
    """Some output features of an `AwqLinear`, in the place of the layer that had them alone; made by `fuse`.

    Parts that are given the same tensor one after another, unchanged, with the same weights, and on one stream, share
    one product. What they give are views of it, with its row stride. Changes are those that torch counts: what is
    written through `x.data`, `x.numpy()` or a kernel of somebody else's is not seen. Tensors of the inference mode
    count none, so that there, as compiled or exported, each part has a product of its own: of its tiles where weights
    are TILED, else of all weights. Prefer `torch.no_grad()`.

    Attributes:
        whole: the `AwqLinear`; a submodule of the first part only, so that walks over the model find it once.
        in_features, out_features: as of `AwqLinear`.
    """

    def __init__(self, whole: AwqLinear, sizes: tuple[int, ...], index: int, results: _Results) -> None:
        super().__init__()
        self.in_features, self.out_features = whole.in_features, sizes[index]
        self._sizes, self._index, self._first, self._results = sizes, index, sum(sizes[:index]), results
        if index == 0:
            self.whole = whole
        else:
            object.__setattr__(self, "whole", whole)

    def forward(self, x: Any) -> Any:
        """y (..., out_features) of x (..., in_features)."""
        if operators_are_seen(x):
            return self._operator(x)
        whole = self.whole
        state = _state(whole, x)
        if state is None:
            return self._operator(x)
        return self._results.own.take(whole, self._sizes, self._index, x, state)

    def _operator(self, x: Any) -> Any:
        """A product of this part's own tiles or, where features do not lie apart, of the whole."""
        if self.whole.layout is AwqWeightLayout.TILED and not _is_hooked(self.whole):
            return self.whole._operator(x, self._first, self.out_features)
        return self._cut(self.whole(x))

    def _cut(self, made: Any) -> Any:
        return made.narrow(-1, self._first, self.out_features)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, part {self._index}"


def fuse(parent: Any, names: Sequence[str]) -> AwqLinear:
    """Make one layer of the `AwqLinear`s that `parent` has under `names`, and put an `AwqPart` in each one's place.

    Returns:
        the layer, whose output features are theirs, in order.

    Raises:
        InvalidProblem: layers that differ in input features, groups, layout, dtype, device, `fp8_rows`, or in whether
            they have a bias; with hooks; TILED ones with other than multiples of 64 output features, but for the last.
    """
    layers = [getattr(parent, name) for name in names]
    if wrong := next(_differences(layers), None):
        raise InvalidProblem("fuse", f"{', '.join(names)} must {wrong}", rule="fuse")
    first = layers[0]
    axis = 1 if first.layout is AwqWeightLayout.HF_GEMM else 0
    sizes = tuple(layer.out_features for layer in layers)
    whole = AwqLinear(
        first.in_features, sum(sizes), first.bias is not None, group_size=first.group_size, layout=first.layout,
        dtype=torch.float16 if first.scales is None else first.scales.dtype, device="meta",
    )  # fmt: skip
    for name, along in (("qweight", axis), ("qzeros", 1), ("scales", 1), ("bias", 0)):
        parts = [getattr(layer, name) for layer in layers]
        setattr(whole, name, None if parts[0] is None else torch.cat(parts, along))
    whole._scales_element = first.scales_element
    whole.overlap, whole.fp8_rows = all(layer.overlap for layer in layers), first.fp8_rows
    results = _Results()
    for index, name in enumerate(names):
        setattr(parent, name, AwqPart(whole, sizes, index, results))
    return whole


def fuse_projections(model: Any) -> int:
    """`fuse` the query, key and value layers of every block, and its gate and up, where they can be.

    Returns:
        how many layers were made of others.
    """
    made = 0
    for parent in list(model.modules()):
        for names in _SIBLINGS:
            layers = [getattr(parent, name, None) for name in names]
            if all(type(layer) is AwqLinear for layer in layers) and next(_differences(layers), None) is None:
                fuse(parent, names)
                made += 1
    return made


def _is_hooked(layer: Any) -> bool:
    """Whether a call of the layer does more than its class says."""
    hooks = layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks
    return any(map(bool, hooks)) or "forward" in layer.__dict__


def _differences(layers: Sequence[Any]) -> Iterator[str]:
    """What the layers must do to become one."""
    if any(type(layer) is not AwqLinear for layer in layers):
        yield "be AwqLinear"
        return
    if any(_is_hooked(layer) for layer in layers):
        yield "have no hooks, nor a forward of their own, which would be lost"
    for what in ("in_features", "group_size", "layout", "scales_element", "fp8_rows"):
        if len({getattr(layer, what) for layer in layers}) > 1:
            yield f"have the same {what}"
    if len({layer.bias is None or layer.bias.dtype for layer in layers}) > 1:
        yield "all have a bias, of one dtype, or none"
    if len({layer.qweight.device for layer in layers}) > 1:
        yield "lie on the same device"
    if layers[0].layout is AwqWeightLayout.TILED and any(layer.out_features % TILE_ROWS for layer in layers[:-1]):
        yield f"have multiples of {TILE_ROWS} output features where they are TILED"
