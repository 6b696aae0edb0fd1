"""Dense GEMM: output = activation(alpha * a @ b + beta * output + bias), for one pair of matrices or a strided batch.

Layouts name the order of a, b and output, R for rows and C for columns. An operand ordered by columns is passed as the
row-major matrix that lies in memory, its transpose:

    RRR  a (m, k)  b (k, n)         RCR  a (m, k)  b (n, k)         CRR  a (k, m)  b (k, n)

so that the b of RCR is a linear layer's (out, in) weight. With `batch` set, every tensor but the bias has the batch as
its first axis; with `batch` None none has it.
"""

from __future__ import annotations

from enum import Enum
from itertools import product
from typing import TYPE_CHECKING, Any, Self

from baracuda_py.errors import Unsupported
from baracuda_py.ops.gemm.dense_gemm_host import dense_gemm_host
from baracuda_py.ops.gemm.dense_gemm_reference import dense_gemm_reference
from baracuda_py.registry import Kernel, Op
from baracuda_py.vocab.code import HostCode, LibraryCode
from baracuda_py.vocab.descriptors import arguments, descriptor, enum_field, float_field, int_field, tensor
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import (
    ArchSku,
    BackendKind,
    ElementKind,
    EpilogueKind,
    GemmKind,
    LayoutSku,
    MathPrecision,
    OpCategory,
)
from baracuda_py.vocab.rules import Rule, at_least, at_most, f32_number, non_negative, one_of
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

__all__ = ["OP", "DenseGemmArgs", "DenseGemmDescriptor", "GeluForm"]

_ELEMENTS = (ElementKind.F16, ElementKind.BF16, ElementKind.F32, ElementKind.F64)
_WIDE = (ElementKind.F32, ElementKind.F64)


class GeluForm(Enum):
    """What BIAS_GELU computes. The two differ by less than 5e-4, most of all near +-2.7."""

    EXACT = "exact"  # v * Phi(v), Phi the normal distribution function
    TANH = "tanh"  # v / 2 * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 v^3)))


@descriptor
class DenseGemmDescriptor:
    """A product of (m, k) and (k, n) matrices.

    Attributes:
        m, n, k: extents; 0 is valid. With k == 0 the product is zero, and the rest of the formula stands.
        batch: None for matrices (rank 2); a number, 1 too, for tensors with a leading batch axis (rank 3).
        layout: RRR, RCR or CRR: which operands are stored transposed.
        element: of a, b, bias and output: F16, BF16, F32 (IEEE, never TF32) or F64.
        epilogue: what is fused behind the product; all but IDENTITY add a bias along n.
        alpha: factor of the product. Of f32, as beta is, unless elements are F64: one that f32 rounds to infinity or to
            0 is refused (torch refuses the former, and takes the latter for 0).
        beta: factor of the output's previous content; with 0 that content is not read.
        gelu: what BIAS_GELU computes; None: EXACT for F32 and F64, either form for F16 and BF16.
    """

    m: int = int_field()
    n: int = int_field()
    k: int = int_field()
    batch: int | None = int_field(default=None)
    layout: LayoutSku = enum_field(LayoutSku, default=LayoutSku.RRR)
    element: ElementKind = enum_field(ElementKind, default=ElementKind.F16)
    epilogue: EpilogueKind = enum_field(EpilogueKind, default=EpilogueKind.IDENTITY)
    alpha: float = float_field(default=1.0)
    beta: float = float_field(default=0.0)
    gelu: GeluForm | None = enum_field(GeluForm, default=None)

    if TYPE_CHECKING:

        def with_batch(self, value: int | None) -> Self: ...
        def with_layout(self, value: LayoutSku) -> Self: ...
        def with_element(self, value: ElementKind) -> Self: ...
        def with_epilogue(self, value: EpilogueKind) -> Self: ...
        def with_alpha(self, value: float) -> Self: ...
        def with_beta(self, value: float) -> Self: ...
        def with_gelu(self, value: GeluForm | None) -> Self: ...

    @property
    def a_transposed(self) -> bool:
        """Whether a is stored (k, m)."""
        return self.layout is LayoutSku.CRR

    @property
    def b_transposed(self) -> bool:
        """Whether b is stored (n, k)."""
        return self.layout is LayoutSku.RCR

    @property
    def is_f64(self) -> bool:
        """Whether the product is computed in f64; else in f32."""
        return self.element is ElementKind.F64

    @property
    def a_shape(self) -> tuple[int, ...]:
        """Shape of a as it is stored."""
        return self._batched(self.k, self.m) if self.a_transposed else self._batched(self.m, self.k)

    @property
    def b_shape(self) -> tuple[int, ...]:
        """Shape of b as it is stored."""
        return self._batched(self.n, self.k) if self.b_transposed else self._batched(self.k, self.n)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        return self._batched(self.m, self.n)

    def _batched(self, rows: int, columns: int) -> tuple[int, ...]:
        return (rows, columns) if self.batch is None else (self.batch, rows, columns)

    @property
    def matrices(self) -> int:
        """How many products there are."""
        return 1 if self.batch is None else self.batch

    @property
    def has_bias(self) -> bool:
        """Whether the epilogue adds a bias."""
        return self.epilogue is not EpilogueKind.IDENTITY

    @property
    def gelu_form(self) -> GeluForm | None:
        """The form of GELU that is asked for; None when either will do."""
        return GeluForm.EXACT if self.gelu is None and self.element in _WIDE else self.gelu


@arguments
class DenseGemmArgs:
    """Tensors of one GEMM. Rows, and the matrices of a batch, may be strided; innermost strides are 1."""

    a: Any = tensor("element", "a_shape", strides="rows", doc="([batch,] m, k), row-major; (k, m) for CRR")
    b: Any = tensor("element", "b_shape", strides="rows", doc="([batch,] k, n), row-major; (n, k) for RCR")
    output: Any = tensor("element", "output_shape", strides="rows", role="inout", doc="([batch,] m, n), row-major")
    bias: Any = tensor("element", ("n",), needed="has_bias", doc="(n,), for all matrices; not with IDENTITY")


_F32_FACTORS = "products of elements other than f64 are scaled in f32"
RULES = (
    non_negative("m"),
    non_negative("n"),
    non_negative("k"),
    non_negative("batch", fix="Pass None for matrices without a batch axis"),
    one_of("layout", tuple(LayoutSku)),
    one_of("element", _ELEMENTS),
    one_of("epilogue", tuple(EpilogueKind)),
    f32_number("alpha", unless="is_f64", why=_F32_FACTORS),
    f32_number("beta", unless="is_f64", why=_F32_FACTORS),
)


def _reference(desc: DenseGemmDescriptor, **tensors: Any) -> Any:
    return dense_gemm_reference(
        **tensors, a_transposed=desc.a_transposed, b_transposed=desc.b_transposed, alpha=desc.alpha, beta=desc.beta,
        epilogue=desc.epilogue.name.lower(), tanh_gelu=desc.gelu is GeluForm.TANH,
    )  # fmt: skip


def _host(desc: DenseGemmDescriptor, **tensors: Any) -> None:
    dense_gemm_host(
        **tensors, a_transposed=desc.a_transposed, b_transposed=desc.b_transposed, alpha=desc.alpha, beta=desc.beta,
        epilogue=desc.epilogue, tanh_gelu=desc.gelu is GeluForm.TANH,
    )  # fmt: skip


def _sku(
    layout: LayoutSku,
    element: ElementKind,
    epilogue: EpilogueKind,
    arch: ArchSku,
    backend: BackendKind,
    guarantee: PrecisionGuarantee,
    variant: str = "",
) -> KernelSku:
    return KernelSku(
        OpCategory.GEMM, GemmKind.DENSE, element, element, layout, epilogue, arch, backend, guarantee, variant
    )


# -- host -------------------------------------------------------------------------------------------------------------


def _host_cost(desc: DenseGemmDescriptor, device: Device) -> float:
    return 20 + 2 * desc.matrices * desc.m * desc.n * desc.k / device.flop_per_us


def _host_kernel(layout: LayoutSku, element: ElementKind, epilogue: EpilogueKind) -> Kernel:
    wide = element if element in _WIDE else ElementKind.F32
    guarantee = PrecisionGuarantee(
        MathPrecision[wide.name],
        wide,
        wide,
        bit_stable_on_same_hardware=False,  # BLAS sums in an order that depends on its threads
        deterministic=True,
        batch_invariant=False,
    )
    return Kernel(
        _sku(layout, element, epilogue, ArchSku.HOST, BackendKind.HOST, guarantee, "numpy"),
        HostCode(_host),
        cost=_host_cost,
        doc="NumPy's BLAS on blocks, 16-bit elements widened to f32 a block at a time",
    )


# -- cuBLASLt ---------------------------------------------------------------------------------------------------------

_WORKSPACE_BYTES = 32 << 20  # what cuBLAS recommends on Hopper, the most of any architecture
# f32 and f64 leave the tensor cores that device rates are given for.
_SLOWDOWN = {ElementKind.F32: 16, ElementKind.F64: 16}
_LAUNCH_US = 4
# cuBLASLt fuses no SiLU, and nothing at all in f64.
_FUSED = (EpilogueKind.IDENTITY, EpilogueKind.BIAS, EpilogueKind.BIAS_RELU, EpilogueKind.BIAS_GELU)
_LIBRARY_EPILOGUES = {
    ElementKind.F16: _FUSED,
    ElementKind.BF16: _FUSED,
    ElementKind.F32: _FUSED,
    ElementKind.F64: (EpilogueKind.IDENTITY,),
}


def _library_problem(desc: DenseGemmDescriptor) -> dict[str, Any]:
    """The keywords of `backends.cublaslt.MatmulProblem`."""
    return {
        "m": desc.m,
        "n": desc.n,
        "k": desc.k,
        "batch": desc.matrices,
        "element": desc.element,
        "a_transposed": desc.a_transposed,
        "b_transposed": desc.b_transposed,
        "epilogue": desc.epilogue,
        "alpha": desc.alpha,
        "beta": desc.beta,
        "workspace_bytes": _WORKSPACE_BYTES,
    }


def _library_workspace(_desc: DenseGemmDescriptor, _device: Device) -> int:
    return _WORKSPACE_BYTES


def _library_cost(desc: DenseGemmDescriptor, device: Device) -> float:
    m, n, k = desc.m, desc.n, desc.k
    nbytes = desc.matrices * (m * k + k * n + m * n) * bits_of(desc.element) // 8
    flop = 2 * desc.matrices * m * n * k * _SLOWDOWN.get(desc.element, 1)
    return _LAUNCH_US + max(nbytes / (0.65 * device.bytes_per_us), flop / (0.75 * device.flop_per_us))


def _library_kernel(layout: LayoutSku, element: ElementKind, epilogue: EpilogueKind) -> Kernel:
    accumulator = ElementKind.F64 if element is ElementKind.F64 else ElementKind.F32
    guarantee = PrecisionGuarantee(
        MathPrecision[element.name],
        accumulator,
        accumulator,
        # cuBLAS promises the same bits at every run of one version on GPUs of one architecture and size; see
        # "Results Reproducibility" in its documentation. The bits may differ between versions, and between operands
        # whose addresses are not equally aligned.
        bit_stable_on_same_hardware=True,
        deterministic=True,
        batch_invariant=False,  # the algorithm depends on m
    )
    rules: tuple[Rule, ...] = (
        at_least("k", 1, error=Unsupported, why="cuBLASLt multiplies no empty matrices"),
        at_most("batch", 2**31 - 1, why="cuBLASLt counts matrices in 32 bits"),
    )
    if epilogue is EpilogueKind.BIAS_GELU:
        why = "cuBLASLt's GELU is the tanh form"
        rules += (one_of("gelu_form", (GeluForm.TANH,), why=why, fix="Ask for it by with_gelu(GeluForm.TANH)"),)
    return Kernel(
        _sku(layout, element, epilogue, ArchSku.SM80, BackendKind.CUBLAS, guarantee),
        LibraryCode("cublaslt", _library_problem),
        cost=_library_cost,
        rules=rules,
        workspace=_library_workspace,
        doc="any shape and stride on a GPU; fastest where rows are multiples of 16 bytes apart",
    )


def _kernels() -> tuple[Kernel, ...]:
    host = tuple(_host_kernel(*which) for which in product(LayoutSku, _ELEMENTS, EpilogueKind))
    library = tuple(
        _library_kernel(layout, element, epilogue)
        for layout, element in product(LayoutSku, _ELEMENTS)
        for epilogue in _LIBRARY_EPILOGUES[element]
    )
    return library + host


def _examples() -> tuple[DenseGemmDescriptor, ...]:
    every = [
        DenseGemmDescriptor(5, 24, 17, layout=layout, element=element, epilogue=epilogue, gelu=gelu)
        for layout, element, epilogue in product(LayoutSku, _ELEMENTS, EpilogueKind)
        for gelu in (GeluForm if epilogue is EpilogueKind.BIAS_GELU else (None,))
    ]
    scaled = [
        DenseGemmDescriptor(m, 9, 33, batch, layout, element, alpha=-0.5, beta=2.0)
        for m, batch in ((1, 1), (70, 3))
        for layout, element in product(LayoutSku, _ELEMENTS)
    ]
    empty = [
        DenseGemmDescriptor(m, n, k, batch, epilogue=EpilogueKind.BIAS, beta=0.5)
        for m, n, k, batch in ((0, 8, 8, None), (8, 0, 8, 2), (8, 8, 8, 0), (3, 8, 0, None))
    ]
    return (*every, *scaled, *empty)


OP = Op(
    name="dense_gemm",
    category=OpCategory.GEMM,
    kinds=(GemmKind.DENSE,),
    descriptor=DenseGemmDescriptor,
    args=DenseGemmArgs,
    rules=RULES,
    reference=_reference,
    kernels=_kernels(),
    examples=_examples(),
)
