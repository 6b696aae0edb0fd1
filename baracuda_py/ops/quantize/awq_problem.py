"""What descriptors of AWQ ops derive from their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from baracuda_py.vocab.enums import ElementKind, EpilogueKind

if TYPE_CHECKING:
    from baracuda_py.ops.quantize.awq_layout import AwqWeightLayout

__all__ = ["AwqProduct", "AwqWeight", "PackedAwqWeight"]


class AwqWeight:
    """An (ic, oc) weight in groups."""

    if TYPE_CHECKING:

        @property
        def ic(self) -> int: ...
        @property
        def oc(self) -> int: ...
        @property
        def group_size(self) -> int: ...

    @property
    def group(self) -> int:
        """Input channels of one group."""
        return self.ic if self.group_size == -1 else self.group_size

    @property
    def groups(self) -> int:
        """Groups along ic."""
        return self.ic // self.group if self.group else 0

    @property
    def weights(self) -> int:
        """Nibbles of the weight."""
        return self.ic * self.oc


class PackedAwqWeight(AwqWeight):
    """A weight in one layout."""

    if TYPE_CHECKING:

        @property
        def weight_layout(self) -> AwqWeightLayout: ...

    @property
    def weight_shape(self) -> tuple[int, int]:
        """Shape of `weight_packed`, in 32-bit words."""
        return self.weight_layout.weight_shape(self.ic, self.oc, self.group_size)

    @property
    def scales_apart(self) -> bool:
        """Whether the weight's scales and zero points are tensors of their own."""
        return not self.weight_layout.holds_scales


class AwqProduct(PackedAwqWeight):
    """A product with such a weight."""

    if TYPE_CHECKING:

        @property
        def m(self) -> int: ...
        @property
        def element(self) -> ElementKind: ...
        @property
        def scales_element(self) -> ElementKind | None: ...
        @property
        def epilogue(self) -> EpilogueKind: ...

    @property
    def outputs(self) -> int:
        """Elements of the output."""
        return self.m * self.oc

    @property
    def scales_kind(self) -> ElementKind:
        """The element of the weight's scales."""
        return self.scales_element or self.element

    @property
    def has_bias(self) -> bool:
        """Whether the epilogue adds a bias."""
        return self.epilogue is not EpilogueKind.IDENTITY
