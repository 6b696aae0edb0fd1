"""Registered ops as torch operators: on the CPU here, and marked `gpu` on one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem, NoKernel, Unsupported
from baracuda_py.interop.torch import operators
from baracuda_py.interop.torch.gradients import kernel_without_gradient
from baracuda_py.interop.torch.operators import TorchOperator, torch_dtype
from baracuda_py.testing.calls import reference_outputs
from baracuda_py.testing.data import inputs_for
from baracuda_py.vocab.elements import element_of_dtype

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Of each op, problems that torch can state; an op whose library is not installed is not run.
RUNNABLE = [operator for name, operator in operators.items() if name != "dense_gemm"]


def to_torch(array, device):
    if array is None:
        return None
    element = element_of_dtype(array.dtype)
    if element in (bp.ElementKind.BF16, bp.ElementKind.FP8_E4M3):  # NumPy has no such types of its own
        raw = torch.from_numpy(array.view(f"i{array.dtype.itemsize}"))
        return raw.view(torch_dtype(element)).to(device)
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def call_of(operator, descriptor, device):
    """Tensors and keywords that state the problem, and the arrays."""
    arrays = inputs_for(operator.op, descriptor)
    arrays = {name: array.view(np.int32) if array is not None and array.dtype == np.uint32 else array
              for name, array in arrays.items()}  # fmt: skip
    options = {}
    for option in operator.signature.options:
        value = getattr(descriptor, option.name)
        options[option.name] = value.name.lower() if hasattr(value, "name") else value
    return [to_torch(arrays[spec.name], device) for spec in operator.inputs], options, arrays


def examples(operator, most=12):
    found = list(operator.op.examples)
    return found[:: max(1, len(found) // most)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("operator", RUNNABLE, ids=lambda operator: operator.op.name)
def test_an_operator_computes_what_the_op_does(operator, device):
    served = 0
    for descriptor in examples(operator, 40):
        tensors, options, arrays = call_of(operator, descriptor, device)
        if device == "cuda" and bp.explain(descriptor, 0).chosen is None:
            with pytest.raises(NoKernel):
                getattr(torch.ops.baracuda, operator.op.name)(*tensors, **options)
            continue
        served += 1
        named = {spec.name: one for spec, one in zip(operator.inputs, tensors, strict=True)}
        assert operator.descriptor(named, options) == descriptor
        made = getattr(torch.ops.baracuda, operator.op.name)(*tensors, **options)
        made = made if isinstance(made, (list, tuple)) else [made]
        if operator.op.is_empty(descriptor):
            assert not any(one.numel() for one in made)
            continue
        expected = reference_outputs(operator.op, descriptor, arrays)
        assert len(made) == len(expected)
        for found, exact in zip(made, expected.values(), strict=True):
            assert found.device.type == device
            assert tuple(found.shape) == exact.shape
            difference = found.double().cpu().numpy() - exact
            limit = 2.0**-4 if found.dtype is torch.float8_e4m3fn else 8e-3
            assert np.linalg.norm(difference) <= limit * np.linalg.norm(exact), descriptor
    assert served > 0


@pytest.mark.parametrize("operator", RUNNABLE, ids=lambda operator: operator.op.name)
def test_opcheck_passes(operator):
    for descriptor in examples(operator, 6):
        tensors, options, _ = call_of(operator, descriptor, "cpu")
        # test_schema compares inputs by arithmetic that torch lacks for fp8 on a CPU.
        fp8 = any(one is not None and one.dtype is torch.float8_e4m3fn for one in tensors)
        checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        checks = checks if fp8 else ("test_schema", *checks)
        called = getattr(torch.ops.baracuda, operator.op.name).default
        results = torch.library.opcheck(called, tuple(tensors), options, test_utils=checks)
        assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("operator", operators.values(), ids=lambda operator: operator.op.name)
def test_a_schema_says_what_the_specs_say(operator):
    schema = getattr(torch.ops.baracuda, operator.op.name).default._schema
    names = [argument.name for argument in schema.arguments]
    positional = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    assert positional == [spec.name for spec in operator.inputs]
    told = {*operator.signature.from_shape, *operator.signature.from_dtype}
    assert {*names} - {*positional} == set(_fields(operator)) - told
    for argument, spec in zip(schema.arguments, operator.inputs, strict=False):
        assert (str(argument.type) == "Optional[Tensor]") == bool(spec.needed)
        assert (argument.alias_info is not None) == (spec.role == "inout")


def _fields(operator):
    import attrs

    return [field.name for field in attrs.fields(operator.op.descriptor) if field.init]


def test_an_output_that_is_read_too_is_changed_in_place():
    operator = TorchOperator.of(bp.default_registry(), bp.default_registry().op("dense_gemm"))
    assert operator.signature.changed
    assert "Tensor(a!) output" in operator.schema
    assert operator.schema.endswith("-> ()")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_without_a_graph_break(device, dynamic):
    gemm = next(one for one in RUNNABLE if one.op.name == "int4_awq_gemm")
    desc = bp.Int4AwqGemmDescriptor(6, 256, 64, split_k_iters=None, epilogue=bp.EpilogueKind.BIAS)
    tensors, options, _ = call_of(gemm, desc, device)

    def block(x, weight, scales, zeros, bias):
        y = torch.ops.baracuda.int4_awq_gemm(torch.relu(x), weight, scales, zeros, bias, **options)
        return torch.ops.baracuda.softmax(y.float()) + 1

    torch._dynamo.reset()
    with torch.no_grad():
        x, weight, scales, zeros, bias = tensors
        compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for rows in (6, 3, 5):
            torch.testing.assert_close(
                compiled(x[:rows], weight, scales, zeros, bias), block(x[:rows], weight, scales, zeros, bias)
            )


def test_symbols_stay_symbols():
    from torch.fx.experimental.proxy_tensor import make_fx

    softmax = torch.ops.baracuda.softmax
    graph = make_fx(lambda x: softmax(x, axis=-1), tracing_mode="symbolic")(torch.randn(3, 5))
    assert graph(torch.randn(7, 9)).shape == (7, 9)


def test_a_gradient_is_refused_in_words():
    x = torch.randn(4, 8, requires_grad=True)
    y = torch.ops.baracuda.softmax(x)
    with pytest.raises(RuntimeError, match=r"baracuda::softmax has no gradient.*no_grad"):
        y.sum().backward()


def test_forward_mode_is_refused_in_words():
    softmax, x = torch.ops.baracuda.softmax, torch.randn(2, 4)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"softmax has no gradient"):
        softmax(torch.autograd.forward_ad.make_dual(x, x))
    with pytest.raises(RuntimeError, match=r"softmax has no gradient"):
        torch.func.jvp(lambda one: softmax(one), (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(softmax(x), softmax(x.clone()))


def _scale_in_place(factor, output):
    output.numpy()[:] *= factor.item()  # which torch does not see, as it does not see kernels


@pytest.fixture
def scale_():
    """An operator that changes its tensor in place, as those do whose output is read."""
    library = torch.library.Library("baracuda_test", "FRAGMENT")
    library.define("scale_(Tensor factor, Tensor(a!) output) -> ()")
    overload = torch.ops.baracuda_test.scale_.default
    library.impl("scale_", _scale_in_place, "CPU")
    library.impl("scale_", kernel_without_gradient(overload, True), "Autograd", with_keyset=True)
    yield torch.ops.baracuda_test.scale_
    library._destroy()


def test_a_change_in_place_is_seen_by_autograd(scale_):
    factor, output = torch.full((1,), 3.0), torch.ones(4)
    scale_(factor, output)
    assert output.tolist() == [3.0] * 4
    assert output._version == 1
    for tensors in ((factor.clone().requires_grad_(), output), (factor, output.clone().requires_grad_())):
        with pytest.raises(RuntimeError, match="no gradient"):
            scale_(*tensors)
        with torch.no_grad():
            scale_(*tensors)
    p = torch.ones(4, requires_grad=True)
    product = (p * output).sum()
    scale_(factor, output)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_every_operator_has_it():
    for name in operators:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"baracuda::{name}", "Autograd")


def test_what_a_kernel_refuses_and_words_that_are_none_are_errors_of_the_package():
    with pytest.raises(InvalidProblem, match="one of softmax, log_softmax"):
        torch.ops.baracuda.softmax(torch.randn(2, 3), kind="hard")
    with pytest.raises(InvalidProblem, match="axis"):
        torch.ops.baracuda.softmax(torch.randn(2, 3), axis=5)
    with pytest.raises(InvalidProblem, match="axes"):
        torch.ops.baracuda.rms_norm(torch.randn(3), None, has_weight=False)


@pytest.mark.parametrize(
    ("element", "dtype"),
    [("F16", torch.float16), ("BF16", torch.bfloat16), ("F64", torch.float64), ("I32", torch.int32)],
)
def test_an_element_has_the_dtype_that_stands_for_it(element, dtype):
    assert torch_dtype(bp.ElementKind[element]) is dtype


def test_an_element_without_a_dtype_is_refused():
    with pytest.raises(Unsupported, match="U4"):
        torch_dtype(bp.ElementKind.U4)


@pytest.mark.parametrize(
    ("setup", "said"),
    [("sys.modules['torch'] = None", "baracuda-py[torch]"),
     ("import types; t = types.ModuleType('torch'); t.library = types.ModuleType('l'); t.__version__ = '2.0.1'; "
      "sys.modules['torch'] = t", "2.4 or newer (got 2.0.1)")],
)  # fmt: skip
def test_without_torch_or_with_an_old_one_what_to_install_is_said(setup, said):
    code = f"import sys\n{setup}\nimport baracuda_py.interop.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]


def test_the_package_alone_does_not_load_torch():
    code = "import sys, baracuda_py, baracuda_py.interop; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
