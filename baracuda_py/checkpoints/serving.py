"""What would run a layer, and over how many ranks it may be split; from its sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from attrs import field, frozen

from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.splitting import FusedPart, Split, SplitAxis, split_layer
from baracuda_py.checkpoints.transcode import plan_group_size
from baracuda_py.errors import BaracudaError, NoKernel
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout
from baracuda_py.plan import Plan
from baracuda_py.registry import Explanation, Registry
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.sku import KernelSku

__all__ = ["LayerJudge", "Serving", "SplitVerdict", "reason"]

_WORTH_IT = 0.95  # of the time with weights as they lie: what repacking them must come below


@frozen
class Serving:
    """Which kernel multiplies `m` rows by a layer.

    Attributes:
        m: rows of the activation.
        layout: of the weights that the kernel takes.
        sku: of the kernel; None if none serves.
        estimate_us: in microseconds, rough; it ranks kernels.
        workspace_nbytes: that the kernel must be lent.
        refusal: why none serves; `""` if one does.
    """

    m: int
    layout: AwqWeightLayout
    sku: KernelSku | None
    estimate_us: float | None
    workspace_nbytes: int
    refusal: str = ""


@frozen
class SplitVerdict:
    """Whether a layer can be split over `degree` ranks: one rank's part, or why not."""

    degree: int
    part: Split | None
    refusal: str = ""


_Verdicts = tuple[SplitVerdict, ...]


@frozen(eq=False)
class LayerJudge:
    """What serves a layer, and how it may be split; made once for all layers that are alike."""

    registry: Registry[Plan]
    device: Device
    m: tuple[int, ...]
    degrees: tuple[int, ...]
    _known: dict[Any, tuple[tuple[Serving, ...], _Verdicts, _Verdicts]] = field(factory=dict)

    def __call__(
        self, layer: PackedLayer, parts: tuple[FusedPart, ...] | None
    ) -> tuple[tuple[Serving, ...], _Verdicts, _Verdicts]:
        """Servings for each m, and verdicts on columns and rows for each degree."""
        alike = (
            layer.format, layer.geometry, layer.symmetric, layer.act_order, layer.scales_element, layer.has_bias, parts
        )  # fmt: skip
        if alike not in self._known:
            columns, rows = (
                tuple(self._verdict(layer, axis, degree, parts) for degree in self.degrees)
                for axis in (SplitAxis.COLUMNS, SplitAxis.ROWS)
            )
            self._known[alike] = (self._servings(layer), columns, rows)
        return self._known[alike]

    def _servings(self, layer: PackedLayer) -> tuple[Serving, ...]:
        """All in one layout of the weights: the stored one, unless another is faster by more than a twentieth."""
        layouts = [AwqWeightLayout.OC_MAJOR, AwqWeightLayout.HF_GEMM]
        if layer.format is PackedFormat.AWQ_GEMM:
            layouts.reverse()
        try:
            problem = _problem(layer, layer.ic, layer.oc, layer.group_size)
        except BaracudaError as error:
            return tuple(Serving(m, layouts[0], None, None, 0, reason(error)) for m in self.m)
        choices = [
            [self._serving(attrs.evolve(problem, m=m, weight_layout=layout)) for m in self.m] for layout in layouts
        ]
        stored, other = choices
        return tuple(other if _rank(other) < _rank(stored, _WORTH_IT) else stored)

    def _serving(self, descriptor: Any) -> Serving:
        explained = self.registry.explain(descriptor, self.device)
        m, layout = descriptor.m, descriptor.weight_layout
        if explained.chosen is None:
            return Serving(m, layout, None, None, 0, _refusal(explained))
        estimate = explained.candidates[0].cost_us
        nbytes = explained.op.workspace_size(explained.chosen, descriptor, self.device)
        return Serving(m, layout, explained.chosen.sku, estimate, nbytes)

    def _verdict(
        self, layer: PackedLayer, axis: SplitAxis, degree: int, parts: tuple[FusedPart, ...] | None
    ) -> SplitVerdict:
        """Whether a rank's part exists, and is a problem that the op allows."""
        try:
            part = split_layer(layer, axis, degree, parts)
            if not layer.act_order:  # else the kernels do not take it anyway, whole or not
                problem = _problem(layer, part.ic, part.oc, part.group_size)
                self.registry.op_for(problem).check(problem)
        except BaracudaError as error:
            return SplitVerdict(degree, None, reason(error))
        return SplitVerdict(degree, part)


def _problem(layer: PackedLayer, ic: int, oc: int, group_size: int) -> Any:
    """The GEMM of one row with a layer of other sizes, in the groups that the op would be given.

    Raises:
        UnsupportedCheckpoint: no conversion makes such groups, or not without a loss.
    """
    if layer.act_order:
        raise layer.refuse(
            "the kernels take groups in order of ic", "act_order", got="act-order",
            why="only data can tell whether g_idx is in order after all",
        )  # fmt: skip
    problem: Any = layer.descriptor(1)
    return attrs.evolve(problem, ic=ic, oc=oc, group_size=plan_group_size(attrs.evolve(layer, group_size=group_size)))


def _rank(servings: Sequence[Serving], favour: float = 1.0) -> tuple[int, float]:
    """How many are refused, and the estimates in all, times `favour`."""
    return sum(bool(one.refusal) for one in servings), favour * sum(one.estimate_us or 0.0 for one in servings)


def _refusal(explained: Explanation) -> str:
    error = explained.error
    assert error is not None
    reasons = [refused.refusal for refused in error.refusals] if isinstance(error, NoKernel) else [error]
    # Kernels for another device or layout say nothing about the layer.
    telling = [one for one in reasons if one.rule not in ("arch", "layout", "weight_layout")] or reasons
    return "; ".join(dict.fromkeys(map(reason, telling)))


def reason(error: BaracudaError) -> str:
    """The message without the place, which the report names."""
    return str(error).removeprefix(f"{error.where}: ")
