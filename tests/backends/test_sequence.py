"""Kernels made of others: what each step is given, in which order, what is shown, and what is refused."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

import baracuda_py as bp
from baracuda_py.backends.null import NullBackend
from baracuda_py.backends.sequence import SequenceBackend
from baracuda_py.errors import NoKernel, RegistrationError, Unsupported, WorkspaceTooSmall
from baracuda_py.plan import new_registry
from baracuda_py.testing.toys import ToyKernel, toy_op
from baracuda_py.vocab.code import (
    WORKSPACE,
    Launch,
    LibraryCode,
    Pointer,
    PtxCode,
    Scratch,
    SequenceCode,
    Step,
    Stride,
)
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.enums import ArchSku, BackendKind, ElementKind

GPU = Device("cuda", 0, (9, 0), 132, "pretended")
F32 = ElementKind.F32
START = 0x10_0000
# rows * columns floats, and as many words of 16 bits, at multiples of 256 bytes.
ROWS, COLUMNS = 3, 100
HALF_NBYTES, TINY_NBYTES = 1280, 768
OWN_NBYTES = 1000


def _launches(descriptor: Any, device: Device) -> tuple[Launch, ...]:
    pointers = (Pointer("given"), Pointer("made", 8), Pointer(WORKSPACE, 16))
    strides = (Stride("given", 0), Stride("made", 0), (Stride("made", 1), 7))
    return (Launch("first", (descriptor.rows, 1, 1), (32, 1, 1), (*pointers, *strides, descriptor.columns)),)


class Library:
    """A backend that records its runs; `streams` are what it is asked for a current one."""

    name = "library"

    def __init__(self) -> None:
        self.runs: list[tuple[Any, ...]] = []
        self.absent = False
        self.failing = False
        self.prepared: list[tuple[Any, tuple[str, ...]]] = []

    def missing(self, code: Any, device: Device) -> Any:
        return Unsupported("library", "it must be installed", rule="library", fix="Get it") if self.absent else None

    def prepare(self, code: Any, descriptor: Any, device: Device, names: tuple[str, ...], where: str) -> Any:
        self.prepared.append((code.problem(descriptor), names))
        return Recording(self, device)


class Recording:
    launches = ()

    def __init__(self, library: Library, device: Device) -> None:
        self._library = library
        self.device = device

    def stream_handle(self, stream: Any, owner: Any) -> int:
        raise AssertionError("the first step says which stream is current, and no other")

    def run(self, stream: int, workspace: int, operands: Any) -> None:
        if self._library.failing:
            raise RuntimeError("failed")
        self._library.runs.append((stream, workspace, list(operands)))

    def bind(self, stream: Any, workspace: Any, operands: Any) -> Any:
        assert stream is not None
        return lambda: self.run(stream, workspace.pointer, operands)


def sequence(**changes: Any) -> SequenceCode:
    """y = library(half, x), where launches of PTX fill `half`; `tiny` lies behind it and is of no use."""
    first = Step(
        PtxCode("toy", ArchSku.SM80, _launches), lambda descriptor: attrs.evolve(descriptor, rows=2 * descriptor.rows),
        {"given": "x", "made": "half"}, lambda descriptor, device: descriptor.rows,
    )  # fmt: skip
    second = Step(
        LibraryCode("library", lambda descriptor: {"rows": descriptor.rows}), lambda descriptor: descriptor,
        {"a": "half", "b": "x", "c": "y"}, lambda descriptor, device: OWN_NBYTES,
    )  # fmt: skip
    scratch = lambda descriptor: (  # noqa: E731
        Scratch("half", (descriptor.rows, descriptor.columns), F32),
        Scratch("tiny", (descriptor.rows, descriptor.columns), ElementKind.F16),
    )
    given = {"steps": (first, second), "scratch": scratch} | changes
    return SequenceCode(**given)


def op_with(code: SequenceCode) -> Any:
    op = toy_op("doubling", [ToyKernel("made_of_two")])
    kernel = op.kernels[0]
    sku = attrs.evolve(kernel.sku, arch=ArchSku.SM80, backend=BackendKind.CUBLAS)
    return attrs.evolve(op, kernels=(attrs.evolve(kernel, sku=sku, code=code, workspace=code.workspace),))


class World:
    """A registry with the op, and all that the steps' backends record."""

    def __init__(self, *, library: bool = True) -> None:
        self.registry = new_registry()
        self.cuda, self.library = NullBackend(GPU), Library()
        for backend in (self.cuda, SequenceBackend(self.registry.backend), *([self.library] if library else [])):
            self.registry.register_backend(backend)
        self.op = self.registry.register(op_with(sequence()))
        self.descriptor = self.op.descriptor(ROWS, COLUMNS)

    @property
    def plan(self) -> Any:
        return self.registry.select(self.descriptor)

    @property
    def workspace(self) -> bp.Workspace:
        return bp.Workspace.borrowed(START, self.plan.workspace_size)

    @property
    def args(self) -> Any:
        shape = (ROWS, COLUMNS)
        return self.op.args(bp.TensorRef(0x1000, shape, F32, device=0), bp.TensorMut(0x9000, shape, F32, device=0))


@pytest.fixture
def world() -> World:
    return World()


def test_a_workspace_holds_scratch_tensors_at_multiples_of_256_bytes_and_then_the_most_that_a_step_needs(world):
    assert world.plan.workspace_size == HALF_NBYTES + TINY_NBYTES + OWN_NBYTES
    assert HALF_NBYTES % 256 == TINY_NBYTES % 256 == 0
    assert HALF_NBYTES - 256 < ROWS * COLUMNS * 4 <= HALF_NBYTES
    assert TINY_NBYTES - 256 < ROWS * COLUMNS * 2 <= TINY_NBYTES
    short = bp.Workspace.borrowed(START, world.plan.workspace_size - 1)
    with pytest.raises(WorkspaceTooSmall):
        world.plan.run(5, short, world.args)
    assert not world.cuda.runs
    none = bp.PlanPreference(max_workspace_bytes=world.plan.workspace_size - 1)
    with pytest.raises(NoKernel, match="the workspace must fit"):
        world.registry.select(world.descriptor, preference=none)


def check_run(world: World, stream: int) -> None:
    [first], [second] = world.cuda.runs, world.library.runs
    own = START + HALF_NBYTES + TINY_NBYTES
    assert (first.stream, first.workspace) == second[:2] == (stream, own)
    given, made = first.operands
    a, b, c = second[2]
    assert given.pointer == b.pointer == 0x1000
    assert made.pointer == a.pointer == START
    assert c.pointer == 0x9000
    assert c.writable
    for view in (made, a):
        assert (view.shape, view.strides, view.element, view.device) == ((ROWS, COLUMNS), (COLUMNS, 1), F32, 0)


def test_a_run_gives_each_step_its_operands_and_the_same_stream(world):
    world.plan.run(5, world.workspace, world.args)
    check_run(world, 5)


@pytest.mark.parametrize("stream", [5, None])
def test_a_bound_run_is_a_run(world, stream):
    launch = world.plan.bind(world.args, world.workspace, stream)
    assert not world.cuda.runs
    assert not world.library.runs
    launch()
    check_run(world, stream or 0)
    launch()
    assert len(world.cuda.runs) == len(world.library.runs) == 2


def test_steps_are_made_ready_for_descriptors_of_their_own(world):
    [launch] = world.plan.launches
    assert launch.grid == (2 * ROWS, 1, 1)
    assert world.library.prepared == [({"rows": ROWS}, ("a", "b", "c"))]


@pytest.mark.parametrize("device", [None, "sm_80"])
def test_the_launches_that_are_shown_speak_of_the_ops_arguments_and_its_workspace(world, device):
    [launch] = world.registry.select(world.descriptor, device).launches
    own = HALF_NBYTES + TINY_NBYTES
    assert launch.module == "toy"
    assert launch.parameters == (
        Pointer("x"), Pointer(WORKSPACE, 8), Pointer(WORKSPACE, own + 16),
        Stride("x", 0), COLUMNS, (1, 7), COLUMNS,
    )  # fmt: skip


def test_an_empty_problem_needs_nothing_and_runs_nothing(world):
    plan = world.registry.select(world.op.descriptor(0, COLUMNS))
    assert plan.workspace_size == 0
    assert plan.launches == ()
    assert not world.library.prepared


def test_a_step_that_fails_ends_the_run_with_its_error(world):
    bound = world.plan.bind(world.args, world.workspace, 5)
    world.library.failing = True
    for attempt in (lambda: world.plan.run(5, world.workspace, world.args), bound):
        with pytest.raises(RuntimeError, match="failed"):
            attempt()


def test_what_a_step_misses_the_kernel_misses(world):
    world.library.absent = True
    with pytest.raises(NoKernel) as caught:
        world.registry.select(world.descriptor)
    [refused] = caught.value.refusals
    assert refused.refusal.rule == "library"
    assert refused.refusal.fix == "Get it"


def test_a_step_whose_backend_is_not_registered_is_refused():
    world = World(library=False)
    with pytest.raises(NoKernel) as caught:
        world.registry.select(world.descriptor)
    [refused] = caught.value.refusals
    assert refused.refusal.rule == "backend"
    assert "library" in str(refused.refusal)


def replaced(index: int, **changes: Any) -> SequenceCode:
    steps = list(sequence().steps)
    steps[index] = attrs.evolve(steps[index], **changes)
    return sequence(steps=tuple(steps))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (replaced(1, operands={"a": "half", "b": "z", "c": "y"}), "'z', which is no argument of the op and no scratch"),
        (replaced(1, operands={"a": "half", "b": "x"}), "no step is given the output 'y'"),
        (replaced(0, operands={"given": "x"}), "takes 'made', which is no argument"),
        (sequence(scratch=lambda descriptor: (Scratch("half", (1,), F32), Scratch("x", (1,), F32))),
         "'x' is an argument of the op and a scratch tensor"),
    ],
)  # fmt: skip
def test_a_sequence_that_does_not_hang_together_is_not_registered(code, said):
    with pytest.raises(RegistrationError, match=said):
        new_registry().register(op_with(code))


def test_where_a_step_needs_more_than_addresses_so_does_the_whole(world):
    assert world.plan.relocatable(world.args, world.workspace) is None


def test_of_relocatable_steps_each_is_given_addresses_of_its_own(world, monkeypatch):
    runs: list[Any] = []

    def run_at(self: Any, stream: int, workspace: int, addresses: Any, operands: Any) -> None:
        runs.append((type(self), stream, workspace, list(addresses), [view.shape for view in operands]))

    steps = Recording, type(world.cuda.prepare(sequence().steps[0].code, world.descriptor, GPU, ("given", "made"), ""))
    for step in steps:
        monkeypatch.setattr(step, "run_at", run_at, raising=False)
    launch = world.plan.relocatable(world.args, world.workspace)
    moved = START + 0x1000
    launch(None, moved, (0x2000, 0xA000))
    own, shape = moved + HALF_NBYTES + TINY_NBYTES, (ROWS, COLUMNS)
    assert runs == [
        (steps[1], 0, own, [0x2000, moved], [shape] * 2),
        (steps[0], 0, own, [moved, 0x2000, 0xA000], [shape] * 3),
    ]
