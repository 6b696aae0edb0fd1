"""`AwqLinear`: a linear layer with 4-bit weights, in the place of a `torch.nn.Linear`."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem
from baracuda_py.interop.torch import kept
from baracuda_py.interop.torch.calls import readable, workspace_for
from baracuda_py.interop.torch.weights import AwqWeights
from baracuda_py.ops.quantize.awq_fp8_gemm import Int4AwqFp8GemmArgs, Int4AwqFp8GemmDescriptor
from baracuda_py.ops.quantize.awq_gemm import Int4AwqGemmArgs
from baracuda_py.ops.quantize.awq_tiles import TILE_ROWS
from baracuda_py.ops.quantize.per_token import QuantizePerTokenArgs, QuantizePerTokenDescriptor
from baracuda_py.vocab.elements import element_of_torch
from baracuda_py.vocab.enums import ElementKind, EpilogueKind

__all__ = ["AwqLinear", "operators_are_seen"]

_ALIGNMENT = 16  # bytes; the most that a kernel asks of activations
_PARTS = ("qweight", "scales", "qzeros", "bias")


class AwqLinear(AwqWeights):
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

    _overlap = False
    _fp8_rows: int | None = None
    _checked: tuple[Any, ...] | None = None  # weak references to weights once checked, places, launches

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

    def _changed_weights(self) -> None:
        self._checked = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": None}  # launches are this process's

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
