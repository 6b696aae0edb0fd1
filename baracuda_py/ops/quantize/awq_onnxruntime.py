"""AWQ GEMM through onnxruntime's MatMulNBits, whose weight input is the OC_MAJOR bytes as they lie.

MatMulNBits wants B (oc, ic / block, block / 2) bytes, nibbles natural along ic: an OC_MAJOR weight reshaped. Scales
and zero points go per channel instead of per group, (oc, groups), which is a small transposition. A group longer
than 128 becomes several with the same scale. At `accuracy_level` 1 it multiplies float32 activations by float32
weights into float32 sums; level 4 would round the activations to 8 bits.

onnxruntime is fast only if the weights are constants of the session: it then keeps its own reordered copy, and the
given bytes are not needed any more. Passed as inputs, they would be expanded to float32 on every call. So a weight is
packed once, in a `PreparedAwqGemm`, which holds one copy of it and a pool of sleeping threads; it does not see later
changes of the bytes. `awq_gemm_onnxruntime` keeps such objects, with a copy of what they were made from, and compares
the bytes in full on every call: slower at m = 1, never stale.

Sources: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits; onnx/onnx.proto for the field numbers.
"""

import functools
import math
import os
from collections import OrderedDict
from threading import Lock
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from baracuda_py.ops.host_epilogue import IDENTITY, apply_epilogue
from baracuda_py.ops.quantize.awq_packing import OC_MAJOR, unpack_zeros

__all__ = ["CACHE_NBYTES", "PreparedAwqGemm", "awq_gemm_onnxruntime", "matmul_nbits"]

# Bytes of packed weights, and of the copies they are compared with, that `awq_gemm_onnxruntime` keeps.
CACHE_NBYTES = 2 << 30

# What a thread of a session's pool holds, roughly: 1500 small weights with a thread each took 270 MB more.
_THREAD_NBYTES = 128 << 10

_LONGEST_BLOCK = 128
_COMPARED_NBYTES = 1 << 20  # per step, so that a comparison needs little memory and ends at the first difference

_FLOAT, _UINT8, _FLOAT16 = 1, 2, 10  # onnx.TensorProto.DataType


class PreparedAwqGemm:
    """One OC_MAJOR weight, packed for MatMulNBits; a call is one session run. Safe to call from several threads.

    weight_packed: (oc, ic / 8), int32.   scales: (groups, oc), any float type.   zeros: (groups, oc / 8), int32.
    All are read now and may change or go away afterwards.
    half: whether activations will be f16, which onnxruntime converts faster than NumPy does.
    threads: of the session's pool; 0 is onnxruntime's choice, one per core, but no more than the cores that this
        process may run on. Every weight has such a pool: one for all would be other sessions' of the process, too.
    """

    def __init__(
        self,
        weight_packed: NDArray[np.int32],
        scales: NDArray[Any],
        zeros: NDArray[np.int32],
        *,
        group_size: int,
        half: bool,
        threads: int = 0,
    ) -> None:
        import onnxruntime

        model, constants = matmul_nbits(weight_packed, scales, zeros, group_size=group_size, half=half)
        options = onnxruntime.SessionOptions()
        cores = os.cpu_count() or 1
        # onnxruntime counts the machine's cores, and a container or `taskset` may have left this process a few of them.
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
        threads = threads or (usable if usable < cores else 0)
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # an arena would keep a second copy's worth of memory from packing
        options.log_severity_level = 3
        # Idle workers that spin take the cores from BLAS and from the next session.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in constants.values()]
        options.add_external_initializers(list(constants), values)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._half = half
        self.nbytes = sum(value.nbytes for value in constants.values()) + (threads or cores) * _THREAD_NBYTES

    @np.errstate(over="ignore", under="ignore", invalid="ignore")  # beyond a type's range inf and 0, as on a GPU
    def __call__(
        self,
        activation: NDArray[Any],
        output: NDArray[Any],
        bias: NDArray[Any] | None = None,
        *,
        epilogue: int = IDENTITY,
    ) -> None:
        """Write epilogue(activation @ weight + bias) into `output`, rounding once.

        activation: (m, ic), f16 if prepared for `half`, else any float type; any strides.
        output: (m, oc), any float type and strides.   bias: (oc,); read by every epilogue but IDENTITY.
        """
        if len(activation) == 0:
            return
        x = np.ascontiguousarray(activation, dtype=np.float16 if self._half else np.float32)
        if self._half and epilogue == IDENTITY and output.dtype == np.float16:
            output[...] = self._session.run(["y_half"], {"x": x})[0]
            return
        values = self._session.run(["y"], {"x": x})[0]
        apply_epilogue(values, bias, epilogue)
        output[...] = values


def awq_gemm_onnxruntime(
    activation: NDArray[Any],
    weight_packed: NDArray[np.int32],
    scales: NDArray[Any],
    zeros: NDArray[np.int32],
    output: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    group_size: int,
    epilogue: int = IDENTITY,
) -> None:
    """Write epilogue(activation @ dequantised weight + bias) into `output`; f32 accumulation, one rounding at the end.

    activation: (m, ic), f16, bf16 or f32, any strides.   output: (m, oc), any float type and strides.
    weight_packed: (oc, ic / 8), int32, OC_MAJOR.   scales: (ic / group_size, oc), f16, bf16 or f32.
    zeros: (ic / group_size, oc / 8), int32, natural.   These three have contiguous rows.
    bias: (oc,), any float type; read by every epilogue but IDENTITY.
    group_size: a divisor of ic and a multiple of 32, or -1 for one group.   ic % 32 == 0, oc % 8 == 0.

    The first call on a weight packs it; later ones compare the packed tensors with what was packed. ImportError
    without onnxruntime.
    """
    if len(activation) == 0:
        return
    half = activation.dtype == np.float16
    prepared = _cache().prepared(weight_packed, scales, zeros, group_size, half)
    prepared(activation, output, bias, epilogue=epilogue)


@frozen
class _Entry:
    sources: tuple[NDArray[Any], ...]
    prepared: PreparedAwqGemm

    @property
    def nbytes(self) -> int:
        return self.prepared.nbytes + sum(source.nbytes for source in self.sources)


class _Cache:
    """Prepared weights by the address of their tensors, least recently used first. An address is only a hint: an
    entry is used if its copies equal the tensors byte for byte."""

    def __init__(self, limit_nbytes: int) -> None:
        self._limit_nbytes = limit_nbytes
        self._entries: OrderedDict[tuple[Any, ...], _Entry] = OrderedDict()
        self._lock = Lock()

    def prepared(
        self,
        weight_packed: NDArray[np.int32],
        scales: NDArray[Any],
        zeros: NDArray[np.int32],
        group_size: int,
        half: bool,
    ) -> PreparedAwqGemm:
        tensors = weight_packed, scales, zeros
        key = (*(tensor.ctypes.data for tensor in tensors), weight_packed.shape, scales.dtype, group_size, half)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
        if entry is not None and all(map(_same_bytes, tensors, entry.sources)):
            return entry.prepared
        sources = tuple(np.array(tensor, order="C") for tensor in tensors)
        entry = _Entry(sources, PreparedAwqGemm(*sources, group_size=group_size, half=half))
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while len(self._entries) > 1 and self._held_nbytes() > self._limit_nbytes:
                self._entries.popitem(last=False)
        return entry.prepared

    def _held_nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())


@functools.cache
def _cache() -> _Cache:
    return _Cache(CACHE_NBYTES)


def _same_bytes(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two matrices with contiguous rows of whole int32s hold the same bits."""
    if a.shape != b.shape:
        return False
    word = np.uint64 if a.shape[1] * a.itemsize % 8 == 0 else np.uint32
    a, b = a.view(word), b.view(word)
    rows = max(1, _COMPARED_NBYTES // (a.shape[1] * a.itemsize))
    return all(np.array_equal(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows))


def matmul_nbits(
    weight_packed: NDArray[np.int32],
    scales: NDArray[Any],
    zeros: NDArray[np.int32],
    *,
    group_size: int,
    half: bool,
) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """A serialised ModelProto, and the constants to give a session as its external initializers.

    Its input is x (m, ic), f16 if `half` and else f32; its outputs are y (m, oc) in f32 and, if `half`, y_half, y
    rounded to f16. The constant "b" is a view of `weight_packed` where that is contiguous.
    """
    oc, ic = weight_packed.shape[0], weight_packed.shape[1] * 8
    whole = ic if group_size == -1 else group_size
    block = math.gcd(whole, _LONGEST_BLOCK)
    constants: dict[str, NDArray[Any]] = {
        "b": np.ascontiguousarray(weight_packed).view(np.uint8).reshape(oc, ic // block, block // 2),
        "scales": np.repeat(scales.T.astype(np.float32), whole // block, axis=1).reshape(-1),
        "zeros": _pair_nibbles(np.repeat(unpack_zeros(zeros, OC_MAJOR).T, whole // block, axis=1)).reshape(-1),
    }
    return _model(ic, oc, block, half, {name: value.shape for name, value in constants.items()}), constants


def _pair_nibbles(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes (rows, ceil(columns / 2)) of nibbles (rows, columns), the even columns in the low halves."""
    packed = nibbles[:, 0::2].copy()
    packed[:, : nibbles.shape[1] // 2] |= nibbles[:, 1::2] << 4
    return packed


def _model(ic: int, oc: int, block: int, half: bool, shapes: dict[str, tuple[int, ...]]) -> bytes:
    """The ModelProto of `matmul_nbits`; `shapes` are those of the constants."""
    element_types = {"b": _UINT8, "scales": _FLOAT, "zeros": _UINT8}
    attributes = {"K": ic, "N": oc, "bits": 4, "block_size": block, "accuracy_level": 1}
    nodes = [_node("MatMulNBits", ("x32" if half else "x", *shapes), "y", attributes, domain="com.microsoft")]
    outputs = [_value("y", _FLOAT, oc)]
    if half:
        nodes = [
            _node("Cast", ("x",), "x32", {"to": _FLOAT}),
            *nodes,
            _node("Cast", ("y",), "y_half", {"to": _FLOAT16}),
        ]
        outputs.append(_value("y_half", _FLOAT16, oc))
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "awq_gemm")
    for name, shape in shapes.items():
        # Declared as external data, which is what `add_external_initializers` replaces; the location is never read.
        external = _field(13, _field(1, "location") + _field(2, "memory")) + _field(14, 1)
        dims = b"".join(_field(1, extent) for extent in shape)
        graph += _field(5, dims + _field(2, element_types[name]) + _field(8, name) + external)
    graph += _field(11, _value("x", _FLOAT16 if half else _FLOAT, ic))
    graph += b"".join(_field(12, output) for output in outputs)
    opsets = _field(8, _field(1, "") + _field(2, 13)) + _field(8, _field(1, "com.microsoft") + _field(2, 1))
    return _field(1, 8) + _field(7, graph) + opsets  # ir_version 8


def _node(op: str, inputs: tuple[str, ...], output: str, attributes: dict[str, int], domain: str = "") -> bytes:
    """A NodeProto with one output and integer attributes."""
    node = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, op) + _field(7, domain)
    for name, value in attributes.items():
        node += _field(5, _field(1, name) + _field(3, value) + _field(20, 2))  # type 2: INT
    return node


def _value(name: str, element_type: int, columns: int) -> bytes:
    """A ValueInfoProto of shape ("m", columns)."""
    shape = _field(1, _field(2, "m")) + _field(1, _field(1, columns))
    return _field(1, name) + _field(2, _field(1, _field(1, element_type) + _field(2, shape)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A protobuf field: an integer as a varint, a string or a message with its length in front."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow. `value` is not negative."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
