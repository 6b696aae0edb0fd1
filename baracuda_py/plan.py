"""Plans: a problem, the kernel chosen for it, and how to run that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Self

from baracuda_py.errors import InvalidProblem, MisalignedOperand, Unsupported, WorkspaceTooSmall
from baracuda_py.operands import OperandChecker
from baracuda_py.registry import Explanation, Kernel, Op, Registry, Selection
from baracuda_py.vocab.code import (
    Executable,
    Launch,
    OverlappingExecutable,
    RelocatableExecutable,
    launches_of,
)
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.preference import PlanPreference, Workspace
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee
from baracuda_py.vocab.tensors import HOST_MEMORY, TensorRef, stream_owner, tells_no_stream
from baracuda_py.vocab.tuning import TuningTable

__all__ = ["Plan", "make_plan", "new_registry", "plan_class"]

_WORKSPACE_ALIGNMENT = 16  # bytes; kernels store partial sums four floats at a time


class Plan:
    """A descriptor and the kernel that serves it on one device. Immutable; may be run from several threads.

    Attributes:
        descriptor: the problem.
        device: where it runs.
        kernel: the chosen kernel.
        workspace_size: bytes of device memory that a run must be lent; 0 when it needs none.
        launches: the CUDA launches of one run, those of a library left out; empty when there is nothing to do.
    """

    op: ClassVar[Op]

    __slots__ = (
        "_checker", "_executable", "_run_at", "_selection", "descriptor", "device", "kernel", "launches",
        "workspace_size",
    )  # fmt: skip

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self.descriptor = selection.descriptor
        self.device: Device = selection.device
        self.kernel: Kernel = selection.kernel
        op, code = selection.op, selection.kernel.code
        empty = op.is_empty(self.descriptor)
        self.workspace_size = op.workspace_size(self.kernel, self.descriptor, self.device)
        self._checker = OperandChecker(
            op.name, op.specs, self.descriptor, self.kernel.alignment, self.device, self.workspace_size
        )
        self._executable: Executable | None = None
        self._run_at: Callable[..., None] | None = None
        self.launches: tuple[Launch, ...] = ()
        if empty:
            return
        if not self.device.dry:
            where = f"{op.name} [{self.sku.variant or self.sku.backend.name.lower()}]"
            self._executable = selection.backend.prepare(
                code, self.descriptor, self.device, self._checker.names, where
            )
            self.launches = self._executable.launches
            if isinstance(self._executable, RelocatableExecutable):
                self._run_at = self._executable.run_at
        else:
            self.launches = launches_of(code, self.descriptor, self.device)

    @classmethod
    def select(cls, stream: Any, descriptor: Any, preference: PlanPreference | None = None) -> Self:
        """The best kernel for `descriptor`, within the op's contract.

        Args:
            stream: what the plan will run on: None, a stream, or anything else that `bp.select` takes as a device;
                an int is a raw stream handle.
            descriptor: of this plan's op.
            preference: limits and wishes.

        Raises:
            the class of the first rule of the contract that is broken, in its order; then as `bp.select`.
        """
        from baracuda_py import default_registry

        if not isinstance(descriptor, cls.op.descriptor):
            raise InvalidProblem(
                cls.op.name, f"the descriptor must be a {cls.op.descriptor.__name__}", rule="descriptor",
                got=type(descriptor).__name__,
            )  # fmt: skip
        for rule in cls.op.contract:
            rule.check(descriptor, cls.op.name)
        device = None if isinstance(stream, int) else stream
        plan = default_registry().select(descriptor, device, preference)
        assert isinstance(plan, cls)
        return plan

    @property
    def sku(self) -> KernelSku:
        """Identity of the chosen kernel."""
        return self.kernel.sku

    @property
    def precision_guarantee(self) -> PrecisionGuarantee:
        """What the chosen kernel promises."""
        return self.kernel.sku.precision_guarantee

    def explain(self) -> Explanation:
        """Why this kernel, and why not the others."""
        return self._selection.explain()

    def can_implement(self, args: Any) -> bool:
        """True if `run` would take these arguments; otherwise raises what it would raise. Launches nothing.

        Raises:
            InvalidProblem: presence, element, shape, strides, device or overlap of an argument; `rule` names which.
            MisalignedOperand: an address or row stride.
        """
        self._views(args, Workspace.NONE, 0)
        return True

    def run(self, stream: Any, workspace: Workspace, args: Any) -> None:
        """Enqueue the computation on `stream`: no allocation, no synchronisation, safe under graph capture.

        Args:
            stream: int handle, object with `__cuda_stream__`, or None for the current stream of the framework that
                the first argument comes from; of JAX, which has none, that of the next framework's. Host plans ignore
                it and return when done.
            workspace: at least `workspace_size` bytes on the plan's device; `Workspace.NONE` when that is 0.
            args: the op's tensors.

        Raises:
            as `can_implement`; WorkspaceTooSmall; MisalignedOperand for the workspace; Unsupported for a dry-run plan;
            DriverError when the launch fails.
        """
        alike = self._checker.alike
        if alike is not None and self._run_at is not None and type(args) is self.op.args:
            self._check_ready(workspace)
            start = workspace.pointer
            addresses = alike.addresses(args, start, start + self.workspace_size)
            if addresses is not None:
                self._run_at(self._handle(stream, args), start, addresses, alike.views)
                return
        executable, handle, views = self._ready(stream, workspace, args)
        if executable is not None:
            executable.run(handle, workspace.pointer, views)

    def bind(
        self, args: Any, workspace: Workspace = Workspace.NONE, stream: Any = None, *, overlap: bool = False
    ) -> Callable[[], None]:
        """Check everything once and return a callable that only launches.

        The callable keeps the arguments and the workspace alive, and uses `stream`, or with None the stream that is
        current when it is called. It may have read the op's constant arguments (weights) already: change those, and
        bind again. Raises as `run`.

        With `overlap`, a kernel that can (`Launch.overlaps`) begins while the launch ahead of it on the stream ends:
        the caller promises that that launch does not write the op's constant arguments. Others take no notice.
        """
        executable, handle, views = self._ready(stream, workspace, args)
        if executable is None:
            return _nothing
        if overlap and self.launches and self.launches[0].overlaps and isinstance(executable, OverlappingExecutable):
            bind = executable.bind_overlapping
        else:
            bind = executable.bind
        if stream is None:
            return bind(None, workspace, views)
        bound = bind(handle, workspace, views)
        return bound if type(stream) is int else _Holding(bound, stream)

    def relocatable(
        self, args: Any, workspace: Workspace = Workspace.NONE, *, overlap: bool = False
    ) -> Callable[..., None] | None:
        """Check these arguments once, for callers that go on with tensors like them at other addresses.

        `overlap` is as for `bind`.

        Returns:
            a callable `(owner, workspace, addresses)` that enqueues on the stream that is current for the framework of
            `owner`, a tensor, and checks nothing: `addresses` are those of the op's arguments in order, 0 for absent
            ones, and `workspace` that of `workspace_size` bytes. The caller answers for shapes, strides, elements,
            alignment and device, and that nothing overlaps. None where a kernel needs more than addresses, as on the
            host.

        Raises:
            as `run`.
        """
        run_at = self._run_at
        if run_at is None:
            return None
        executable, _, views = self._ready(None, workspace, args)
        assert executable is not None
        if overlap and self.launches and self.launches[0].overlaps and isinstance(executable, OverlappingExecutable):
            run_at = executable.run_at_overlapping
        stream_handle = executable.stream_handle
        forms = [None if view is None else view.moved(view.pointer, None) for view in views]

        def launch(owner: Any, workspace: int, addresses: Sequence[int]) -> None:
            run_at(stream_handle(None, owner), workspace, addresses, forms)

        return launch

    def _ready(
        self, stream: Any, workspace: Workspace, args: Any
    ) -> tuple[Executable | None, int, list[TensorRef | None]]:
        executable = self._executable
        if executable is None and self.device.dry:
            raise Unsupported(
                self.op.name, "a dry-run plan cannot run", rule="dry run", got=str(self.device),
                fix="Select without a device name, on a machine that has such a GPU",
            )  # fmt: skip
        self._check_ready(workspace)
        if executable is None:
            self._views(args, workspace, 0)
            return None, 0, []
        handle = self._handle(stream, args)
        return executable, handle, self._views(args, workspace, handle)

    def _handle(self, stream: Any, args: Any) -> int:
        if type(stream) is int:
            return stream
        assert self._executable is not None
        return self._executable.stream_handle(stream, _stream_owner(args))

    def _views(self, args: Any, workspace: Workspace, stream: int) -> list[TensorRef | None]:
        if type(args) is not self.op.args:
            raise InvalidProblem(
                self.op.name, f"args must be {self.op.args.__name__}", rule="args", got=type(args).__name__
            )
        return self._checker.views(args, workspace, stream)

    def _check_ready(self, workspace: Workspace) -> None:
        if not isinstance(workspace, Workspace):
            raise InvalidProblem(
                self.op.name, "a workspace must be a Workspace", rule="workspace", got=type(workspace).__name__,
                fix="Pass Workspace.NONE, Workspace.borrowed(buffer) or allocate_workspace(plan)",
            )  # fmt: skip
        if self.workspace_size:
            if workspace.nbytes < self.workspace_size:
                raise WorkspaceTooSmall(self.op.name, self.workspace_size, workspace.nbytes)
            self._check_workspace(workspace)

    def _check_workspace(self, workspace: Workspace) -> None:
        if not workspace.pointer:
            raise InvalidProblem(
                self.op.name, "the workspace must not be a null pointer", rule="workspace address", got="address 0"
            )
        if workspace.pointer % _WORKSPACE_ALIGNMENT:
            raise MisalignedOperand(
                self.op.name, f"the workspace must be aligned to {_WORKSPACE_ALIGNMENT} bytes",
                rule="workspace alignment", value=workspace.pointer, got=hex(workspace.pointer),
            )  # fmt: skip
        here = HOST_MEMORY if self.device.kind == "host" else self.device.ordinal
        if workspace.device not in (None, here):
            raise InvalidProblem(
                self.op.name, f"the workspace must lie on {self.device}", rule="workspace device",
                value=workspace.device,
            )  # fmt: skip

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.sku} on {self.device}, workspace {self.workspace_size} bytes>"


class _Holding(partial[None]):
    """A bound call that keeps its stream alive: the handle dies with the object that owns it."""

    def __new__(cls, call: Callable[[], None], stream: Any) -> Self:
        made = super().__new__(cls, call)
        made.stream = stream
        return made

    stream: Any


def _nothing() -> None:
    """The bound run of an empty problem."""


def _stream_owner(args: Any) -> Any:
    names = getattr(args, "__slots__", None)
    first = getattr(args, names[0]) if names else None
    owner = first.owner if isinstance(first, TensorRef) else first
    if names and tells_no_stream(owner):
        return stream_owner(getattr(args, name, None) for name in names[1:])
    return owner


_class_lock = threading.Lock()


def plan_class(op: Op) -> type[Plan]:
    """The named plan class of an op: `Int4AwqGemmDescriptor` gives `Int4AwqGemmPlan`."""
    with _class_lock:  # a cache alone would let two threads make one each, of which plans would be of either
        return _plan_class(op)


@cache
def _plan_class(op: Op) -> type[Plan]:
    name = op.descriptor.__name__.removesuffix("Descriptor") + "Plan"
    return type(name, (Plan,), {"op": op, "__slots__": (), "__doc__": f"Plan of the op {op.name!r}."})


def make_plan(selection: Selection) -> Plan:
    """The plan that a selection stands for, ready to run unless its device is a dry run."""
    return plan_class(selection.op)(selection)


def new_registry(
    *, plugins: bool = False, tables: Callable[[Device, str], TuningTable | None] = lambda _device, _op: None
) -> Registry[Plan]:
    """An empty registry whose `select` returns plans; see `Registry` for the arguments."""
    return Registry(make_plan, plugins=plugins, tables=tables)
