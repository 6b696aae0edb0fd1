"""Registered ops as functions of JAX arrays: on the CPU here, and marked `gpu` on one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

jax = pytest.importorskip("jax")
import jax.numpy as jnp

import baracuda_py as bp
from baracuda_py.errors import InvalidProblem, MisalignedOperand, NoKernel, Unsupported
from baracuda_py.interop import jax as bjax
from baracuda_py.plan import new_registry
from baracuda_py.testing.calls import cases, frobenius_error, reference_outputs
from baracuda_py.testing.data import inputs_for, same_bits
from baracuda_py.testing.toys import ToyKernel, toy_op
from baracuda_py.vocab.device import HOST
from baracuda_py.vocab.enums import ArchSku
from baracuda_py.vocab.tolerance import relative_tolerance

REGISTRY = bp.default_registry()
SKUS = [pytest.param(sku, marks=() if sku.arch is ArchSku.HOST else pytest.mark.gpu) for sku in REGISTRY.skus()]
F32 = bp.ElementKind.F32
X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gpu():
    try:
        return jax.local_devices(backend="cuda")[0]
    except RuntimeError as error:
        pytest.skip(f"this JAX has no GPU: {error}")


def by_plan(case, inputs):
    """What the plan writes, by output."""
    outputs = {
        spec.name: np.full(spec.shape_on(case.descriptor), 77, inputs[spec.name].dtype)
        if spec.role == "inout"
        else bp.empty(spec.shape_on(case.descriptor), spec.elements_on(case.descriptor)[0], case.device)
        for spec in case.op.specs if spec.written and spec.needed_on(case.descriptor)
    }  # fmt: skip
    for name, array in outputs.items():
        if name in inputs:
            array[...] = inputs[name]
    args = {**{spec.name: None for spec in case.op.specs}, **inputs, **outputs}
    args = {name: None if one is None else bp.to_device(one, case.device) if isinstance(one, np.ndarray) else one
            for name, one in args.items()}  # fmt: skip
    case.plan.run(None, bp.allocate_workspace(case.plan), case.op.args(**args))
    return {name: bp.TensorRef.of(args[name]).numpy() for name in outputs}


@pytest.mark.parametrize("sku", SKUS, ids=str)
def test_every_kernel_does_in_one_jit_what_its_plans_do(sku, x64):
    kernel, where = REGISTRY.kernel(sku), HOST
    place = jax.devices("cpu")[0]
    if sku.arch is not ArchSku.HOST:
        place, where = gpu(), REGISTRY.device(gpu().local_hardware_id)
    if not where.loads(sku.arch):
        pytest.skip(f"{sku.arch.name.lower()} code does not run on {where}")
    missing = REGISTRY.backend(kernel.code.executor).missing(kernel.code, where)
    if missing is not None:
        pytest.skip(str(missing))
    problems = [(case, inputs_for(case.op, case.descriptor)) for case in cases(REGISTRY, where, kernel)]

    @jax.jit
    def compute(given):
        return [
            bjax.call(case.descriptor, bp.PlanPreference(sku=sku), **arrays)
            for (case, _), arrays in zip(problems, given, strict=True)
        ]

    made = compute(jax.device_put([inputs for _, inputs in problems], place))
    assert made
    for (case, inputs), arrays in zip(problems, made, strict=True):
        arrays = arrays if isinstance(arrays, tuple) else (arrays,)
        names = [spec.name for spec in case.op.specs if spec.written and spec.needed_on(case.descriptor)]
        found = {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}
        if case.empty:
            assert not any(array.size for array in found.values())
            continue
        exact = reference_outputs(case.op, case.descriptor, inputs)
        for name, array in found.items():
            limit = relative_tolerance(case.guarantee, bp.TensorRef.of(array).element)
            assert frobenius_error(array, exact[name]) <= limit, (name, case)
        if case.guarantee.deterministic and where is HOST:
            assert same_bits(found, by_plan(case, inputs)), case


@pytest.mark.parametrize("op", REGISTRY.ops(), ids=lambda op: op.name)
def test_a_function_says_the_problem_as_its_descriptor_does(op, x64):
    for descriptor in op.examples[:: max(1, len(op.examples) // 5)]:
        inputs = inputs_for(op, descriptor)
        signature = bjax.ops.__getattr__(op.name).args[0]
        options = {option.name: getattr(descriptor, option.name) for option in signature.options}
        named = {
            name: value.name.lower() if hasattr(value, "name") else value for name, value in options.items()
        }
        one = bjax.call(descriptor, **inputs)
        function, names = getattr(bjax.ops, op.name), [spec.name for spec in signature.inputs]
        for two in (
            function(*(inputs[name] for name in names), **named),
            function(**{name: array for name, array in inputs.items() if array is not None}, **options),
        ):
            assert jax.tree.all(jax.tree.map(np.array_equal, one, two))


def test_it_is_part_of_the_program_around_it():
    def block(x, w):
        return bjax.ops.softmax(bjax.ops.rms_norm(x * 2, w) + 1, axis=0).sum()

    jaxpr = str(jax.make_jaxpr(jax.jit(block))(X, X[0]))
    assert jaxpr.count("baracuda_call") == 2
    assert jaxpr.count("jit[") == 1  # no program within the program
    assert len(jaxpr) < 2000
    np.testing.assert_allclose(jax.jit(block)(X, X[0]), block(X, X[0]), rtol=1e-6)


def test_16_bit_floats_come_and_go():
    for dtype, limit in ((jnp.float16, 1e-3), (jnp.bfloat16, 1e-2)):
        y = jax.jit(bjax.ops.softmax)(jnp.asarray(X, dtype))
        assert y.dtype == dtype
        np.testing.assert_allclose(y.astype(np.float32), softmax(np.asarray(jnp.asarray(X, dtype), np.float32)), limit)


def test_loops_and_branches():
    y = jax.jit(lambda x: jax.lax.scan(lambda c, _: (bjax.ops.softmax(c), c[0]), x, None, length=3))(X)
    np.testing.assert_allclose(y[0], softmax(softmax(softmax(X))), rtol=1e-5)
    np.testing.assert_allclose(y[1][2], softmax(softmax(X))[0], rtol=1e-5)
    twice = lambda x: jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, bjax.ops.softmax(s[1])), (0, x))  # noqa: E731
    np.testing.assert_allclose(jax.jit(twice)(X)[1], softmax(softmax(X)), rtol=1e-5)
    branch = jax.jit(lambda p, x: jax.lax.cond(p, bjax.ops.softmax, lambda x: x, x))
    np.testing.assert_allclose(branch(True, X), softmax(X), rtol=1e-5)
    np.testing.assert_array_equal(branch(False, X), X)


def test_vmap_is_a_loop_over_problems():
    xs = np.stack([X, 2 * X, -X])
    expected = np.stack([softmax(x) for x in xs])
    np.testing.assert_allclose(jax.vmap(bjax.ops.softmax)(xs), expected, rtol=1e-5)
    second = jax.jit(jax.vmap(bjax.ops.softmax, in_axes=1, out_axes=1))
    np.testing.assert_allclose(second(xs.swapaxes(0, 1)), expected.swapaxes(0, 1), rtol=1e-5)
    both = jax.vmap(jax.vmap(lambda x, w: bjax.ops.rms_norm(x[None], w)[0], (0, None)), (0, 0))(xs, np.abs(xs[:, 0]))
    alone = np.stack([bjax.ops.rms_norm(x, w) for x, w in zip(xs, np.abs(xs[:, 0]), strict=True)])
    np.testing.assert_array_equal(both, alone)
    assert jax.vmap(bjax.ops.softmax)(xs[:0]).shape == (0, 4, 6)


def test_a_gradient_is_refused_in_words():
    for transform in (
        lambda f: jax.grad(lambda x: f(x).sum())(X),
        lambda f: jax.jvp(f, (X,), (X,)),
        lambda f: jax.jit(jax.grad(lambda x: f(x).sum()))(X),
        lambda f: jax.vmap(jax.grad(lambda x: f(x[None]).sum()))(X),
    ):
        with pytest.raises(Unsupported, match=r"softmax: it must not be differentiated.*stop_gradient.*custom_vjp"):
            transform(bjax.ops.softmax)


def test_what_needs_no_gradient_of_it_has_one():
    found = jax.grad(lambda x: (x * bjax.ops.softmax(jax.lax.stop_gradient(x))).sum())(X)
    np.testing.assert_allclose(found, softmax(X), rtol=1e-5)

    @jax.custom_vjp
    def own(x):
        return bjax.ops.softmax(x)

    own.defvjp(lambda x: (own(x),) * 2, lambda y, g: (y * (g - (y * g).sum(-1, keepdims=True)),))
    weight = np.arange(6, dtype=np.float32)
    np.testing.assert_allclose(
        jax.grad(lambda x: (own(x) * weight).sum())(X), jax.grad(lambda x: (jax.nn.softmax(x) * weight).sum())(X),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip


GEMM = bp.DenseGemmDescriptor(64, 64, 64, element=F32, beta=1.0)
A, B = (np.random.default_rng(seed).integers(-8, 9, (64, 64)).astype(np.float32) for seed in (1, 2))


def test_an_output_that_is_read_is_changed_in_place_only_where_it_is_given_away():
    output = jnp.ones((64, 64))
    np.testing.assert_array_equal(bjax.call(GEMM, a=A, b=B, output=output), A @ B + 1)
    np.testing.assert_array_equal(output, 1)
    both = jax.jit(lambda o: (bjax.call(GEMM, a=A, b=B, output=o), o + 1))(output)
    np.testing.assert_array_equal(both[0], A @ B + 1)
    np.testing.assert_array_equal(both[1], 2)
    address = output.unsafe_buffer_pointer()
    made = jax.jit(lambda o: bjax.call(GEMM, a=A, b=B, output=o), donate_argnums=0)(output)
    assert output.is_deleted()
    assert made.unsafe_buffer_pointer() == address
    np.testing.assert_array_equal(made, A @ B + 1)
    a = jnp.asarray(A)
    np.testing.assert_array_equal(bjax.call(GEMM, a=a, b=B, output=a), A @ B + A)  # what must not overlap is copied
    np.testing.assert_array_equal(a, A)


def test_an_output_that_is_read_starts_as_zeros_where_it_is_left_out():
    np.testing.assert_array_equal(bjax.call(GEMM, a=A, b=B), A @ B)
    np.testing.assert_array_equal(jax.vmap(lambda a: bjax.call(GEMM, a=a, b=B))(np.stack([A, B]))[1], B @ B)


def test_subnormal_numbers_are_numbers_whatever_xlas_threads_do_with_them():
    a, b = np.full((64, 64), 1e-20, np.float32), np.full((64, 64), 1e-20, np.float32)
    expected = a @ b
    assert 0 < expected[0, 0] < np.finfo(np.float32).tiny
    np.testing.assert_array_equal(bjax.call(GEMM.with_beta(0), a=a, b=b), expected)
    big = jnp.ones((512, 512))  # which XLA computes in a thread of its own
    y = jax.jit(lambda x, a, b: bjax.call(GEMM.with_beta(0), a=a + 0 * (x @ x)[0, 0], b=b))(big, a, b)
    np.testing.assert_array_equal(y, expected)
    after = jax.jit(lambda a, b: bjax.call(GEMM.with_beta(0), a=a, b=b) * 0.5)
    alone = jax.jit(lambda y: y * 0.5)
    np.testing.assert_array_equal(after(a, b), alone(expected))  # XLA's own arithmetic is left as it was


def test_arrays_that_do_not_fit_are_refused_by_name_before_anything_runs():
    norm = bp.RmsNormDescriptor(4, 6, element=F32)
    for call, error, said in (
        (lambda: bjax.call(norm, input=X), InvalidProblem, "rms_norm: weight: must be given"),
        (lambda: bjax.call(norm, input=X, weight=X), InvalidProblem, r"weight: must have shape \(6,\)"),
        (lambda: bjax.call(norm, input=X.astype(np.float16), weight=X[0]), InvalidProblem, "input: must be f32"),
        (lambda: bjax.call(norm, input=X.astype(np.int16), weight=X[0]), Unsupported, "dtype must stand for"),
        (lambda: bjax.call(norm.with_has_weight(False), input=X, weight=X[0]), InvalidProblem, "weight: it must be"),
        (lambda: bjax.call(norm, input=X, weight=X[0], output=X), InvalidProblem, "output: it must be left out"),
        (lambda: bjax.call(bp.RmsNormDescriptor(4, 0), input=X), InvalidProblem, "columns > 0|columns >= 1"),
        (lambda: bjax.ops.softmax(X, axis=5), InvalidProblem, "axis"),
        (lambda: bjax.ops.softmax(X, kind="hard"), InvalidProblem, "one of softmax, log_softmax"),
        (lambda: bjax.ops.softmax(X, axes=1), TypeError, "takes no 'axes' here; it takes input, axis, kind"),
        (lambda: bjax.ops.softmax(X, X), TypeError, "takes 1 arrays: input"),
        (lambda: bjax.ops.softmax(X, input=X), TypeError, "takes no 'input' here"),
        (lambda: bjax.ops.softmax(), TypeError, "must be given input"),
        (lambda: bjax.ops.softmin(X), AttributeError, "Known ops: dense_gemm"),
        (lambda: bjax.call(norm, bp.PlanPreference(require=bp.PrecisionGuarantee(accumulator=bp.ElementKind.F64)),
                           input=X, weight=X[0]), NoKernel, "some registered kernel must serve"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            call()


def _fail(_descriptor, x, y):
    raise MisalignedOperand("toy: x", "it must lie better", rule="x alignment")


def test_a_registry_of_ones_own_its_workspaces_and_its_errors():
    registry = new_registry()
    registry.register_backend(REGISTRY.backend("host"))
    operators = bjax.Operators(registry, "baracuda_test")
    registry.register(toy_op("toy", [ToyKernel("lent", workspace_nbytes=1000)]))
    registry.register(toy_op("broken", [ToyKernel("broken", bp.ElementKind.F16, function=_fail)]))
    lowered = jax.jit(operators.toy).lower(X)
    assert "custom_call @baracuda_test" in lowered.as_text()
    assert "tensor<1000xui8>" in lowered.as_text()
    np.testing.assert_array_equal(operators.toy(X), 2 * X)
    assert set(dir(operators)) == {"call", "toy", "broken"}
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT: toy: x: it must lie better"):
        jax.block_until_ready(jax.jit(operators.broken)(X.astype(np.float16)))
    np.testing.assert_array_equal(operators.toy(X), 2 * X)  # the process goes on


def test_a_program_runs_where_a_kernel_that_needs_more_memory_would_be_selected():
    registry = new_registry()
    registry.register_backend(REGISTRY.backend("host"))
    operators = bjax.Operators(registry, "baracuda_landed")
    kernels = [ToyKernel("plain", cost=1.0), ToyKernel("lent", cost=2.0, workspace_nbytes=1000)]
    op = registry.register(toy_op("toy", kernels))
    program = jax.jit(operators.toy).lower(X).compile()
    registry._estimate = lambda _op, kernel, *_: float(kernel.sku.variant != "lent")
    registry._memo = {}
    assert registry.select(op.descriptor(*X.shape), "host").sku.variant == "lent"
    np.testing.assert_array_equal(program(X), 2 * X)


def test_a_call_outside_every_jit_is_compiled_all_the_same():
    with jax.disable_jit():
        np.testing.assert_allclose(bjax.ops.softmax(X), softmax(X), rtol=1e-5)
        np.testing.assert_allclose(jax.vmap(bjax.ops.softmax)(X[None])[0], softmax(X), rtol=1e-5)


def test_for_cuda_it_is_lowered_where_there_is_a_gpu_only_and_for_no_other_platform():
    traced = jax.jit(bjax.ops.softmax).trace(X)
    if not any(one.platform == "gpu" for one in jax.devices()):
        with pytest.raises(Unsupported, match="JAX must have a GPU"):
            traced.lower(lowering_platforms=("cuda",))
    with pytest.raises(NotImplementedError, match=r"baracuda_call.*tpu"):
        traced.lower(lowering_platforms=("tpu",))


def run(code, devices=1, timeout_s=120):
    """In a process of its own: what hangs there is ended."""
    code = f"import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count={devices}'\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=timeout_s
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


WAITS = """
import threading, jax, jax.numpy as jnp, numpy as np, baracuda_py as bp
from baracuda_py.interop import jax as bjax
big = jnp.ones((1024, 1024))
f = jax.jit(lambda x: bjax.ops.softmax(bjax.ops.softmax(x * 1.5)) + 1)
jax.block_until_ready(f(big))
for wait in (
    np.asarray, jax.block_until_ready, repr, memoryview, jax.device_put, bp.TensorRef.of, jnp.array,
    lambda y: y.__dlpack__(), lambda y: y.unsafe_buffer_pointer(), lambda y: float(y[0, 0]), lambda y: y.delete(),
    lambda y: f(f(y)), lambda y: bjax.ops.softmax(y), lambda y: None,
):
    wait(f(big))
def work():
    for _ in range(20):
        jax.block_until_ready(f(jnp.ones((64, 64))))
        bjax.ops.softmax(big)
threads = [threading.Thread(target=work) for _ in range(6)]
for one in threads: one.start()
for _ in range(10): np.asarray(f(big))
for one in threads: one.join()
"""


def test_no_way_to_wait_for_a_result_holds_up_the_threads_that_make_it():
    run(WAITS)


@pytest.mark.parametrize("end", ["y = f(f(big))", "f(f(big)); f(big)", "y = f(big); f(y); raise SystemExit(0)"])
def test_a_process_ends_with_work_pending_held_or_not(end):
    run(f"""
import jax, jax.numpy as jnp
from baracuda_py.interop import jax as bjax
big = jnp.ones((3000, 3000))
f = jax.jit(lambda x: bjax.ops.softmax(bjax.ops.softmax(x * 1.5)) + 1)
{end}
""", timeout_s=60)  # fmt: skip


def test_importing_it_starts_no_backend_not_even_at_the_end():
    assert run("""
import atexit, jax
atexit.register(lambda: print(jax._src.xla_bridge.backends_are_initialized()))
import baracuda_py.interop.jax
print(jax._src.xla_bridge.backends_are_initialized())
""").split() == ["False", "False"]


def test_cut_arrays_are_gathered_and_stay_cut_within_a_shard_map():
    run("""
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from baracuda_py.interop import jax as bjax
x = np.linspace(-2, 2, 96, dtype=np.float32).reshape(8, 12)
w = np.linspace(1, 2, 12, dtype=np.float32)
exact = np.asarray(jax.nn.softmax(x))
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((4,), ("i",), axis_types=(kind,))
    cut = jax.device_put(x, NamedSharding(mesh, P("i", None)))
    for made in (jax.jit(bjax.ops.softmax)(cut), bjax.ops.softmax(cut)):
        np.testing.assert_allclose(made, exact, rtol=1e-5)
    for checked in (True, False):
        def over(f, *specs, out):
            return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out, check_vma=checked))
        made = over(bjax.ops.softmax, P("i"), out=P("i"))(cut)
        assert made.sharding.spec == P("i", None) or made.sharding.spec == P("i")
        np.testing.assert_allclose(made, exact, rtol=1e-5)
        whole = jax.device_put(w, NamedSharding(mesh, P()))
        made = over(bjax.ops.rms_norm, P("i"), P(), out=P("i"))(cut, whole)
        np.testing.assert_allclose(made, bjax.ops.rms_norm(x, w))
        total = over(lambda x: jax.lax.psum(bjax.ops.softmax(x), "i"), P("i"), out=P())(cut)
        np.testing.assert_allclose(total, exact.reshape(4, 2, 12).sum(0), rtol=1e-5)
    try:
        jax.jit(jax.shard_map(bjax.ops.softmax, mesh=mesh, in_specs=P("i"), out_specs=P()))(cut)
    except ValueError as error:
        assert "replication" in str(error)
    else:
        raise AssertionError("a result that varies passed for one that does not")
second = jax.devices()[2]
assert bjax.ops.softmax(jax.device_put(x, second)).devices() == {second}
""", devices=4)  # fmt: skip


def test_a_program_means_the_same_in_another_process(tmp_path):
    from jax import export

    allowed = [export.DisabledSafetyCheck.custom_call("baracuda_py")]
    program = export.export(jax.jit(lambda x: bjax.ops.softmax(x, axis=0)), disabled_checks=allowed)(X)
    (tmp_path / "program").write_bytes(program.serialize())
    run(f"""
import numpy as np, jax
import baracuda_py.interop.jax
from jax import export
program = export.deserialize(bytearray(open({str(tmp_path / "program")!r}, "rb").read()))
x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)
np.testing.assert_allclose(jax.jit(program.call)(x), jax.nn.softmax(x, 0), rtol=1e-5)
""")


@pytest.mark.parametrize(
    ("setup", "said"),
    [("sys.modules['jax'] = None", "pip install 'baracuda-py[jax]'"),
     ("import types; j = types.ModuleType('jax'); j.ffi = j; j.__version__ = '0.5.3'; sys.modules['jax'] = j",
      "0.6 or newer (got 0.5.3)"),
     ("import types; sys.modules['jax'] = types.ModuleType('jax')", "0.6 or newer (got a folder of that name)")],
)  # fmt: skip
def test_without_jax_or_with_an_old_one_what_to_install_is_said(setup, said):
    code = f"import sys\n{setup}\nimport baracuda_py.interop.jax"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]


def test_the_package_alone_does_not_load_jax():
    code = "import sys, baracuda_py, baracuda_py.interop; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
