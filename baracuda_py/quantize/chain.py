"""Linears of a checkpoint that depend on each other, quantised one after the other when their turn to be written comes.

Linears that share an input are quantised with one input scale, which then divides the rows of the linear, or the
weight of the norm, that makes this input; a linear that was divided so is quantised after that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import evolve, field, frozen
from numpy.typing import NDArray

from baracuda_py.checkpoints.folder import read_tensor
from baracuda_py.checkpoints.formats import Geometry, PackedFormat, expected_parts
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.stream import PlannedTensor, Unit
from baracuda_py.checkpoints.written_config import LayerFacts
from baracuda_py.checkpoints.written_layer import WrittenLayer
from baracuda_py.ops.quantize.awq_packing import HF_GEMM, unpack_weight, unpack_zeros
from baracuda_py.quantize.awq import AwqResult, quantize_awq_group
from baracuda_py.quantize.blocks import Job
from baracuda_py.quantize.calibration import Calibration, located
from baracuda_py.quantize.choice import Linear, weight_of
from baracuda_py.quantize.engines import Engine
from baracuda_py.quantize.folding import fold_into_linear, fold_into_norm
from baracuda_py.quantize.rounding import Rounded
from baracuda_py.quantize.search import ALPHAS
from baracuda_py.quantize.weights import BLOCK_ELEMENTS, blocks, check_floats
from baracuda_py.vocab.elements import numpy_dtype
from baracuda_py.vocab.enums import ElementKind

__all__ = ["Chain", "LayerReport", "arrays_nbytes"]

_ARRAYS = 16  # blocks in float32 that a search holds at a time


def arrays_nbytes(engine: Engine) -> int:
    """What the blocks take that a search works on."""
    return _ARRAYS * 4 * (engine.block_elements or BLOCK_ELEMENTS)


@frozen
class LayerReport:
    """How a linear was quantised. Errors are relative, of what was quantised: after scales were folded into it.

    Attributes:
        name, ic, oc: of the linear.
        scaled_by: the module into which its input scale went; `""` if it has none.
        unscaled_because: why activations did not scale it; `""` if they did, or if there are none.
        alpha: exponent of the magnitudes; 0: all scales are 1.
        weight_error: of the weight.
        rtn_error: of the output on the activations, rounded to nearest; None without activations.
        output_error: of the output as it was quantised; None without activations.
        before_nbytes, after_nbytes: of its tensors.
    """

    name: str
    ic: int
    oc: int
    scaled_by: str
    unscaled_because: str
    alpha: float
    weight_error: float
    rtn_error: float | None
    output_error: float | None
    before_nbytes: int
    after_nbytes: int


@frozen(eq=False)
class Chain:
    """Jobs in order, and as what their linears will be written.

    Attributes:
        jobs: at least one.
        written: the layers, by name; their tensors are placeholders.
        folded: plain tensors that scales go into, which are written with the chain.
    """

    jobs: tuple[Job, ...]
    written: Mapping[str, WrittenLayer] = field(repr=False)
    folded: tuple[TensorHeader, ...] = field(repr=False)
    _tensors: Mapping[str, TensorHeader] = field(repr=False)
    _calibration: Calibration | None = field(repr=False)
    _group_size: int
    _device: str | None
    _reports: dict[str, LayerReport] = field(repr=False)

    @classmethod
    def of(
        cls,
        jobs: Sequence[Job],
        tensors: Mapping[str, TensorHeader],
        calibration: Calibration | None,
        format: PackedFormat,
        group_size: int,
        scales_element: ElementKind | None,
        device: str | None,
        reports: dict[str, LayerReport],
    ) -> Chain:
        """Plan `jobs`; `reports` gets a report of each linear when it is made.

        Raises:
            UnsupportedCheckpoint: the format cannot have a linear's sizes.
        """
        linears = [linear for job in jobs for linear in job.linears]
        names = {linear.name for linear in linears}
        makers = [job.maker for job in jobs if job.maker and job.maker not in names]
        parts = [weight_of(maker, part) for maker in makers for part in ("weight", "bias")]
        return cls(
            tuple(jobs),
            {
                one.name: WrittenLayer.of(_placeholder(one, group_size, scales_element or _element(job)), format, None)
                for job in jobs for one in job.linears
            },
            tuple(tensors[name] for name in parts if name in tensors), tensors, calibration, group_size,
            device, reports,
        )  # fmt: skip

    @property
    def sources(self) -> list[str]:
        """Names of the tensors that are written in another form."""
        linears = [linear for job in self.jobs for linear in job.linears]
        headers = [header for linear in linears for header in (linear.weight, linear.bias) if header is not None]
        return [header.name for header in (*headers, *self.folded)]

    @property
    def facts(self) -> list[LayerFacts]:
        """For the configuration."""
        return [layer.facts for layer in self.written.values()]

    @property
    def memory_nbytes(self) -> int:
        """What it needs beside blocks: source and result of a job twice, folded weights, and activations."""
        folded = {job.maker for job in self.jobs}
        copies = sum(linear.nbytes for job in self.jobs for linear in job.linears if linear.name in folded)
        return copies + max(self._job_nbytes(job) for job in self.jobs)

    def _job_nbytes(self, job: Job) -> int:
        packed = sum(linear.ic * linear.oc for linear in job.linears)  # bytes: nibbles twice
        activations = 0
        if job.activations:
            assert self._calibration is not None
            ic = job.linears[0].ic
            group = ic if self._group_size == -1 else self._group_size
            activations = self._calibration.search_nbytes(job.activations, group)
        return sum(linear.nbytes for linear in job.linears) + 2 * packed + activations

    def unit(self) -> Unit:
        """What a shard will hold."""
        layers = [self.written[linear.name] for job in self.jobs for linear in job.linears]
        planned = [tensor for layer in layers for tensor in layer.tensors.values()]
        planned += [PlannedTensor.like(header.name, header) for header in self.folded]
        return Unit(layers[0].layer.name, tuple(planned), self._make)

    def _make(self) -> Iterator[Any]:
        changed: dict[str, NDArray[Any]] = {}  # tensors that a scale was folded into
        for job in self.jobs:
            weights = [self._read(linear.weight, changed) for linear in job.linears]
            biases = [None if one.bias is None else self._read(one.bias, changed) for one in job.linears]
            results = self._quantized(job, weights, biases)
            if job.maker and results[0].alpha:
                self._fold(job.maker, results[0].input_scale, changed)
            self._report(job, weights, results)
            del weights  # so that their mappings end
            for linear, result in zip(job.linears, results, strict=True):
                yield from self._packed(linear, result)
        for header in self.folded:
            yield changed.get(header.name, header)

    def _read(self, header: TensorHeader, changed: dict[str, NDArray[Any]]) -> NDArray[Any]:
        return changed.pop(header.name) if header.name in changed else read_tensor(header)

    def _quantized(
        self, job: Job, weights: Sequence[NDArray[Any]], biases: Sequence[NDArray[Any] | None]
    ) -> tuple[AwqResult, ...]:
        activations = None
        if job.activations:
            assert self._calibration is not None
            activations = self._calibration.read(job.activations)
        element = self.written[job.linears[0].name].layer.scales_element
        names = ", ".join(linear.weight.name for linear in job.linears)
        with located(job.linears[0].weight.file, names):
            try:
                return quantize_awq_group(
                    weights, group_size=self._group_size, activations=activations, biases=biases,
                    scales_element=element, clip=activations is not None, alphas=ALPHAS if job.maker else (0.0,),
                    device=self._device,
                )  # fmt: skip
            except Exception:
                for linear, weight, bias in zip(job.linears, weights, biases, strict=True):
                    _check_values(linear, weight, bias)  # names the one at fault
                raise

    def _fold(self, maker: str, scale: NDArray[np.float32], changed: dict[str, NDArray[Any]]) -> None:
        """Divide what `maker` makes."""
        weight = self._tensors[weight_of(maker)]
        bias = self._tensors.get(weight_of(maker, "bias"))
        with located(weight.file, weight.name):
            if maker in self.written:
                values = None if bias is None else read_tensor(bias)
                folded, folded_bias = fold_into_linear(read_tensor(weight), values, scale)
            else:
                folded = fold_into_norm(read_tensor(weight), scale)
                folded_bias = None if bias is None else fold_into_norm(read_tensor(bias), scale)
        changed[weight.name] = folded
        if bias is not None and folded_bias is not None:
            changed[bias.name] = folded_bias

    def _report(self, job: Job, weights: Sequence[NDArray[Any]], results: Sequence[AwqResult]) -> None:
        known = bool(job.activations)
        for linear, weight, result in zip(job.linears, weights, results, strict=True):
            self._reports[linear.name] = LayerReport(
                linear.name, linear.ic, linear.oc, job.maker, job.why, result.alpha,
                _weight_error(weight, result) if known else result.awq_error,
                result.rtn_error if known else None, result.awq_error if known else None,
                linear.nbytes, sum(tensor.nbytes for tensor in self.written[linear.name].tensors.values()),
            )  # fmt: skip

    def _packed(self, linear: Linear, result: AwqResult) -> Iterator[Any]:
        """The tensors of a layer, in the format that is written."""
        tensors = {"qweight": result.qweight, "qzeros": result.qzeros, "scales": result.scales}
        if result.bias is not None:
            tensors["bias"] = result.bias
        written = self.written[linear.name]
        made = evolve(written, layer=evolve(written.layer, tensors=tensors))
        yield from made.unit(False, {}).make()


def _element(job: Job) -> ElementKind:
    """Of the scales of a job's linears, which are made together: BF16 if one's weight is."""
    return ElementKind.BF16 if any(one.weight.dtype == "BF16" for one in job.linears) else ElementKind.F16


def _placeholder(linear: Linear, group_size: int, scales_element: ElementKind) -> PackedLayer:
    """The layer that quantising makes, with its tensors' types and shapes, and no data behind them."""
    sizes = Geometry(linear.ic, linear.oc, group_size)
    dtypes: dict[str, Any] = {"qweight": np.int32, "qzeros": np.int32, "scales": numpy_dtype(scales_element)}
    if linear.bias is not None:
        stored = scales_element if linear.bias.dtype == "F32" else ElementKind[linear.bias.dtype]
        dtypes["bias"] = numpy_dtype(stored)
    parts = expected_parts(PackedFormat.AWQ_GEMM, sizes)
    tensors = {part: np.broadcast_to(np.zeros((), dtype), parts[part].shape) for part, dtype in dtypes.items()}
    return PackedLayer(
        linear.name, PackedFormat.AWQ_GEMM, linear.ic, linear.oc, group_size, symmetric=False, act_order=False,
        scales_element=scales_element, tensors=tensors, file=Path(linear.weight.file),
    )  # fmt: skip


def _check_values(linear: Linear, weight: NDArray[Any], bias: NDArray[Any] | None) -> None:
    with located(linear.weight.file, linear.weight.name):
        check_floats(weight, "weight", "(oc, ic)", rank=2)
    if bias is not None and linear.bias is not None:
        with located(linear.bias.file, linear.bias.name):
            check_floats(bias, "bias", "(oc,)", rank=1)


def _weight_error(weight: NDArray[Any], result: AwqResult) -> float:
    """The norm of what quantising changed, as seen by inputs that are not divided, over the weight's."""
    changed = norm = 0.0
    for rows in blocks(*weight.shape):
        words = slice(rows.start // 8, rows.stop // 8)
        nibbles = unpack_weight(np.ascontiguousarray(result.qweight[:, words]), HF_GEMM)
        zeros = unpack_zeros(np.ascontiguousarray(result.qzeros[:, words]), HF_GEMM)
        made = Rounded(nibbles, zeros, result.scales[:, rows]).dequantize() / result.input_scale
        exact = weight[rows].astype(np.float64)
        changed += float(np.square(made - exact).sum())
        norm += float(np.square(exact).sum())
    return float(np.sqrt(changed / norm)) if norm else 0.0
