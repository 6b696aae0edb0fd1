"""The enums of baracuda-kernel-vocab, with its discriminants.

Members below a line `# ours` continue the numbering; the others must keep step with the Rust crate. A kind enum
belongs to one `OpCategory` (`KIND_OF_CATEGORY`): category and discriminant together name an op in a `KernelSku`.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "KIND_OF_CATEGORY",
    "ActivationKind",
    "ArchSku",
    "ArgReduceKind",
    "AttentionKind",
    "BackendKind",
    "BiasElementKind",
    "BinaryCmpKind",
    "BinaryKind",
    "ConvKind",
    "CrossEntropyTargetKind",
    "Discriminant",
    "ElementKind",
    "EmbeddingKind",
    "EpilogueKind",
    "FftKind",
    "FillMode",
    "GatedActivationKind",
    "GemmKind",
    "GgufBlockFormat",
    "ImageKind",
    "IndexElementKind",
    "IndexOutputKind",
    "IndexingKind",
    "LayoutSku",
    "LinalgKind",
    "LossKind",
    "LossReduction",
    "MathPrecision",
    "MoeKind",
    "NormalizationKind",
    "OpCategory",
    "PadMode",
    "PoolKind",
    "QuantizeKind",
    "RandomKind",
    "ReduceKind",
    "ReduceToOp",
    "ScanKind",
    "SegmentKind",
    "ShapeLayoutKind",
    "SoftmaxKind",
    "SortKind",
    "TernaryKind",
    "UnaryKind",
]


class Discriminant(IntEnum):
    """Base of the enums: a number that is never falsy, so that `value or default` keeps a member numbered 0."""

    def __bool__(self) -> bool:
        return True


class OpCategory(Discriminant):
    """Family of an op: the first word of its SKU."""

    GEMM = 0
    UNARY_ELEMENTWISE = 1
    BINARY_ELEMENTWISE = 2
    TERNARY_ELEMENTWISE = 3
    GATED_ACTIVATION = 4
    REDUCTION = 5
    SCAN = 6
    NORMALIZATION = 7
    SOFTMAX = 8
    CONVOLUTION = 9
    POOLING = 10
    ATTENTION = 11
    INDEXING = 12
    EMBEDDING = 13
    SHAPE_LAYOUT = 14
    SORTING = 15
    QUANTIZATION = 16
    RANDOM = 17
    LOSS = 18
    SEGMENT_OPS = 19
    IMAGE = 20
    FFT = 21
    LINALG = 22
    MOE = 23


class BackendKind(Discriminant):
    """Who runs a kernel: our own CUDA code, an NVIDIA library, or the host."""

    BESPOKE = 0
    CUTLASS = 1
    CUBLAS = 2
    CUDNN = 3
    CUFFT = 4
    CUSPARSE = 5
    CUSOLVER = 6
    CURAND = 7
    CUTENSOR = 8
    NPP = 9
    CVCUDA = 10
    FLASH_ATTENTION_V2 = 11
    FLASH_INFER = 12
    OZAKI = 13
    # ours
    HOST = 14
    CCCL = 15


class ArchSku(Discriminant):
    """Architecture a kernel is compiled for. `served_by` in `vocab.device` says which GPUs load it."""

    SM80 = 0
    SM89 = 1
    SM90A = 2
    # ours
    HOST = 3  # the CPU that runs Python
    SM100A = 4
    SM120A = 5


class LayoutSku(Discriminant):
    """Row (R) or column (C) order of A, B and the output, in that order."""

    RCR = 0
    RRR = 1
    # ours
    CRR = 2


class EpilogueKind(Discriminant):
    """What is fused behind a matrix product, computed in f32 before the one rounding to the output."""

    IDENTITY = 0
    BIAS = 1
    BIAS_RELU = 2
    BIAS_GELU = 3
    BIAS_SILU = 4


class ActivationKind(Discriminant):
    """Activation of a fused epilogue."""

    RELU = 0
    GELU = 1
    SILU = 2


class ElementKind(Discriminant):
    """What one element of a tensor is."""

    F16 = 0
    BF16 = 1
    F32 = 2
    F32_STRICT = 3
    F64 = 4
    S8 = 5
    U8 = 6
    I32 = 7
    I64 = 8
    BOOL = 9
    FP8_E4M3 = 10
    FP8_E5M2 = 11
    S4 = 12
    U4 = 13
    BIN = 14
    COMPLEX32 = 15
    COMPLEX64 = 16
    U32 = 17


class MathPrecision(Discriminant):
    """Type of the operands that the multiplications see."""

    F16 = 0
    BF16 = 1
    TF32 = 2
    F32 = 3
    F64 = 4
    INT8 = 5
    FP8_E4M3 = 6
    FP8_E5M2 = 7
    INT4 = 8
    BINARY = 9


class BiasElementKind(Discriminant):
    """What a bias is stored as."""

    F32 = 0
    I32 = 1


class IndexElementKind(Discriminant):
    """What indices are read as."""

    I32 = 0
    I64 = 1


class IndexOutputKind(Discriminant):
    """What indices are written as."""

    U32 = 0
    I32 = 1
    I64 = 2


class GemmKind(Discriminant):
    """Ours: baracuda gives its dense GEMMs no kind of their own."""

    DENSE = 0


class BinaryKind(Discriminant):
    """Ops of two elementwise operands."""

    ADD = 0
    SUB = 1
    MUL = 2
    DIV = 3
    FLOOR_DIVIDE = 4
    MOD = 5
    REMAINDER = 6
    POW = 7
    ATAN2 = 8
    HYPOT = 9
    COPYSIGN = 10
    NEXTAFTER = 11
    LDEXP = 12
    MINIMUM = 13
    MAXIMUM = 14
    FMIN = 15
    FMAX = 16
    EQ = 17
    NE = 18
    GT = 19
    GE = 20
    LT = 21
    LE = 22
    LOGICAL_AND = 23
    LOGICAL_OR = 24
    LOGICAL_XOR = 25
    BITWISE_AND = 26
    BITWISE_OR = 27
    BITWISE_XOR = 28
    BITWISE_LEFT_SHIFT = 29
    BITWISE_RIGHT_SHIFT = 30
    LERP = 31


class UnaryKind(Discriminant):
    """Ops of one elementwise operand."""

    NEG = 0
    ABS = 1
    SIGN = 2
    RECIPROCAL = 3
    SQUARE = 4
    CUBE = 5
    SQRT = 10
    RSQRT = 11
    CBRT = 12
    EXP = 20
    EXP2 = 21
    EXPM1 = 22
    LOG = 23
    LOG2 = 24
    LOG10 = 25
    LOG1P = 26
    SIN = 30
    COS = 31
    TAN = 32
    ASIN = 33
    ACOS = 34
    ATAN = 35
    SINH = 40
    COSH = 41
    TANH = 42
    ASINH = 43
    ACOSH = 44
    ATANH = 45
    FLOOR = 50
    CEIL = 51
    ROUND = 52
    TRUNC = 53
    FRAC = 54
    ERF = 60
    ERFC = 61
    ERFINV = 62
    LGAMMA = 63
    DIGAMMA = 64
    BITWISE_NOT = 70
    POPCOUNT = 71
    CLZ = 72
    CTZ = 73
    RELU = 100
    GELU = 101
    GELU_TANH = 102
    SILU = 103
    MISH = 104
    SIGMOID = 105
    LOGIT = 106
    SOFTPLUS = 107
    SOFTSIGN = 108
    TANHSHRINK = 109
    RELU6 = 110
    HARDSWISH = 111
    HARDSIGMOID = 112
    HARDTANH = 113
    SELU = 114
    LEAKY_RELU = 115
    ELU = 116
    HARDSHRINK = 117
    SOFTSHRINK = 118
    THRESHOLD = 119
    PRELU = 120
    POWI = 121
    STEP = 122
    CAST = 130
    AFFINE = 131


class TernaryKind(Discriminant):
    """Ops of three elementwise operands."""

    CLAMP = 0
    FMA = 1
    ADDCMUL = 2
    ADDCDIV = 3
    WHERE = 4


class GatedActivationKind(Discriminant):
    """Activations that gate one half of their input by the other."""

    GLU = 0
    REGLU = 1
    SWIGLU = 2
    GEGLU = 3


class PadMode(Discriminant):
    """What a pad is filled with."""

    CONSTANT = 0
    REFLECT = 1
    REPLICATE = 2
    CIRCULAR = 3


class ShapeLayoutKind(Discriminant):
    """Ops that move elements and compute nothing."""

    PAD = 0
    CONCAT = 1
    PERMUTE = 2
    REPEAT = 3
    FLIP = 4
    ROLL = 5
    MESHGRID = 6
    FILL = 7
    WRITE_SLICE = 8
    CONTIGUIZE = 9
    TRIU = 10
    TRIL = 11


class ArgReduceKind(Discriminant):
    """Reductions that give a position."""

    ARGMAX = 0
    ARGMIN = 1


class ReduceKind(Discriminant):
    """Reductions."""

    SUM = 0
    MEAN = 1
    MAX = 2
    MIN = 3
    PROD = 4
    VAR = 5
    STD = 6
    NORM2 = 7
    ARGMAX = 8
    ARGMIN = 9
    ANY = 10
    ALL = 11
    LOG_SUM_EXP = 12
    TRACE = 13
    COUNT_NONZERO = 14


class ReduceToOp(Discriminant):
    """Reductions to a broadcastable shape; numbered as in `ReduceKind`."""

    SUM = 0
    MAX = 2
    MIN = 3
    PROD = 4


class SoftmaxKind(Discriminant):
    """Ops of the softmax family."""

    SOFTMAX = 0
    LOG_SOFTMAX = 1
    GUMBEL_SOFTMAX = 2
    SPARSEMAX = 3


class ScanKind(Discriminant):
    """Prefix scans."""

    CUMSUM = 0
    CUMPROD = 1
    CUMMAX = 2
    CUMMIN = 3
    LOG_CUMSUM_EXP = 4


class BinaryCmpKind(Discriminant):
    """Comparisons."""

    EQ = 0
    NE = 1
    GT = 2
    GE = 3
    LT = 4
    LE = 5


class NormalizationKind(Discriminant):
    """Normalisations."""

    RMS_NORM = 0
    LAYER_NORM = 1
    GROUP_NORM = 2
    BATCH_NORM = 3
    INSTANCE_NORM = 4


class LossKind(Discriminant):
    """Losses."""

    MSE = 0
    NLL = 1
    CROSS_ENTROPY = 2
    BCE = 3
    KL_DIV = 4
    L1 = 5
    SMOOTH_L1 = 6
    HINGE_EMBEDDING = 7
    MARGIN_RANKING = 8
    TRIPLET_MARGIN = 9
    CTC = 10
    POISSON_NLL = 11
    HUBER = 12
    BCE_WITH_LOGITS = 13
    GAUSSIAN_NLL = 14
    COSINE_EMBEDDING = 15
    MULTI_MARGIN = 16
    MULTILABEL_MARGIN = 17
    MULTILABEL_SOFT_MARGIN = 18
    FUSED_LINEAR_CROSS_ENTROPY = 19


class CrossEntropyTargetKind(Discriminant):
    """What a cross-entropy target holds."""

    CLASS_INDEX = 0
    SOFT_PROB = 1


class LossReduction(Discriminant):
    """How a loss is reduced over its batch."""

    NONE = 0
    MEAN = 1
    SUM = 2


class RandomKind(Discriminant):
    """Random distributions."""

    UNIFORM = 0
    NORMAL = 1
    BERNOULLI = 2
    MULTINOMIAL = 3


class LinalgKind(Discriminant):
    """Dense linear algebra."""

    CHOLESKY = 0
    LU = 1
    QR = 2
    SVD = 3
    INVERSE = 4
    EIG = 5
    SOLVE = 6
    LEAST_SQUARES = 7
    MATRIX_EXP = 8
    BATCHED_QR = 9
    BATCHED_SVD = 10
    EIGH = 11
    BATCHED_SVDA = 12
    BATCHED_ORMQR = 13
    BATCHED_QR_MATERIALIZE = 14
    BATCHED_ORMQR_WY = 15


class FillMode(Discriminant):
    """Which triangle of a matrix is stored."""

    LOWER = 0
    UPPER = 1


class FftKind(Discriminant):
    """Fourier transforms."""

    FFT = 0
    IFFT = 1
    RFFT = 2
    IRFFT = 3
    FFT_SHIFT = 4
    IFFT_SHIFT = 5


class ConvKind(Discriminant):
    """Convolutions and their gradients."""

    CONV2D = 0
    CONV2D_BACKWARD_DATA = 1
    CONV2D_BACKWARD_FILTER = 2
    CONV1D = 3
    CONV1D_BACKWARD_DATA = 4
    CONV1D_BACKWARD_FILTER = 5
    CONV3D = 6
    CONV3D_BACKWARD_DATA = 7
    CONV3D_BACKWARD_FILTER = 8
    CONV_TRANSPOSE2D = 9
    CONV_TRANSPOSE2D_BACKWARD = 10
    DEPTHWISE_CONV2D = 11
    UNFOLD = 12
    FOLD = 13
    CONV_TRANSPOSE1D = 14
    CONV_TRANSPOSE1D_BACKWARD_DATA = 15
    CONV_TRANSPOSE1D_BACKWARD_FILTER = 16
    CONV_TRANSPOSE2D_BACKWARD_DATA = 17
    CONV_TRANSPOSE2D_BACKWARD_FILTER = 18
    CONV_TRANSPOSE3D = 19
    CONV_TRANSPOSE3D_BACKWARD_DATA = 20
    CONV_TRANSPOSE3D_BACKWARD_FILTER = 21
    IM2COL2D = 22
    IM2COL1D = 23
    COL2IM1D = 24


class PoolKind(Discriminant):
    """Poolings and their gradients."""

    MAX_POOL2D = 0
    MAX_POOL2D_BACKWARD = 1
    AVG_POOL2D_INCLUDE_PAD = 2
    AVG_POOL2D_INCLUDE_PAD_BACKWARD = 3
    AVG_POOL2D_EXCLUDE_PAD = 4
    AVG_POOL2D_EXCLUDE_PAD_BACKWARD = 5
    MAX_POOL1D = 6
    AVG_POOL1D = 7
    MAX_POOL3D = 8
    AVG_POOL3D = 9
    ADAPTIVE_MAX_POOL = 10
    ADAPTIVE_AVG_POOL = 11
    LP_POOL = 12
    FRACTIONAL_MAX_POOL = 13
    MAX_POOL1D_BACKWARD = 14
    AVG_POOL1D_INCLUDE_PAD_BACKWARD = 15
    AVG_POOL1D_INCLUDE_PAD = 16
    AVG_POOL1D_EXCLUDE_PAD = 17
    AVG_POOL1D_EXCLUDE_PAD_BACKWARD = 18
    MAX_POOL3D_BACKWARD = 19
    AVG_POOL3D_INCLUDE_PAD = 20
    AVG_POOL3D_INCLUDE_PAD_BACKWARD = 21
    AVG_POOL3D_EXCLUDE_PAD = 22
    AVG_POOL3D_EXCLUDE_PAD_BACKWARD = 23
    ADAPTIVE_AVG_POOL1D = 24
    ADAPTIVE_AVG_POOL1D_BACKWARD = 25
    ADAPTIVE_AVG_POOL2D = 26
    ADAPTIVE_AVG_POOL2D_BACKWARD = 27
    ADAPTIVE_AVG_POOL3D = 28
    ADAPTIVE_AVG_POOL3D_BACKWARD = 29
    ADAPTIVE_MAX_POOL1D = 30
    ADAPTIVE_MAX_POOL1D_BACKWARD = 31
    ADAPTIVE_MAX_POOL2D = 32
    ADAPTIVE_MAX_POOL2D_BACKWARD = 33
    ADAPTIVE_MAX_POOL3D = 34
    ADAPTIVE_MAX_POOL3D_BACKWARD = 35
    LP_POOL1D = 36
    LP_POOL2D = 37
    FRACTIONAL_MAX_POOL2D = 38
    FRACTIONAL_MAX_POOL3D = 39
    LP_POOL1D_BACKWARD = 40
    LP_POOL2D_BACKWARD = 41
    FRACTIONAL_MAX_POOL2D_BACKWARD = 42
    FRACTIONAL_MAX_POOL3D_BACKWARD = 43


class AttentionKind(Discriminant):
    """Attention and its parts."""

    ROPE = 0
    ALIBI = 1
    SDPA = 2
    FLASH_ATTENTION = 3
    KV_CACHE = 4
    PAGED_ATTENTION = 5
    HYPER_CONNECTION = 6
    SSD_CHUNK_SCAN = 7
    SELECTIVE_SCAN = 8
    BLOCK_SPARSE_ATTENTION = 9
    RING_ATTENTION = 10


class IndexingKind(Discriminant):
    """Gathers, scatters and masks."""

    GATHER = 0
    GATHER_BACKWARD = 1
    SCATTER_ADD = 2
    INDEX_SELECT = 3
    INDEX_SELECT_BACKWARD = 4
    MASKED_FILL = 5
    MASKED_FILL_BACKWARD = 6
    ONE_HOT = 7
    NONZERO = 8
    SCATTER = 9
    INDEX_ADD = 10


class SegmentKind(Discriminant):
    """Reductions over segments."""

    SEGMENT_SUM = 0
    SEGMENT_SUM_BACKWARD = 1
    SEGMENT_MEAN = 2
    SEGMENT_MEAN_BACKWARD = 3
    SEGMENT_MAX = 4
    SEGMENT_MIN = 5
    SEGMENT_PROD = 6
    UNSORTED_SEGMENT_SUM = 7
    UNSORTED_SEGMENT_SUM_BACKWARD = 8
    UNSORTED_SEGMENT_MEAN = 9
    UNSORTED_SEGMENT_MEAN_BACKWARD = 10
    UNSORTED_SEGMENT_MAX = 11
    UNSORTED_SEGMENT_MIN = 12
    SEGMENT_MAX_BACKWARD = 13
    SEGMENT_MIN_BACKWARD = 14
    SEGMENT_PROD_BACKWARD = 15
    UNSORTED_SEGMENT_MAX_BACKWARD = 16
    UNSORTED_SEGMENT_MIN_BACKWARD = 17
    UNSORTED_SEGMENT_PROD = 18
    UNSORTED_SEGMENT_PROD_BACKWARD = 19


class EmbeddingKind(Discriminant):
    """Embedding look-ups and their gradients."""

    EMBEDDING = 0
    EMBEDDING_BACKWARD = 1
    EMBEDDING_BAG_SUM = 2
    EMBEDDING_BAG_MEAN = 3
    EMBEDDING_BAG_SUM_BACKWARD = 4
    EMBEDDING_BAG_MEAN_BACKWARD = 5
    EMBEDDING_BAG_MAX = 6
    EMBEDDING_BAG_MAX_BACKWARD = 7


class QuantizeKind(Discriminant):
    """Quantisation, dequantisation, and products with quantised weights."""

    PER_TENSOR = 0
    PER_TENSOR_BACKWARD = 1
    DEQUANTIZE_PER_TENSOR = 2
    DEQUANTIZE_PER_TENSOR_BACKWARD = 3
    PER_CHANNEL = 4
    PER_CHANNEL_BACKWARD = 5
    DEQUANTIZE_PER_CHANNEL = 6
    DEQUANTIZE_PER_CHANNEL_BACKWARD = 7
    FAKE_QUANTIZE = 8
    FAKE_QUANTIZE_BACKWARD = 9
    PER_TOKEN = 16
    PER_TOKEN_BACKWARD = 17
    PER_GROUP = 18
    PER_GROUP_BACKWARD = 19
    DYNAMIC_RANGE = 20
    DEQUANTIZE_PER_TOKEN = 21
    DEQUANTIZE_PER_TOKEN_BACKWARD = 22
    DEQUANTIZE_PER_GROUP = 23
    DEQUANTIZE_PER_GROUP_BACKWARD = 24
    QUANTIZED_LINEAR = 25
    GGUF_DEQUANTIZE = 26
    GGUF_MMVQ = 27
    # ours
    INT4_AWQ_GEMM = 28
    INT4_MARLIN_GEMM = 29
    INT4_GPTQ_GEMM = 30
    INT4_AWQ_DEQUANTIZE = 31
    INT4_AWQ_REPACK = 32
    INT4_AWQ_FP8_GEMM = 33


class GgufBlockFormat(Discriminant):
    """Block formats of GGUF files; numbered as GGML numbers its types."""

    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2K = 10
    Q3K = 11
    Q4K = 12
    Q5K = 13
    Q6K = 14
    Q8K = 15


class MoeKind(Discriminant):
    """Mixture-of-experts products."""

    SCALAR_GGUF = 0
    WMMA = 1
    WMMA_GGUF = 2


class SortKind(Discriminant):
    """Sorting, selection, histograms and search."""

    SORT = 0
    SORT_BACKWARD = 1
    ARGSORT = 2
    MSORT = 3
    MSORT_BACKWARD = 4
    TOPK = 5
    TOPK_BACKWARD = 6
    KTHVALUE = 7
    KTHVALUE_BACKWARD = 8
    UNIQUE = 9
    UNIQUE_CONSECUTIVE = 10
    HISTOGRAM = 11
    HISTOGRAMDD = 12
    BINCOUNT = 13
    SEARCHSORTED = 14


class ImageKind(Discriminant):
    """Image resampling and detection."""

    INTERPOLATE_BILINEAR2D = 0
    INTERPOLATE_BILINEAR2D_BACKWARD = 1
    INTERPOLATE_NEAREST2D = 2
    INTERPOLATE_NEAREST2D_BACKWARD = 3
    INTERPOLATE_BICUBIC2D = 4
    INTERPOLATE_BICUBIC2D_BACKWARD = 5
    INTERPOLATE_TRILINEAR3D = 6
    INTERPOLATE_TRILINEAR3D_BACKWARD = 7
    INTERPOLATE_LINEAR1D = 8
    INTERPOLATE_LINEAR1D_BACKWARD = 9
    INTERPOLATE_AREA2D = 10
    INTERPOLATE_AREA2D_BACKWARD = 11
    GRID_SAMPLE2D = 16
    GRID_SAMPLE2D_BACKWARD = 17
    AFFINE_GRID2D = 18
    PIXEL_SHUFFLE = 24
    PIXEL_UNSHUFFLE = 25
    ROI_ALIGN = 32
    ROI_ALIGN_BACKWARD = 33
    ROI_POOL = 34
    ROI_POOL_BACKWARD = 35
    NMS = 40


KIND_OF_CATEGORY: dict[OpCategory, type[IntEnum]] = {
    OpCategory.GEMM: GemmKind,
    OpCategory.UNARY_ELEMENTWISE: UnaryKind,
    OpCategory.BINARY_ELEMENTWISE: BinaryKind,
    OpCategory.TERNARY_ELEMENTWISE: TernaryKind,
    OpCategory.GATED_ACTIVATION: GatedActivationKind,
    OpCategory.REDUCTION: ReduceKind,
    OpCategory.SCAN: ScanKind,
    OpCategory.NORMALIZATION: NormalizationKind,
    OpCategory.SOFTMAX: SoftmaxKind,
    OpCategory.CONVOLUTION: ConvKind,
    OpCategory.POOLING: PoolKind,
    OpCategory.ATTENTION: AttentionKind,
    OpCategory.INDEXING: IndexingKind,
    OpCategory.EMBEDDING: EmbeddingKind,
    OpCategory.SHAPE_LAYOUT: ShapeLayoutKind,
    OpCategory.SORTING: SortKind,
    OpCategory.QUANTIZATION: QuantizeKind,
    OpCategory.RANDOM: RandomKind,
    OpCategory.LOSS: LossKind,
    OpCategory.SEGMENT_OPS: SegmentKind,
    OpCategory.IMAGE: ImageKind,
    OpCategory.FFT: FftKind,
    OpCategory.LINALG: LinalgKind,
    OpCategory.MOE: MoeKind,
}
