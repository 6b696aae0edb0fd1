"""One quantised linear layer, as it lies in a checkpoint or as a conversion made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from baracuda_py.checkpoints.folder import read_tensor
from baracuda_py.checkpoints.formats import Geometry, PackedFormat
from baracuda_py.checkpoints.headers import TensorHeader
from baracuda_py.errors import CheckpointError, UnsupportedCheckpoint
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout, Int4AwqGemmDescriptor
from baracuda_py.vocab.enums import ElementKind, EpilogueKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from baracuda_py.checkpoints.nibbles import LossReport
    from baracuda_py.checkpoints.transcode import GemmOperands

__all__ = ["LazyTensors", "PackedLayer"]

_ELEMENTS = {"F16": ElementKind.F16, "BF16": ElementKind.BF16, "F32": ElementKind.F32}


class LazyTensors(Mapping[str, Any]):
    """The tensors of a layer by the last part of their names; each access maps the tensor anew, and reads nothing."""

    def __init__(self, headers: Mapping[str, TensorHeader]) -> None:
        self._headers = headers

    @property
    def headers(self) -> Mapping[str, TensorHeader]:
        """Where they lie."""
        return self._headers

    def __getitem__(self, part: str) -> NDArray[Any]:
        return read_tensor(self._headers[part])

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def __contains__(self, part: object) -> bool:
        return part in self._headers

    def __repr__(self) -> str:
        return f"LazyTensors({', '.join(f'{part}: {header}' for part, header in self._headers.items())})"


@frozen(eq=False)
class PackedLayer:
    """A linear layer of 4-bit weights.

    Attributes:
        name: of the module, as on disk, e.g. `"model.layers.0.mlp.experts.3.w1"`.
        format: how the tensors are packed; `checkpoints.formats` lists them.
        ic, oc: input and output features.
        group_size: input features that share a scale; -1: all of them.
        symmetric: no zero points are stored; they are 8.
        act_order: groups are not in the order of ic, says the configuration, and an index (g_idx) is stored. What is
            in an index counts, whatever the configuration says.
        scales_element: F16, BF16 or F32.
        tensors: by the last part of their names (`"qweight"` ...); read-only.
        file: that holds the weight; of a conversion's result, where it came from.
        headers: of the tensors; empty for a conversion's result.
        act_scales: (ic,): what the layer's input has to be divided by, if the checkpoint says so, or None. Neither the
            weights nor `gemm_operands` contain the division: whoever runs the layer without it gets wrong results.
        loss: what a conversion changed; None for a layer as it was read.
    """

    name: str
    format: PackedFormat
    ic: int
    oc: int
    group_size: int
    symmetric: bool
    act_order: bool
    scales_element: ElementKind
    tensors: Mapping[str, NDArray[Any]] = field(repr=False)
    file: Path
    headers: Mapping[str, TensorHeader] = field(factory=dict, repr=False)
    _act_scales: Any = field(default=None, repr=False)  # a TensorHeader, an array, or None
    loss: LossReport | None = None

    @classmethod
    def from_headers(
        cls,
        name: str,
        format: PackedFormat,
        sizes: Geometry,
        headers: Mapping[str, TensorHeader],
        *,
        act_order: bool = False,
        act_scales: TensorHeader | None = None,
    ) -> PackedLayer:
        """A layer on disk; nothing is read. `act_order` is what the configuration says."""
        compressed = format is PackedFormat.COMPRESSED_TENSORS
        weight = headers["weight_packed" if compressed else "qweight"]
        scales = headers["weight_scale" if compressed else "scales"]
        return cls(
            name, format, sizes.ic, sizes.oc, sizes.group_size,
            symmetric=format is PackedFormat.AWQ_MARLIN or (compressed and "weight_zero_point" not in headers),
            act_order="weight_g_idx" in headers or (act_order and "g_idx" in headers),
            scales_element=_ELEMENTS[scales.dtype], tensors=LazyTensors(headers), file=weight.file,
            headers=headers, act_scales=act_scales,
        )  # fmt: skip

    @property
    def geometry(self) -> Geometry:
        """ic, oc and group size."""
        return Geometry(self.ic, self.oc, self.group_size)

    @property
    def groups(self) -> int:
        """Groups along ic."""
        return self.geometry.groups

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias; reads nothing."""
        return "bias" in self.tensors

    @property
    def bias(self) -> NDArray[Any] | None:
        """(oc,), f16, bf16 or f32."""
        return self.tensors["bias"] if self.has_bias else None

    @property
    def act_scales(self) -> NDArray[Any] | None:
        """(ic,)."""
        source = self._act_scales
        return read_tensor(source) if isinstance(source, TensorHeader) else source

    @property
    def act_scales_name(self) -> str:
        """The tensor's name on disk; `""` if there is none."""
        return self._act_scales.name if isinstance(self._act_scales, TensorHeader) else ""

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        if self.headers:
            return sum(header.nbytes for header in self.headers.values())
        return sum(array.nbytes for array in self.tensors.values())

    def descriptor(
        self,
        m: int,
        *,
        element: ElementKind | None = None,
        epilogue: EpilogueKind | None = None,
        layout: AwqWeightLayout = AwqWeightLayout.OC_MAJOR,
    ) -> Int4AwqGemmDescriptor:
        """The GEMM of `m` rows with this layer.

        Args:
            m: rows of the activation.
            element: of activation and output; None: as the scales, or F16 if they are F32.
            epilogue: None: BIAS if the layer has a bias, else IDENTITY.
            layout: of the operands, as `gemm_operands` was given it.

        Raises:
            CheckpointError: the epilogue needs a bias and the layer has none.
            UnsupportedCheckpoint: groups of which no part is a group of the op.
        """
        scales_element = ElementKind.F16 if self.scales_element is ElementKind.F32 else self.scales_element
        if epilogue is None:
            epilogue = EpilogueKind.BIAS if self.has_bias else EpilogueKind.IDENTITY
        if epilogue is not EpilogueKind.IDENTITY and not self.has_bias:
            raise CheckpointError(
                self.file, f"epilogue {epilogue.name} needs a bias", tensor=self.name, rule="bias",
                got="a layer without one", fix="Use the epilogue IDENTITY",
            )  # fmt: skip
        from baracuda_py.checkpoints.transcode import plan_group_size

        return Int4AwqGemmDescriptor(
            m, self.ic, self.oc, plan_group_size(self), split_k_iters=None, weight_layout=layout,
            element=scales_element if element is None else element, epilogue=epilogue, scales_element=scales_element,
        )  # fmt: skip

    def gemm_operands(self, layout: AwqWeightLayout = AwqWeightLayout.OC_MAJOR, *, lossy: bool = False) -> GemmOperands:
        """What `Int4AwqGemmArgs` takes: weight_packed, scales, zeros and bias, in `layout`.

        The activation must be divided by `act_scales` first, if they are not None.

        Raises:
            TypeError: `layout` is no AwqWeightLayout.
            UnsupportedCheckpoint: weights would change, and `lossy` is False; see `transcode`.
        """
        from baracuda_py.checkpoints.transcode import gemm_operands

        return gemm_operands(self, layout, lossy=lossy)

    def refuse(self, must: str, rule: str, *, got: str = "", why: str = "", fix: str = "") -> UnsupportedCheckpoint:
        """The error that this layer cannot be served."""
        return UnsupportedCheckpoint(self.file, must, tensor=self.name, rule=rule, got=got, why=why, fix=fix)

    def invalid(self, part: str, must: str, rule: str, *, got: str = "", why: str = "") -> CheckpointError:
        """The error that tensor `part` of this layer is damaged."""
        return CheckpointError(self.file, must, tensor=f"{self.name}.{part}", rule=rule, got=got, why=why)
