"""Views of memory: NumPy, torch, DLPack and raw; strides, extents, bf16, read-only memory and unknown dtypes."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import baracuda_py as bp
from baracuda_py.errors import BufferTooSmall, InvalidProblem, Unsupported
from baracuda_py.vocab.elements import bits_of, element_of_dtype, numpy_dtype
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.tensors import HOST_MEMORY, TensorMut, TensorRef, row_major_strides

DTYPES = [e for e in ElementKind if e not in (ElementKind.S4, ElementKind.U4, ElementKind.BIN)]


@st.composite
def strided_arrays(draw):
    """NumPy arrays of any rank to 4 with steps of any sign, and transposed axes."""
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    steps = draw(st.lists(st.sampled_from([1, 2, 3, -1, -2]), min_size=len(shape), max_size=len(shape)))
    base = np.arange(np.prod([4 * 3] * len(shape), dtype=int) or 1, dtype=np.float32).reshape([12] * len(shape))
    chosen = base[(..., *(slice(None, None, step) for step in steps))]
    chosen = chosen[(..., *(slice(0, extent) for extent in shape))]
    return chosen.transpose(draw(st.permutations(range(len(shape)))))


@given(strided_arrays())
def test_a_numpy_view_has_the_arrays_address_shape_and_strides(array):
    view = TensorRef.of(array)
    assert view.shape == array.shape
    assert view.size == array.size
    assert view.element is ElementKind.F32
    assert view.device == HOST_MEMORY
    assert view.numpy() is array
    if array.size:
        assert view.pointer == array.__array_interface__["data"][0]
        assert view.contiguous == array.flags.c_contiguous
        low, high = view.extent
        assert (low, high) == np.lib.array_utils.byte_bounds(array)
        assert view.span_bytes == high - low
    else:
        assert view.contiguous
        assert view.span_bytes == 0


@given(strided_arrays())
def test_a_raw_view_of_host_memory_is_the_same_numbers(array):
    strides = tuple(stride // 4 for stride in array.strides)
    pointer = array.__array_interface__["data"][0]
    view = TensorRef(pointer, array.shape, ElementKind.F32, strides=strides, device=HOST_MEMORY, owner=array.base)
    assert np.array_equal(view.numpy(), array)
    assert view.numpy().strides == array.strides or not array.size


@pytest.mark.parametrize("element", DTYPES, ids=lambda element: element.name)
def test_every_element_kind_has_a_dtype_of_its_width_and_is_found_by_it(element):
    dtype = numpy_dtype(element)
    assert dtype.itemsize * 8 == bits_of(element)
    expected = ElementKind.F32 if element is ElementKind.F32_STRICT else element
    assert element_of_dtype(dtype) is expected
    assert TensorRef.of(np.zeros((2, 3), dtype)).element is expected


@pytest.mark.parametrize("element", [ElementKind.S4, ElementKind.U4, ElementKind.BIN])
def test_sub_byte_kinds_have_no_dtype(element):
    with pytest.raises(TypeError, match="packed"):
        numpy_dtype(element)


@pytest.mark.parametrize("dtype", [">f4", "U3", "datetime64[s]", "int16", "uint64"])
def test_a_dtype_that_no_kind_stands_for_is_refused(dtype):
    with pytest.raises(Unsupported) as refused:
        TensorRef.of(np.zeros(3, dtype), "weights")
    assert refused.value.rule == "dtype"
    assert "weights" in str(refused.value)


def test_read_only_memory_can_be_read_and_not_written():
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    assert TensorRef.of(array).shape == (3,)
    for source in (array, TensorRef.of(array)):
        with pytest.raises(InvalidProblem) as refused:
            TensorMut.of(source, "output")
        assert refused.value.rule == "writable"
        assert "output" in str(refused.value)
    mut = TensorMut.of(np.zeros(3, np.float32))
    assert TensorMut.of(mut) is mut
    assert TensorRef.of(mut) is mut


def test_broken_strides_and_odd_objects_are_refused():
    records = np.zeros(4, np.dtype([("a", "f4"), ("b", "u1")]))
    with pytest.raises(Unsupported) as refused:
        TensorRef.of(records["a"])
    assert refused.value.rule == "strides"
    for odd in ([1, 2], "text", 3, np.float32(3), None, object()):
        with pytest.raises(Unsupported) as refused:
            TensorRef.of(odd, "x")
        assert refused.value.rule == "array"


def test_a_raw_view_must_fit_its_buffer():
    TensorRef(0x1000, (4, 8), ElementKind.F16, nbytes=64)
    with pytest.raises(BufferTooSmall) as refused:
        TensorRef(0x1000, (4, 8), ElementKind.F16, nbytes=63)
    assert (refused.value.needed, refused.value.got) == (64, 63)
    with pytest.raises(BufferTooSmall):
        TensorRef(0x1000, (4, 8), ElementKind.F16, strides=(9, 1), nbytes=64)
    assert TensorRef(0x1000, (4, 8), ElementKind.U4).span_bytes == 16
    with pytest.raises(InvalidProblem):
        TensorRef(0x1000, (4, 8), ElementKind.F16, strides=(8,))


def test_device_memory_is_no_numpy_array():
    with pytest.raises(TypeError, match="device"):
        TensorRef(0x1000, (2,), ElementKind.F32, device=0).numpy()


class DLPackOnly:
    """An array that offers DLPack and nothing else, new or old style."""

    def __init__(self, array, *, versioned):
        self.array = array
        self.versioned = versioned

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **keywords):
        if not self.versioned:
            if keywords:
                raise TypeError("no keywords")
            return self.array.__dlpack__()
        return self.array.__dlpack__(**keywords)


@given(strided_arrays(), st.booleans())
def test_dlpack_describes_what_numpy_describes(array, versioned):
    view = TensorRef.of(DLPackOnly(array, versioned=versioned))
    assert view.shape == array.shape
    assert view.element is ElementKind.F32
    assert view.device == HOST_MEMORY
    if array.size:
        assert view.pointer == array.__array_interface__["data"][0]
        assert np.array_equal(view.numpy(), array)


def test_dlpack_says_read_only_where_it_can_and_its_capsule_is_released():
    array = np.zeros((2, 3), np.float32)
    array.flags.writeable = False
    with pytest.raises(InvalidProblem) as refused:
        TensorMut.of(DLPackOnly(array, versioned=True))
    assert refused.value.rule == "writable"

    class Array(np.ndarray):
        pass

    held = np.zeros((2, 3), np.float32).view(Array)
    reference = weakref.ref(held)
    view = TensorRef.of(DLPackOnly(held, versioned=True))
    del held
    gc.collect()
    assert reference() is not None, "the view keeps its memory"
    del view
    gc.collect()
    assert reference() is None, "the capsule let go of it"


@given(strided_arrays())
def test_a_torch_tensor_is_seen_without_a_copy(array):
    torch = pytest.importorskip("torch")
    if any(stride < 0 for stride in array.strides):
        return  # torch has none of these
    tensor = torch.from_numpy(array)
    view = TensorRef.of(tensor)
    assert (view.shape, view.element, view.device) == (array.shape, ElementKind.F32, HOST_MEMORY)
    if array.size:
        assert view.pointer == tensor.data_ptr()
        assert np.array_equal(view.numpy(), array)


def test_bf16_is_seen_in_numpy_torch_and_dlpack():
    values = np.array([[1.5, -2.0, 3.0]], ml_dtypes.bfloat16)
    view = TensorRef.of(values)
    assert view.element is ElementKind.BF16
    raw = TensorRef(view.pointer, view.shape, view.element, device=HOST_MEMORY, owner=(values,))
    assert np.array_equal(raw.numpy(), values)
    torch = pytest.importorskip("torch")
    tensor = torch.tensor([[1.5, -2.0, 3.0]], dtype=torch.bfloat16)
    assert TensorRef.of(tensor).element is ElementKind.BF16
    assert np.array_equal(TensorRef.of(tensor).numpy(), values)
    assert np.array_equal(TensorRef.of(DLPackOnly(tensor, versioned=True)).numpy(), values)


JAX_DTYPES = ["float16", "bfloat16", "float32", "int8", "uint8", "int32", "uint32", "bool", "float8_e4m3fn"]


@pytest.mark.parametrize("dtype", JAX_DTYPES)
def test_a_jax_array_is_seen_without_a_copy(dtype):
    jnp = pytest.importorskip("jax.numpy")
    array = jnp.asarray(np.array([[0, 1, 2], [3, 4, 5]]), dtype)
    view = TensorRef.of(array)
    assert view.pointer == array.unsafe_buffer_pointer()
    assert (view.shape, view.strides, view.device) == ((2, 3), (3, 1), HOST_MEMORY)
    assert view.element is element_of_dtype(array.dtype)
    assert np.array_equal(view.numpy(), np.asarray(array))


def test_a_jax_array_is_never_written():
    jnp = pytest.importorskip("jax.numpy")
    x, y = jnp.ones((2, 3)), jnp.zeros((2, 3))
    plan = bp.select(bp.SoftmaxDescriptor((2, 3)), x)
    assert plan.device.kind == "host"
    for attempt in (
        lambda: plan.run(None, bp.Workspace.NONE, bp.SoftmaxArgs(x, y)),
        lambda: plan.bind(bp.SoftmaxArgs(x, y)),
        lambda: bp.Workspace.borrowed(y),
        lambda: TensorMut.of(TensorRef.of(y)),
    ):
        with pytest.raises(InvalidProblem, match="must be writable") as refused:
            attempt()
        assert refused.value.rule == "writable"
    with pytest.raises(InvalidProblem, match=r"JAX arrays are immutable.*baracuda_py\.interop\.jax"):
        TensorMut.of(y)
    assert not y.any()
    result = np.empty((2, 3), np.float32)
    plan.run(None, bp.Workspace.NONE, bp.SoftmaxArgs(x, result))
    assert np.allclose(result, 1 / 3)


def test_a_jax_array_without_memory_is_refused_with_what_to_call():
    jax = pytest.importorskip("jax")
    seen = []

    @jax.jit
    def traced(x):
        with pytest.raises(Unsupported, match=r"a JAX .*Tracer without any.*baracuda_py\.interop\.jax") as refused:
            TensorRef.of(x, "x")
        seen.append(refused.value.rule)
        return x

    x = traced(jax.numpy.ones(3))
    x.delete()
    with pytest.raises(Unsupported, match="donated") as refused:
        TensorRef.of(x)
    assert [*seen, refused.value.rule] == ["array", "array"]


@given(st.lists(st.integers(1, 5), max_size=4).map(tuple))
def test_row_major_strides_are_numpys(shape):
    assert row_major_strides(shape) == tuple(stride // 4 for stride in np.empty(shape, np.float32).strides)


def test_host_arrays_stay_where_they_are_and_empty_ones_have_the_dtype():
    array = np.arange(3.0)
    assert bp.to_device(array, "host") is array
    from baracuda_py.arrays import empty

    made = empty((2, 3), ElementKind.BF16, "host")
    assert made.shape == (2, 3)
    assert made.dtype == ml_dtypes.bfloat16


class Labelled(np.ndarray):
    """A subclass, as packages for units or labels make."""


def test_a_numpy_subclass_is_seen_as_the_plain_array_that_it_is():
    array = np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)
    for source in (array.view(Labelled), np.matrix(np.eye(2, dtype=np.float32))):
        view = TensorRef.of(source)
        assert (view.pointer, view.shape) == (source.ctypes.data, source.shape)
        assert type(view.numpy()) is np.ndarray
        assert np.shares_memory(view.numpy(), source)
    with pytest.raises(Unsupported, match="masked"):
        TensorRef.of(np.ma.masked_array([1.0, 2.0], mask=[0, 1]))


def test_an_interface_may_sit_on_the_object():
    class Holder:
        pass

    holder = Holder()
    holder.__cuda_array_interface__ = {"shape": (2,), "typestr": "<f4", "data": (4096, False), "version": 3}
    assert TensorRef.of(holder).pointer == 4096


def test_an_export_that_fails_is_refused_by_name():
    class Broken(DLPackOnly):
        def __dlpack__(self, **_):
            raise BufferError("not today")

    with pytest.raises(Unsupported, match=r"x: .*not today"):
        TensorRef.of(Broken(np.zeros(2), versioned=True), "x")


@pytest.mark.parametrize("form", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
def test_a_tensor_that_is_not_strided_is_refused(form):
    torch = pytest.importorskip("torch")
    with pytest.raises(Unsupported) as refused:
        TensorRef.of(getattr(torch.eye(4), form)())
    assert refused.value.rule == "layout"


def test_an_array_of_the_other_byte_order_is_refused_with_the_way_out():
    swapped = np.arange(3, dtype=np.dtype(np.float16).newbyteorder())
    with pytest.raises(Unsupported, match=r"other order.*newbyteorder\(\)"):
        TensorRef.of(swapped)
    assert TensorRef.of(swapped.astype(swapped.dtype.newbyteorder())).element is ElementKind.F16


def test_an_array_of_a_view_keeps_the_memory():
    class Owner:
        """Something that is no array, and holds one."""

        def __init__(self):
            self.memory = np.arange(6, dtype=np.float32)

    owner = Owner()
    there = weakref.ref(owner)
    view = TensorRef(owner.memory.ctypes.data, (2, 3), ElementKind.F32, device=HOST_MEMORY, owner=owner)
    array = view.numpy()[1:]
    del owner, view
    gc.collect()
    assert there() is not None
    assert array.tolist() == [[3, 4, 5]]
    del array
    gc.collect()
    assert there() is None


@pytest.mark.parametrize("change", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_shows_memory_is_not_copied(change):
    view = TensorRef.of(np.zeros(3, np.float32))
    for one in (view, bp.Workspace.borrowed(np.zeros(3, np.float32))):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            change(one)
