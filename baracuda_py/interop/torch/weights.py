"""The weights of a linear layer in 4 bits as buffers of a module: made, loaded, kept, and put in another layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem
from baracuda_py.interop.torch.calls import as_tensor
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmDescriptor
from baracuda_py.ops.quantize.awq_repack import Int4AwqRepackArgs, Int4AwqRepackDescriptor
from baracuda_py.vocab.enums import ElementKind, EpilogueKind
from baracuda_py.vocab.preference import Workspace

if TYPE_CHECKING:
    from baracuda_py.checkpoints.layer import PackedLayer

__all__ = ["AwqWeights"]

_SCALES = {torch.float16: ElementKind.F16, torch.bfloat16: ElementKind.BF16}
_WORDS = torch.int32, torch.uint32  # eight nibbles
_ELEMENTS = {element.name.lower(): element for element in _SCALES.values()}
_FORM = "weight_form"  # of a state dict: UTF-8 of layout and element of the scales


class AwqWeights(torch.nn.Module):
    """What `AwqLinear` is but for its calls; its docstring says what there is to know."""

    weight: Any = None  # for models that ask for a layer's dtype where it has a weight
    qweight: Any
    qzeros: Any
    scales: Any
    bias: Any

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        group_size: int = 128,
        layout: AwqWeightLayout = AwqWeightLayout.HF_GEMM,
        dtype: Any = torch.float16,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.group_size, self.layout = group_size, layout
        self._scales_element = _scales_element(dtype)
        for name in ("qweight", "qzeros", "scales", "bias"):
            self.register_buffer(name, None)
        problem = self._descriptor(0, self.scales_element, bias)
        bp.default_registry().op_for(problem).check(problem)

        def empty(shape: tuple[int, ...], dtype: Any) -> Any:
            return torch.empty(shape, dtype=dtype, device=device)

        apart = problem.scales_apart
        groups = problem.groups
        self.qweight = empty(problem.weight_shape, torch.int32)
        if apart:
            self.qzeros = empty((groups, out_features // 8), torch.int32)
            self.scales = empty((groups, out_features), dtype)
        if bias:
            self.bias = empty((out_features,), dtype)

    @property
    def scales_element(self) -> ElementKind:
        """Of the scales, F16 or BF16; where TILED weights hold them, of those that they were made with."""
        return self._scales_element if self.scales is None else _scales_element(self.scales.dtype)

    @classmethod
    def from_layer(
        cls, layer: PackedLayer, *, device: Any = None, layout: AwqWeightLayout = AwqWeightLayout.HF_GEMM,
        lossy: bool = False,
    ) -> Self:  # fmt: skip
        """The module of a layer of a checkpoint (`baracuda_py.checkpoints.open(...)[name]`), of any format.

        Args:
            layer: in whatever format.
            device: as torch has it.
            layout: of the weights; TILED is made on the device.
            lossy: whether weights may change where the layer's format demands it; see `PackedLayer.gemm_operands`.
        """
        first = AwqWeightLayout.HF_GEMM if layout is AwqWeightLayout.TILED else layout
        operands = layer.gemm_operands(first, lossy=lossy)
        made = cls(
            operands.ic, operands.oc, operands.bias is not None, group_size=operands.group_size, layout=first,
            dtype=as_tensor(operands.scales).dtype, device="meta",
        )  # fmt: skip
        parts = {"qweight": operands.weight_packed, "qzeros": operands.zeros, "scales": operands.scales}
        if operands.bias is not None:
            parts["bias"] = operands.bias
        for name, array in parts.items():
            setattr(made, name, as_tensor(array).to(device))
        return made.repack_(layout)

    def repack_(self, layout: AwqWeightLayout) -> Self:
        """Put the weights in another layout, on the device where they are; the old ones are freed. Returns self."""
        if layout is self.layout:
            return self
        element = self.scales_element
        change = Int4AwqRepackDescriptor(self.in_features, self.out_features, self.group_size, self.layout, layout)
        device, groups = self.qweight.device, change.groups
        dtype = torch.bfloat16 if element is ElementKind.BF16 else torch.float16
        weight = torch.empty(change.target_shape, dtype=torch.int32, device=device)
        zeros = scales = None
        if change.target_apart:
            zeros = torch.empty((groups, self.out_features // 8), dtype=torch.int32, device=device)
        if change.writes_scales:
            scales = torch.empty((groups, self.out_features), dtype=dtype, device=device)
        args = Int4AwqRepackArgs(
            self.qweight, self.qzeros, weight, zeros, scales=self.scales if change.reads_scales else None,
            scales_repacked=scales,
        )  # fmt: skip
        bp.select(change, self.qweight.device).run(None, Workspace.NONE, args)
        self.qweight, self.qzeros = weight, zeros
        self.scales = (scales if change.writes_scales else self.scales) if change.target_apart else None
        self.layout, self._scales_element = layout, element
        self._changed_weights()
        return self

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"group_size={self.group_size}, layout={self.layout.value}"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        bias = before["bias"]
        if bias is not None and self.bias.dtype not in (torch.float16, torch.bfloat16):
            self.bias = self.bias.to(bias.dtype)
        for part in ("qweight", "qzeros", "scales"):
            was, now = before[part], self._buffers[part]
            if was is not None and now.dtype != was.dtype:
                self._buffers[part] = was.to(now.device)
        self._changed_weights()
        return self

    def _form(self) -> str:
        return f"{self.layout.value} {self.scales_element.name.lower()}"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.layout is not AwqWeightLayout.HF_GEMM:  # an entry in a checkpoint's own layout would be one too many
            destination[prefix + _FORM] = torch.tensor(list(self._form().encode()), dtype=torch.uint8)

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        stored = state_dict.get(prefix + _FORM)
        form = AwqWeightLayout.HF_GEMM.value if stored is None else bytes(stored.tolist()).decode()
        layout, _, element = form.partition(" ")
        wrong, cast = [], {}
        if prefix + "qweight" in state_dict and layout != self.layout.value:
            wrong.append(
                f"{prefix}qweight is in the layout {layout}, and the module's is {self.layout.value}: make it with "
                f"layout={layout}, load, and call repack_"
            )
        if stored is not None and element not in _ELEMENTS:
            wrong.append(f"{prefix}{_FORM} must say f16 or bf16, not {form!r}")
        for part in ("scales", "bias"):
            given, mine = state_dict.get(prefix + part), getattr(self, part)
            if given is None or mine is None or given.dtype == mine.dtype:
                continue
            if given.dtype not in _SCALES:
                wrong.append(f"{prefix}{part} must be float16 or bfloat16, not {given.dtype}")
            elif given.shape == mine.shape:  # where it does not, torch refuses it, and what is here stays
                cast[part] = mine.to(given.dtype)
        for part in ("qweight", "qzeros"):
            given = state_dict.get(prefix + part)
            if given is not None and getattr(self, part) is not None and given.dtype not in _WORDS:
                wrong.append(f"{prefix}{part} must be int32 or uint32, not {given.dtype}")
        if wrong:
            error_msgs += wrong
            return
        self._buffers.update(cast)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if stored is not None:
            self._scales_element = _ELEMENTS[element]
            if prefix + _FORM in unexpected_keys:
                unexpected_keys.remove(prefix + _FORM)
        self._changed_weights()

    def _descriptor(self, rows: int, element: ElementKind, bias: bool) -> Int4AwqGemmDescriptor:
        return Int4AwqGemmDescriptor(
            rows, self.in_features, self.out_features, self.group_size, split_k_iters=None, weight_layout=self.layout,
            element=element, epilogue=EpilogueKind.BIAS if bias else EpilogueKind.IDENTITY,
            scales_element=self.scales_element,
        )  # fmt: skip

    def _changed_weights(self) -> None:
        """Is called when buffers have been put in the place of others."""


def _scales_element(dtype: Any) -> ElementKind:
    if dtype not in _SCALES:
        raise InvalidProblem("scales", "they must be float16 or bfloat16", rule="dtype", value=dtype)
    return _SCALES[dtype]
