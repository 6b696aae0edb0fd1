"""`AwqLinear`: a linear layer with 4-bit weights, in the place of a `torch.nn.Linear`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch.autograd import forward_ad

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem
from baracuda_py.interop.torch import kept
from baracuda_py.interop.torch.calls import as_tensor, readable, workspace_for
from baracuda_py.ops.quantize.awq_fp8_gemm import Int4AwqFp8GemmArgs, Int4AwqFp8GemmDescriptor
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmArgs, Int4AwqGemmDescriptor
from baracuda_py.ops.quantize.awq_repack import Int4AwqRepackArgs, Int4AwqRepackDescriptor
from baracuda_py.ops.quantize.awq_tiles import TILE_ROWS
from baracuda_py.ops.quantize.per_token import QuantizePerTokenArgs, QuantizePerTokenDescriptor
from baracuda_py.vocab.elements import element_of_torch
from baracuda_py.vocab.enums import ElementKind, EpilogueKind
from baracuda_py.vocab.preference import Workspace

if TYPE_CHECKING:
    from baracuda_py.checkpoints.layer import PackedLayer

__all__ = ["AwqLinear", "operators_are_seen"]

_SCALES = {torch.float16: ElementKind.F16, torch.bfloat16: ElementKind.BF16}
_WORDS = torch.int32, torch.uint32  # eight nibbles
_ELEMENTS = {element.name.lower(): element for element in _SCALES.values()}
_FORM = "weight_form"  # of a state dict: UTF-8 of layout and element of the scales
_ALIGNMENT = 16  # bytes; the most that a kernel asks of activations
_PARTS = ("qweight", "scales", "qzeros", "bias")


class AwqLinear(torch.nn.Module):
    """y = x W^T + b, W in 4 bits: activations f16 or bf16, of any number of axes, the last of `in_features`.

    Its buffers have the names that AWQ checkpoints give them, so that with the layout HF_GEMM, `load_state_dict` takes
    them as they are: `qweight`, `qzeros` and `scales`, `bias` where there is one. With TILED, `qweight` holds the other
    two, which are then None. A state dict of another layout has an entry more, `weight_form`, which says what it is;
    `load_state_dict` refuses weights of another form than the module's.

    Scales keep the dtype in which they came: `half()`, `type(...)` and the like change none of the weights.

    There are no gradients: run it under `torch.no_grad()` or `torch.inference_mode()`.

    Args:
        in_features, out_features: multiples of 32 and of 8.
        bias: whether there is one.
        group_size: input features that share a scale: 32, 64, 128, or -1 for all.
        layout: of the weights.
        dtype: of scales and bias, f16 or bf16; loading takes over those of what is loaded.
        device: as torch has it.

    Raises:
        Unsupported, InvalidProblem: sizes that the AWQ GEMM does not allow, or another dtype.
    """

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
        self._overlap = False
        self._fp8_rows: int | None = None
        self._scales_element = _scales_element(dtype)
        self._checked: tuple[Any, ...] | None = None  # weak references to weights once checked, places, launches
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
    def overlap(self) -> bool:
        """Whether a kernel that can begins to read weights while the launch ahead of a call on its stream ends.

        Set it where no such launch writes the weights; see `Plan.bind`. False at first.
        """
        return self._overlap

    @overlap.setter
    def overlap(self, value: bool) -> None:
        self._overlap, self._checked = value, None

    @property
    def fp8_rows(self) -> int | None:
        """From how many rows on a call multiplies in fp8: rows are quantised (`QuantizePerToken`), then given to
        `Int4AwqFp8Gemm`, which loses more than 16-bit activations do; its description says how much. None, as at
        first: never. A call raises NoKernel where nothing serves that: on a GPU, TILED weights on Hopper are served.
        Such a call is checked each time, and `overlap` has no part in it. Fused layers have it on the whole one, cut
        ones on their `linear`; an expert counts the rows that have chosen it.
        """
        return self._fp8_rows

    @fp8_rows.setter
    def fp8_rows(self, value: int | None) -> None:
        if value is not None and value < 1:
            raise InvalidProblem("AwqLinear", "fp8_rows must be None or positive", rule="fp8_rows", value=value)
        self._fp8_rows, self._checked = value, None

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
        self._checked = None
        return self

    def forward(self, x: Any) -> Any:
        """y (..., out_features) of x (..., in_features)."""
        if operators_are_seen(x):
            return self._operator(x)
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("AwqLinear has no gradient: run it under torch.no_grad(), or detach its input")
        checked = self._checked
        if checked is not None and x.is_contiguous() and not x.is_neg():
            # Weights and a shape that have been checked: what is left is to find addresses.
            weight_was, scales_was, zeros_was, bias_was, places, launches = checked
            buffers = self._buffers
            weight, scales, zeros, bias = buffers["qweight"], buffers["scales"], buffers["qzeros"], buffers["bias"]
            found = launches.get((x.shape, x.dtype, x.device, type(x)))
            if (
                found is not None and weight_was() is weight and scales_was() is scales and zeros_was() is zeros
                and bias_was() is bias
            ):  # fmt: skip
                launch, shape, nbytes = found
                address, now = x.data_ptr(), _places(weight, scales, zeros, bias)
                if now == places and not address & (_ALIGNMENT - 1):
                    y = x.new_empty(shape)
                    room = x.new_empty(nbytes, dtype=torch.uint8) if nbytes else None
                    if bias is not None:
                        bias = bias if bias.dtype is x.dtype else bias.to(x.dtype)
                    addresses = address, *now[:3], y.data_ptr(), 0 if bias is None else bias.data_ptr()
                    launch(x, 0 if room is None else room.data_ptr(), addresses)
                    return y
        return self._run(x)

    def _run(self, x: Any) -> Any:
        """`forward` with every check."""
        flat = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        if not flat.is_contiguous() or flat.data_ptr() & (_ALIGNMENT - 1) or flat.is_neg():
            flat = readable(flat, "rows", _ALIGNMENT)
        self._check(flat)
        rows = flat.shape[0]
        if self._fp8_rows is not None and rows >= self._fp8_rows:
            return self._run_fp8(flat).view(*x.shape[:-1], self.out_features)
        plans = kept.plans.setdefault(self._sort(), {})
        plan = plans.get((rows, x.dtype, x.device))
        if plan is None:
            plan = self._plan(flat)
            kept.keep(plans, (rows, x.dtype, x.device), plan)
        output = flat.new_empty((rows, self.out_features))
        bias = self.bias
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        args = Int4AwqGemmArgs(flat, self.qweight, self.scales, self.qzeros, output, bias)
        workspace = workspace_for(plan, flat)
        plan.run(None, workspace, args)
        made = output if x.dim() == 2 else output.view(*x.shape[:-1], self.out_features)
        key = x.shape, x.dtype, x.device, type(x)
        if self._checked is None or key not in self._checked[-1] or self._changed(self._checked):
            # A launch has the row stride of the call that it was made of; those that take it have none of their own.
            launch = plan.relocatable(args, workspace, overlap=self.overlap) if flat.is_contiguous() else None
            if launch is not None:
                sort = self._sort(), self.overlap, self.fp8_rows, self.qweight.device
                launches = kept.launches.setdefault(sort, {})
                kept.keep(launches, key, (launch, made.shape, plan.workspace_size))
                weights = [self._buffers[part] for part in _PARTS]
                self._checked = (*map(kept.weak, weights), _places(*weights), launches)
        return made

    def _run_fp8(self, flat: Any) -> Any:
        """Two launches, by which the rows are quantised and multiplied."""
        rows, element = flat.shape[0], self._element_of(flat)
        plans = kept.plans.setdefault((self._sort(), "fp8"), {})
        pair = plans.get((rows, flat.dtype, flat.device))
        if pair is None:
            pair = (
                bp.select(QuantizePerTokenDescriptor(rows, self.in_features, element), flat.device),
                bp.select(self._fp8_descriptor(rows, element), flat.device),
            )
            kept.keep(plans, (rows, flat.dtype, flat.device), pair)
        quantize, product = pair
        values = torch.empty_like(flat, dtype=torch.float8_e4m3fn)
        factors = flat.new_empty(rows, dtype=torch.float32)
        output = flat.new_empty((rows, self.out_features))
        bias = None if self.bias is None else self.bias.to(flat.dtype)
        quantize.run(None, workspace_for(quantize, flat), QuantizePerTokenArgs(flat, values, factors))
        args = Int4AwqFp8GemmArgs(values, factors, self.qweight, self.scales, self.qzeros, output, bias)
        product.run(None, workspace_for(product, flat), args)
        return output

    def _changed(self, checked: tuple[Any, ...]) -> bool:
        weights = [self._buffers[part] for part in _PARTS]
        same = all(was() is weight for was, weight in zip(checked, weights, strict=False))
        return not same or checked[-2] != _places(*weights)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"group_size={self.group_size}, layout={self.layout.value}"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": None}  # launches are this process's

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
        self._checked = None
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
        self._checked = None

    def _operator(self, x: Any, first: int = 0, count: int | None = None) -> Any:
        """The same as `torch.ops.baracuda.int4_awq_gemm`, which compilers see through.

        Args:
            x: (..., in_features).
            first, count: output features of TILED weights, from a tile's first; None: all.
        """
        self._check(x)
        flat = x.reshape(-1, self.in_features)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.qweight, self.scales, self.qzeros, bias
        if count is None:
            count = self.out_features
        else:
            tiles = self.qweight.narrow(0, first // TILE_ROWS, -(-count // TILE_ROWS))
            weight = tiles, None, None, None if bias is None else bias.narrow(0, first, count)
        words = {
            "oc": count, "group_size": self.group_size, "weight_layout": self.layout.value,
            "scales_element": self.scales_element.name.lower(), "epilogue": "identity" if bias is None else "bias",
        }  # fmt: skip
        if self._fp8_rows is not None and flat.shape[0] >= self._fp8_rows:
            rows, factors = torch.ops.baracuda.quantize_per_token(flat)
            element = self._element_of(flat).name.lower()
            made = torch.ops.baracuda.int4_awq_fp8_gemm(rows, factors, *weight, element=element, **words)
        else:
            made = torch.ops.baracuda.int4_awq_gemm(flat, *weight, split_k_iters=None, **words)
        return made.reshape(*x.shape[:-1], count)

    def _plan(self, flat: Any) -> Any:
        return bp.select(self._descriptor(flat.shape[0], self._element_of(flat), self.bias is not None), flat.device)

    @staticmethod
    def _element_of(flat: Any) -> ElementKind:
        element = element_of_torch(flat.dtype)
        if element is None:
            raise InvalidProblem("x", "it must be float16 or bfloat16", rule="dtype", value=flat.dtype)
        return element

    def _check(self, x: Any) -> None:
        if x.shape[-1] != self.in_features:
            raise InvalidProblem(
                "x", f"its last axis must have {self.in_features}", rule="in_features", value=tuple(x.shape)
            )

    def _sort(self) -> tuple[Any, ...]:
        """What a plan depends on, besides the input."""
        sizes = self.in_features, self.out_features, self.group_size
        return (*sizes, self.layout, self.scales_element, self.bias is not None)

    def _descriptor(self, rows: int, element: ElementKind, bias: bool) -> Int4AwqGemmDescriptor:
        return Int4AwqGemmDescriptor(
            rows, self.in_features, self.out_features, self.group_size, split_k_iters=None, weight_layout=self.layout,
            element=element, epilogue=EpilogueKind.BIAS if bias else EpilogueKind.IDENTITY,
            scales_element=self.scales_element,
        )  # fmt: skip

    def _fp8_descriptor(self, rows: int, element: ElementKind) -> Int4AwqFp8GemmDescriptor:
        return Int4AwqFp8GemmDescriptor(
            rows, self.in_features, self.out_features, self.group_size, self.layout, element,
            EpilogueKind.IDENTITY if self.bias is None else EpilogueKind.BIAS, self.scales_element,
        )  # fmt: skip


def _places(weight: Any, scales: Any, zeros: Any, bias: Any) -> tuple[Any, ...]:
    """Addresses of the weights, of which 0 is absent, and the dtype of scales: what `tensor.data = ...` changes."""
    return (
        weight.data_ptr(), 0 if scales is None else scales.data_ptr(), 0 if zeros is None else zeros.data_ptr(),
        0 if bias is None else bias.data_ptr(), None if scales is None else scales.dtype,
    )  # fmt: skip


def operators_are_seen(x: Any) -> bool:
    """Whether somebody records, batches or differentiates operators, or `x` is a tensor that does something of its own
    with them, and there is to be no launch."""
    return (
        torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None or forward_ad._current_level >= 0
        or (type(x) is not torch.Tensor and type(x).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__)
    )  # fmt: skip


def _scales_element(dtype: Any) -> ElementKind:
    if dtype not in _SCALES:
        raise InvalidProblem("scales", "they must be float16 or bfloat16", rule="dtype", value=dtype)
    return _SCALES[dtype]
