"""Kernels, ops, and the registry that finds the kernel for a problem."""

from __future__ import annotations

import inspect
import os
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import IntEnum
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from attrs import evolve, field, frozen

from baracuda_py.errors import OTHER_SKU, BaracudaError, NoKernel, Refused, RegistrationError, Unsupported
from baracuda_py.vocab.code import (
    WORKSPACE,
    Backend,
    Code,
    HostCode,
    Launch,
    Parameter,
    Pointer,
    PtxCode,
    SequenceCode,
    Stride,
    TensorMap,
)
from baracuda_py.vocab.descriptors import TensorSpec, from_fields, specs_of
from baracuda_py.vocab.device import HOST, Device, dry_device
from baracuda_py.vocab.enums import ArchSku, BackendKind, ElementKind, EpilogueKind, LayoutSku, OpCategory
from baracuda_py.vocab.preference import PlanPreference
from baracuda_py.vocab.rules import Rule, one_of
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee
from baracuda_py.vocab.tensors import HOST_MEMORY, TensorRef
from baracuda_py.vocab.tuning import Calibration, TuningTable, kernel_label

__all__ = ["Candidate", "Explanation", "Kernel", "Op", "Registry", "Selection"]

PLUGIN_GROUPS = ("baracuda_py.backends", "baracuda_py.ops")  # backends first: ops may name them
NO_PLUGINS = "BARACUDA_PY_NO_PLUGINS"
_MEMO_LIMIT = 65_536  # plans kept; an engine with ragged m makes one a descriptor
_MOST_TOLD = 3  # reasons in a warning
P = TypeVar("P")


def _no_workspace(_descriptor: Any, _device: Device) -> int:
    return 0


@frozen(eq=False)
class Kernel:
    """One implementation of an op.

    Attributes:
        sku: its identity. A descriptor attribute named `element`, `layout`, `epilogue` or `kind` must equal the SKU's.
        code: how it runs.
        rules: what it asks of a descriptor beyond the op's own rules.
        workspace: bytes it needs for a descriptor on a device.
        cost: estimated time in microseconds, to rank kernels that serve the same problem.
        alignment: bytes that an argument's pointer, and the byte distance of rows that may be strided, must be a
            multiple of.
        doc: one line on when it is the one to use.
    """

    sku: KernelSku
    code: Code
    cost: Callable[[Any, Device], float]
    rules: tuple[Rule, ...] = ()
    workspace: Callable[[Any, Device], int] = _no_workspace
    alignment: Mapping[str, int] = field(factory=dict)
    doc: str = ""


def _no_samples(descriptor: Any, random: Any) -> Mapping[str, Any]:
    return {}


@frozen(eq=False)
class Op:
    """One operation: how a problem and its tensors are described, what is valid, what is right, who computes it.

    Attributes:
        name: look-up name, lower case.
        category, kinds: what the op is in a SKU; the descriptor's `kind` tells several kinds apart.
        descriptor: the `@descriptor` class.
        args: the `@arguments` class.
        rules: what every descriptor must satisfy, checked in this order.
        reference: float64 oracle: `reference(descriptor, **inputs) -> array or tuple of arrays`, one for each output.
        kernels: implementations.
        examples: small descriptors, each kernel serving at least one of them; tests and docs use them.
        contract: rules that the named plan checks instead, in this order, before it selects.
        sizes: integer fields of the descriptor that say how large a problem is: between measured problems, estimates
            go by them. None: times that were measured do not correct estimates.
        tuned: the problems that `baracuda-py tune` measures.
        samples: `samples(descriptor, random) -> {name: array}`, values of those inputs for tests that cannot hold just
            any bits: packed tensors with floats in them. `random` is a NumPy generator.
    """

    name: str
    category: OpCategory
    kinds: tuple[IntEnum, ...]
    descriptor: type
    args: type
    rules: tuple[Rule, ...]
    reference: Callable[..., Any]
    kernels: tuple[Kernel, ...]
    examples: tuple[Any, ...]
    contract: tuple[Rule, ...] = ()
    sizes: tuple[str, ...] = ()
    tuned: Callable[[], Iterable[Any]] = tuple
    samples: Callable[[Any, Any], Mapping[str, Any]] = _no_samples

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The argument specs, in order."""
        return specs_of(self.args)

    @property
    def doc(self) -> str:
        """The descriptor's docstring."""
        return inspect.getdoc(self.descriptor) or ""

    def is_empty(self, descriptor: Any) -> bool:
        """Whether there is nothing to compute: every output has zero elements."""
        written = (spec for spec in self.specs if spec.written and spec.needed_on(descriptor))
        return all(0 in spec.shape_on(descriptor) for spec in written)

    def workspace_size(self, kernel: Kernel, descriptor: Any, device: Device) -> int:
        """Bytes that `kernel` must be lent; 0 for an empty problem."""
        return 0 if self.is_empty(descriptor) else kernel.workspace(descriptor, device)

    def cost_us(self, kernel: Kernel, descriptor: Any, device: Device) -> float:
        """Estimated time of `kernel` in microseconds; 0 for an empty problem."""
        return 0.0 if self.is_empty(descriptor) else kernel.cost(descriptor, device)

    def check(self, descriptor: Any) -> None:
        """Raise the error of the first of the op's rules that `descriptor` breaks."""
        for rule in self.rules:
            rule.check(descriptor, self.name)


@frozen
class Candidate:
    """A kernel as a selection saw it: an estimate in microseconds, or the refusal.

    Attributes:
        kernel: it.
        cost_us: the estimate; None if it is refused.
        refusal: why it cannot serve; None if it can.
        calibrated: whether times that were measured on such a GPU correct the estimate.
    """

    kernel: Kernel
    cost_us: float | None
    refusal: BaracudaError | None
    calibrated: bool = False

    @property
    def sku(self) -> KernelSku:
        """The kernel's SKU."""
        return self.kernel.sku


@frozen(repr=False)
class Explanation:
    """Why a kernel was chosen, or why none was.

    Attributes:
        candidates: every kernel of the op: those that serve by rising estimate, then the refused.
        chosen: the kernel `select` takes, or None.
        error: what `select` raises, or None.
    """

    op: Op
    descriptor: Any
    device: Device
    candidates: tuple[Candidate, ...]
    chosen: Kernel | None
    error: BaracudaError | None

    @property
    def refusals(self) -> tuple[Refused, ...]:
        """The refused kernels, each with the error it would raise if pinned."""
        return tuple(Refused(c.sku, c.refusal) for c in self.candidates if c.refusal is not None)

    def __repr__(self) -> str:
        serving = len(self.candidates) - len(self.refusals)
        chosen = self.chosen.sku.token if self.chosen else None
        return f"<Explanation {self.op.name} on {self.device}: {serving} of {len(self.candidates)} serve, {chosen=!s}>"

    def __str__(self) -> str:
        lines = [f"{self.descriptor} on {self.device}"]
        if self.error is not None and not isinstance(self.error, NoKernel):
            return "\n".join([*lines, f"  refused: {self.error}"])
        for candidate in self.candidates:
            if candidate.refusal is None:
                mark = "*" if candidate.kernel is self.chosen else " "
                basis = " by measurements" if candidate.calibrated else ""
                lines.append(f"{mark} {candidate.sku}  ~{candidate.cost_us:.1f} us{basis}")
            else:
                lines.append(f"- {candidate.sku}  {candidate.refusal}")
        return "\n".join(lines)


@frozen(eq=False)
class Selection:
    """The outcome of a selection, from which a plan is made."""

    op: Op
    kernel: Kernel
    descriptor: Any
    device: Device
    preference: PlanPreference | None
    backend: Backend
    explain: Callable[[], Explanation]


_ANYTHING = PlanPreference()
_SKU_FIELDS = ("element", "layout", "epilogue")


class Registry(Generic[P]):
    """Ops, kernels and backends; look-up, selection and explanation. Safe to use from several threads.

    Args:
        make_plan: turns a `Selection` into what `select` returns.
        plugins: whether installed entry points are scanned, at the first look-up. The environment variable
            `BARACUDA_PY_NO_PLUGINS` turns the scan off everywhere.
        tables: the tuning table for a device and an op's name, or None; it corrects the kernels' estimates.
    """

    def __init__(
        self,
        make_plan: Callable[[Selection], P],
        *,
        plugins: bool = False,
        tables: Callable[[Device, str], TuningTable | None] = lambda _device, _op: None,
    ) -> None:
        self._make_plan = make_plan
        self._tables = tables
        self._calibrations: dict[tuple[KernelSku, Device, str], Calibration | None] = {}
        self._measured: dict[tuple[Op, TuningTable], list[tuple[Any, Mapping[str, float]]]] = {}
        self._lock = threading.RLock()
        self._pending_plugins = plugins and not os.environ.get(NO_PLUGINS)
        self._scanning = False
        self._ops: dict[str, Op] = {}
        self._by_descriptor: dict[type, Op] = {}
        self._kernels: dict[KernelSku, tuple[Op, Kernel]] = {}
        self._implied: dict[KernelSku, tuple[Rule, ...]] = {}
        self._backends: dict[str, Backend] = {}
        self._memo: dict[Any, P] = {}
        self._plugin_errors: dict[str, BaseException] = {}

    # -- registration -------------------------------------------------------------------------------------------

    def register(self, op: Op) -> Op:
        """Add an op and its kernels.

        Raises:
            RegistrationError: what is no `Op`, or holds what is no rule, kernel or example; a name, descriptor type or
                SKU that is taken; a rule or argument spec that names an unknown attribute; a kernel that disagrees with
                the op or its argument specs. Nothing is added then.
        """
        _check_types(op)
        with self._lock:
            taken = self._ops.get(op.name) or self._by_descriptor.get(op.descriptor)
            if taken is not None:
                raise RegistrationError(op.name, "an op's name and descriptor must be new", rule="duplicate op")
            for problem in _op_problems(op):
                raise RegistrationError(op.name, problem, rule=problem.split(":")[0])
            implied = {}
            for kernel in op.kernels:
                if kernel.sku in self._kernels or kernel.sku in implied:
                    raise RegistrationError(
                        op.name, f"a SKU must be new: {kernel.sku} is registered already", rule="duplicate SKU",
                        value=kernel.sku, fix="Tell the kernels apart by `variant`",
                    )  # fmt: skip
                implied[kernel.sku] = _implied_rules(op, kernel)
            for kernel in op.kernels:
                for problem in _kernel_problems(op, kernel, implied[kernel.sku]):
                    raise RegistrationError(f"{op.name} [{kernel.sku}]", problem, rule=problem.split(":")[0])
            # Others look things up meanwhile: what an op is found by comes last.
            self._implied = {**self._implied, **implied}
            self._kernels = {**self._kernels, **{kernel.sku: (op, kernel) for kernel in op.kernels}}
            self._ops = {**self._ops, op.name: op}
            self._by_descriptor = {**self._by_descriptor, op.descriptor: op}
            self._memo = {}
        return op

    def register_backend(self, backend: Backend) -> Backend:
        """Add a backend; RegistrationError for what is none, or if its name is taken."""
        name = getattr(backend, "name", None)
        methods = (getattr(backend, method, None) for method in ("missing", "prepare"))
        if isinstance(backend, type) or not isinstance(name, str) or not all(map(callable, methods)):
            raise RegistrationError(
                "register_backend", "a backend must have a `name` and the methods `missing` and `prepare`",
                rule="backend", got=_kind_of(backend), fix="Pass an instance of a class like `vocab.code.Backend`",
            )  # fmt: skip
        with self._lock:
            if backend.name in self._backends:
                raise RegistrationError(
                    backend.name, "a backend's name must be new", rule="duplicate backend", value=backend.name
                )
            self._backends = {**self._backends, backend.name: backend}
            self._memo = {}
        return backend

    def _scan(self) -> None:
        """Load the installed plug-ins, once. One that fails leaves no trace but its name and error."""
        if not self._pending_plugins:
            return
        with self._lock:
            if not self._pending_plugins:
                return
            if self._scanning:  # a plug-in looks something up
                return
            # Others wait at the lock until the scan is through: half a scan is no answer.
            self._scanning = True
            broken = []
            try:
                for group in PLUGIN_GROUPS:
                    for entry_point in sorted(entry_points(group=group), key=lambda e: e.name):
                        if not self._load_plugin(entry_point):
                            broken.append(entry_point)
            finally:
                self._pending_plugins = self._scanning = False
        for entry_point in broken:  # last, for a filter may turn a warning into an exception
            error = self._plugin_errors[f"{entry_point.group}:{entry_point.name}"]
            warnings.warn(
                f"plug-in {entry_point.name!r} ({entry_point.value}) was left out: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=3,
            )

    def _load_plugin(self, entry_point: EntryPoint) -> bool:
        """Whether it loaded; if not, everything is as before and its error is kept."""
        before = (self._ops, self._by_descriptor, self._kernels, self._implied, self._backends)
        try:
            entry_point.load()(self)
        except (Exception, SystemExit) as error:
            (self._ops, self._by_descriptor, self._kernels, self._implied, self._backends) = before
            self._memo, self._calibrations, self._measured = {}, {}, {}  # it may have selected what it had registered
            self._plugin_errors[f"{entry_point.group}:{entry_point.name}"] = error
            return False
        return True

    @property
    def plugin_errors(self) -> Mapping[str, BaseException]:
        """Plug-ins that failed to load: `group:name` to the error."""
        self._scan()
        return dict(self._plugin_errors)

    # -- look-up ------------------------------------------------------------------------------------------------

    def ops(self) -> tuple[Op, ...]:
        """Every op, by name."""
        self._scan()
        return tuple(sorted(self._ops.values(), key=lambda op: op.name))

    def op(self, name: str) -> Op:
        """The op called `name`; Unsupported, with the known names, if there is none."""
        self._scan()
        found = self._ops.get(name)
        if found is None:
            raise Unsupported(
                "registry", "an op must be registered", rule="op", value=name,
                fix=f"Known ops: {', '.join(sorted(self._ops))}",
            )  # fmt: skip
        return found

    def op_for(self, descriptor: Any) -> Op:
        """The op whose descriptor this is."""
        self._scan()
        found = self._by_descriptor.get(type(descriptor))
        if found is None:
            raise Unsupported(
                "registry", "a descriptor's type must belong to a registered op", rule="descriptor",
                got=type(descriptor).__name__,
            )  # fmt: skip
        return found

    def backend(self, name: str) -> Backend:
        """The backend called `name`; Unsupported if there is none."""
        self._scan()
        found = self._backends.get(name)
        if found is None:
            raise Unsupported("registry", "a backend must be registered", rule="backend", value=name)
        return found

    def kernel(self, sku: KernelSku | str) -> Kernel:
        """The kernel with this SKU or token; Unsupported if none has it."""
        return self._find(sku)[1]

    def _find(self, sku: KernelSku | str) -> tuple[Op, Kernel]:
        self._scan()
        try:
            parsed = KernelSku.parse(sku) if isinstance(sku, str) else sku
        except ValueError as error:
            raise Unsupported("registry", "a SKU token must parse", rule="sku", value=sku, why=str(error)) from None
        found = self._kernels.get(parsed)
        if found is None:
            raise Unsupported("registry", "a SKU must be registered", rule="sku", value=str(parsed))
        return found

    def skus(
        self,
        *,
        category: OpCategory | None = None,
        op: str | IntEnum | None = None,
        element: ElementKind | None = None,
        aux_element: ElementKind | None = None,
        layout: LayoutSku | None = None,
        epilogue: EpilogueKind | None = None,
        backend: BackendKind | None = None,
        arch: ArchSku | None = None,
        guarantee: PrecisionGuarantee | None = None,
        variant: str | None = None,
    ) -> tuple[KernelSku, ...]:
        """SKUs of the kernels that match every filter given, sorted. `op` is an op's name or a kind."""
        self._scan()
        wanted = {
            "category": category, "element": element, "aux_element": aux_element, "layout": layout,
            "epilogue": epilogue, "backend": backend, "arch": arch, "variant": variant,
        }  # fmt: skip
        wanted = {name: value for name, value in wanted.items() if value is not None}

        def matches(of: Op, sku: KernelSku) -> bool:
            if any(getattr(sku, name) != value for name, value in wanted.items()):
                return False
            if guarantee is not None and not sku.precision_guarantee.satisfies(guarantee):
                return False
            if isinstance(op, str):
                return of.name == op
            return op is None or sku.kind is op

        return tuple(sorted(sku for sku, (of, _) in self._kernels.items() if matches(of, sku)))

    # -- selection ----------------------------------------------------------------------------------------------

    def select(self, descriptor: Any, device: Any = None, preference: PlanPreference | None = None) -> P:
        """The plan of the best kernel for `descriptor`.

        Args:
            descriptor: of a registered op.
            device: None (the current GPU, else the host), `"host"`, an ordinal, a `Device`, a stream, an array (its
                device), or an architecture name such as `"sm_90a"` for a dry run.
            preference: limits and wishes.

        Raises:
            the error of the first of the op's rules that is broken; NoKernel when every kernel refuses; with
            `preference.sku`, that kernel's refusal.
        """
        if device is None:
            device = self.current_device()
        named = _named(device) if type(device) is Device else device
        try:
            return self._memo[descriptor, named, preference]
        except (KeyError, TypeError):
            pass
        self._scan()
        memo = self._memo  # the one of this registration: a later one throws it away, and with it what is chosen here
        resolved = self.device(device)
        try:
            plan = memo[descriptor, _named(resolved), preference]  # a stream or an array says its device in many ways
        except (KeyError, TypeError):
            plan = self._make_plan(self._select(descriptor, resolved, preference))
            if len(memo) >= _MEMO_LIMIT:
                memo.clear()
            memo[descriptor, _named(resolved), preference] = plan
        if isinstance(device, (int, str)):
            memo[descriptor, device, preference] = plan
        return plan

    def plan(
        self, sku: KernelSku | str, descriptor: Any, device: Any = None, preference: PlanPreference | None = None
    ) -> P:
        """The plan of exactly the kernel `sku`; its refusal if it does not serve."""
        kernel = self.kernel(sku)
        return self.select(descriptor, device, evolve(preference or _ANYTHING, sku=kernel.sku))

    def explain(
        self, descriptor: Any, device: Any = None, preference: PlanPreference | None = None
    ) -> Explanation:
        """What `select` would do and why; never raises for a problem that no kernel serves."""
        op = self.op_for(descriptor)
        _check_preference(preference)
        resolved = self.device(device)
        try:
            op.check(descriptor)
        except BaracudaError as broken:
            return Explanation(op, descriptor, resolved, (), None, broken)
        wishes = preference or _ANYTHING
        candidates = []
        for kernel in op.kernels:
            refusal = self._refusal(op, kernel, descriptor, resolved, wishes)
            if refusal is not None:
                candidates.append(Candidate(kernel, None, refusal()))
                continue
            calibrated = self._calibration(op, kernel, resolved) is not None
            candidates.append(Candidate(kernel, self._estimate(op, kernel, descriptor, resolved), None, calibrated))
        serving = sorted((c for c in candidates if c.refusal is None), key=lambda c: _rank(c.kernel, c.cost_us, wishes))
        refused = sorted((c for c in candidates if c.refusal is not None), key=lambda c: c.sku)
        chosen = serving[0].kernel if serving else None
        error = None if chosen else self._no_kernel(op, descriptor, resolved, wishes)
        return Explanation(op, descriptor, resolved, (*serving, *refused), chosen, error)

    def _select(self, descriptor: Any, device: Device, preference: PlanPreference | None) -> Selection:
        op = self.op_for(descriptor)
        _check_preference(preference)
        op.check(descriptor)
        wishes = preference or _ANYTHING
        serving = [k for k in op.kernels if self._refusal(op, k, descriptor, device, wishes) is None]
        if not serving:
            raise self._no_kernel(op, descriptor, device, wishes)
        best = min(serving, key=lambda kernel: _rank(kernel, self._estimate(op, kernel, descriptor, device), wishes))
        return Selection(
            op, best, descriptor, device, preference, self._backends[best.code.executor],
            lambda: self.explain(descriptor, device, preference),
        )  # fmt: skip

    def _estimate(self, op: Op, kernel: Kernel, descriptor: Any, device: Device) -> float:
        """The kernel's own estimate in microseconds, corrected by what was measured."""
        estimate = op.cost_us(kernel, descriptor, device)
        calibration = self._calibration(op, kernel, device) if estimate else None
        return estimate if calibration is None else estimate * calibration.factor(descriptor)

    def _calibration(self, op: Op, kernel: Kernel, device: Device) -> Calibration | None:
        key = (kernel.sku, device, device.name)
        if key not in self._calibrations:
            self._calibrations[key] = self._make_calibration(op, kernel, device)
        return self._calibrations[key]

    def _make_calibration(self, op: Op, kernel: Kernel, device: Device) -> Calibration | None:
        table = self._tables(device, op.name) if op.sizes else None
        if table is None:
            return None
        label, there = kernel_label(kernel.sku), table.device
        measured = [(one, times[label]) for one, times in self._measured_problems(op, table) if label in times]
        return Calibration.of(op.sizes, lambda descriptor: op.cost_us(kernel, descriptor, there), measured)

    def _measured_problems(self, op: Op, table: TuningTable) -> list[tuple[Any, Mapping[str, float]]]:
        """The op's problems in a table, with their times. Those that this version does not know are left out."""
        if (op, table) not in self._measured:
            problems = table.problems.get(op.name, ())
            known, wrong = [], []
            for problem in problems:
                try:
                    known.append((_described(op, problem.fields), problem.times_us))
                except (TypeError, ValueError, BaracudaError) as error:
                    wrong.append(str(error))
            self._measured[op, table] = known
            if wrong:  # last, for a filter may turn a warning into an exception
                told = "; ".join(list(dict.fromkeys(wrong))[:_MOST_TOLD])
                warnings.warn(
                    f"{len(wrong)} of {len(problems)} problems of {op.name} in the tuning table of {table.device.name} "
                    f"({table.where}) were left out: {told}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return self._measured[op, table]

    def _no_kernel(self, op: Op, descriptor: Any, device: Device, wishes: PlanPreference) -> BaracudaError:
        if wishes.sku is not None:
            try:
                owner, kernel = self._find(wishes.sku)
            except Unsupported as unknown:
                return unknown
            if owner is op:
                refusal = self._refusal(op, kernel, descriptor, device, wishes)
                assert refusal is not None
                return refusal()
            return Unsupported(
                op.name, f"the pinned SKU must be of this op, not of {owner.name}", rule="sku", value=str(wishes.sku)
            )
        refused = []
        for kernel in op.kernels:
            refusal = self._refusal(op, kernel, descriptor, device, wishes)
            assert refusal is not None
            refused.append(Refused(kernel.sku, refusal()))
        return NoKernel(op.name, str(device), refused)

    def _refusal(
        self, op: Op, kernel: Kernel, descriptor: Any, device: Device, wishes: PlanPreference
    ) -> Callable[[], BaracudaError] | None:
        """Why `kernel` does not serve, as a function that makes the error; None when it serves."""
        sku = kernel.sku
        where = f"{op.name} [{sku.variant or sku.backend.name.lower()}]"

        def refuse(must: str, rule: str, **facts: Any) -> Callable[[], BaracudaError]:
            return lambda: Unsupported(where, must, rule=rule, **facts)

        if not device.loads(sku.arch):
            return refuse(f"a kernel for {sku.arch.name.lower()} must run on such a device", "arch", got=str(device))
        for rule in (*self._implied[sku], *kernel.rules):
            if not rule.holds(descriptor):
                return lambda rule=rule: rule.refusal(descriptor, where)  # type: ignore[misc]
        if wishes.sku is not None and sku != wishes.sku:
            return refuse("only the pinned SKU may serve", "sku", value=str(wishes.sku))
        if not wishes.allow_sm90a and sku.arch is ArchSku.SM90A:
            return refuse("the preference must allow sm90a kernels", "allow_sm90a")
        if wishes.require is not None:
            unmet = sku.precision_guarantee.unmet(wishes.require)
            if unmet:
                value = getattr(sku.precision_guarantee, unmet[0])
                promised = f"{unmet[0]} = {getattr(value, 'name', value)}"
                return refuse(f"the guarantee must cover the required {', '.join(unmet)}", "require", got=promised)
        if wishes.max_workspace_bytes is not None:
            nbytes = op.workspace_size(kernel, descriptor, device)
            if nbytes > wishes.max_workspace_bytes:
                limit = f"{wishes.max_workspace_bytes} bytes"
                return refuse(f"the workspace must fit in {limit}", "max_workspace_bytes", value=nbytes)
        backend = self._backends.get(kernel.code.executor)
        if backend is None:
            return refuse("the backend must be registered", "backend", value=kernel.code.executor)
        missing = backend.missing(kernel.code, device)
        if missing is not None:
            return lambda: missing
        return None

    # -- devices ------------------------------------------------------------------------------------------------

    def current_device(self) -> Device:
        """The GPU of the calling thread's current CUDA context, else GPU 0, else the host."""
        cuda = self._backends.get("cuda")
        found = cuda.current_device() if cuda is not None else None  # type: ignore[attr-defined]
        return found or HOST

    def device(self, spec: Any = None) -> Device:
        """The device that `spec` names; see `select` for what it may be."""
        if isinstance(spec, Device):
            if spec.kind == "host" or (spec.capability is not None and spec.sm_count):
                return spec
            if spec.ordinal is not None:
                return self._cuda_device(spec.ordinal)
            if spec.capability is not None:
                return spec.with_common_part()
            raise Unsupported(
                "device", "a Device of kind 'cuda' must have an ordinal or a capability", rule="device", value=spec
            )
        if spec is None:
            return self.current_device()
        if isinstance(spec, str):
            if match := re.fullmatch(r"cuda(?::(\d+))?", spec, re.ASCII):
                return self._cuda_device(int(match[1] or 0))
            return HOST if spec in ("host", "cpu") else dry_device(spec)
        if isinstance(spec, int):
            return self._cuda_device(spec)
        if hasattr(spec, "__cuda_stream__") or hasattr(spec, "cuda_stream"):  # torch before 2.11 has only the second
            return self._cuda_source().device_of_stream(spec)
        if isinstance(getattr(spec, "type", None), str):  # torch.device; a tensor's `type` is a method
            return self.device(f"{spec.type}:{spec.index or 0}" if spec.type == "cuda" else spec.type)
        memory = TensorRef.of(spec, "device").device
        if memory is None:
            return self.current_device()
        return HOST if memory == HOST_MEMORY else self._cuda_device(memory)

    def _cuda_source(self) -> Any:
        return self.backend("cuda")

    def _cuda_device(self, ordinal: int) -> Device:
        found: Device = self._cuda_source().device(ordinal)
        return found


def _named(device: Device) -> tuple[Device, str]:
    """A device and its name, by which tuning tables are found, and which does not count when devices are compared."""
    return device, device.name


def _described(op: Op, fields: Mapping[str, Any]) -> Any:
    """The descriptor with these fields; TypeError, ValueError or the error of a rule, naming the field, if none has."""
    known = {attribute.name for attribute in op.descriptor.__attrs_attrs__}  # type: ignore[attr-defined]
    for name in fields:
        if name not in known:
            raise ValueError(f"{op.descriptor.__name__} has no field {name!r}")
    try:
        descriptor = from_fields(op.descriptor, fields)
    except KeyError as error:
        names = [name for name, value in fields.items() if str(value).upper() == error.args[0]]
        raise ValueError(f"{' or '.join(names)} has no member {error}") from None
    op.check(descriptor)
    return descriptor


def _check_preference(preference: Any) -> None:
    if preference is not None and not isinstance(preference, PlanPreference):
        raise TypeError(f"preference must be a PlanPreference or None, not {type(preference).__name__}")


def _rank(kernel: Kernel, cost_us: float | None, wishes: PlanPreference) -> tuple[bool, float, str]:
    assert cost_us is not None
    preferred = wishes.prefer_backend is None or kernel.sku.backend is wishes.prefer_backend
    return not preferred, cost_us, kernel.sku.token


def _implied_rules(op: Op, kernel: Kernel) -> tuple[Rule, ...]:
    """Rules that say that the descriptor asks for what the SKU says."""
    rules = []
    fields_ = {name: getattr(kernel.sku, name) for name in _SKU_FIELDS}
    for name, value in (*fields_.items(), ("kind", kernel.sku.kind)):
        if any(attribute.name == name for attribute in op.descriptor.__attrs_attrs__):  # type: ignore[attr-defined]
            rules.append(one_of(name, (value,), why=OTHER_SKU))
    return tuple(rules)


def _kind_of(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"an instance of {type(value).__name__}"


def _check_types(op: object) -> None:
    """RegistrationError unless `op` is an `Op` whose parts are what the other checks take them for."""
    if not isinstance(op, Op):
        raise RegistrationError("register", "an op must be an `Op`", rule="op", got=_kind_of(op))
    expected: list[tuple[str, Iterable[object], type]] = [
        ("name", (op.name,), str), ("descriptor", (op.descriptor,), type), ("rules", op.rules, Rule),
        ("contract", op.contract, Rule), ("kernels", op.kernels, Kernel),
    ]  # fmt: skip
    if isinstance(op.descriptor, type):
        expected.append(("examples", op.examples, op.descriptor))
    for part in ("rules", "contract", "kernels", "examples", "kinds", "sizes"):
        if not isinstance(value := getattr(op, part), Collection):
            raise RegistrationError(
                f"op {op.name!r}", f"{part} must be a collection, e.g. a tuple", rule=part, got=_kind_of(value)
            )
    for part, values, kind in expected:
        for value in values:
            if not isinstance(value, kind):
                raise RegistrationError(
                    f"op {op.name!r}", f"{part} must be of {kind.__name__}", rule=part, got=_kind_of(value)
                )
    if not hasattr(op.args, "__baracuda_specs__"):
        raise RegistrationError(
            f"op {op.name!r}", "args must be an `@arguments` class", rule="args", got=_kind_of(op.args)
        )


def _op_problems(op: Op) -> Iterator[str]:
    if not op.name.isidentifier() or op.name != op.name.lower():
        yield f"name: {op.name!r} must be a lower case identifier"
    for rule in (*op.rules, *op.contract):
        yield from rule.problems(op.descriptor)
    for spec in op.specs:
        yield from spec.problems(op.descriptor)
    if not any(spec.written for spec in op.specs):
        yield "arguments: an op must write at least one"
    if not op.kernels:
        yield "kernels: an op needs at least one"
    for example in op.examples:
        try:
            op.check(example)
        except BaracudaError as error:
            yield f"examples: {example} breaks the op's own rules: {error}"


def _kernel_problems(op: Op, kernel: Kernel, implied: Iterable[Rule]) -> Iterator[str]:
    sku = kernel.sku
    if sku.category is not op.category or sku.kind not in op.kinds:
        yield f"op: the SKU says {sku.category.name}.{sku.kind.name}, the op does not"
    for rule in kernel.rules:
        yield from rule.problems(op.descriptor)
    names = {spec.name for spec in op.specs}
    for name in kernel.alignment:
        if name not in names:
            yield f"alignment: {name!r} is no argument of the op"
    if (sku.arch is ArchSku.HOST) != isinstance(kernel.code, HostCode):
        yield "arch: host code, and only host code, has the host's architecture"
    if isinstance(kernel.code, HostCode):
        yield from _host_problems(kernel.code, names)
    served = [e for e in op.examples if all(rule.holds(e) for rule in (*implied, *kernel.rules))]
    if not served:
        yield "examples: none of the op's examples is served by this kernel"
    device = dry_device(sku.arch.name.lower()) if sku.arch is not ArchSku.HOST else HOST
    for example in served:
        if not op.is_empty(example):
            written = {spec.name for spec in op.specs if spec.written and spec.needed_on(example)}
            if isinstance(kernel.code, PtxCode):
                yield from _launch_problems(kernel.code.launches(example, device), names, written)
            elif isinstance(kernel.code, SequenceCode):
                yield from _sequence_problems(kernel.code, example, device, names, written)


def _host_problems(code: HostCode, names: set[str]) -> Iterator[str]:
    parameters = list(inspect.signature(code.function).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    taken = {parameter.name for parameter in parameters}
    for name in sorted(taken ^ names):
        word = "is no argument of the op" if name in taken else "is not taken by the function"
        yield f"arguments: {name!r} {word}"


def _sequence_problems(
    code: SequenceCode, descriptor: Any, device: Device, names: set[str], written: set[str]
) -> Iterator[str]:
    scratch = {one.name for one in code.scratch(descriptor)}
    if both := sorted(scratch & names):
        yield f"arguments: {both[0]!r} is an argument of the op and a scratch tensor"
    given: set[str] = set()
    for step in code.steps:
        for name in sorted(set(step.operands.values()) - names - scratch):
            yield f"arguments: a step is given {name!r}, which is no argument of the op and no scratch tensor"
        if isinstance(step.code, PtxCode):
            launches = step.code.launches(step.descriptor(descriptor), device)
            yield from _launch_problems(launches, set(step.operands), set())
        given |= set(step.operands.values())
    for name in sorted(written - given):
        yield f"arguments: no step is given the output {name!r}"


def _arguments_of(parameter: Parameter) -> Iterator[Pointer | Stride | TensorMap]:
    """What of a parameter is about an argument."""
    if isinstance(parameter, tuple):
        yield from (part for part in parameter if isinstance(part, Stride))
    elif isinstance(parameter, Pointer | Stride | TensorMap):
        yield parameter
        if isinstance(parameter, TensorMap):
            yield from (stride for stride in parameter.strides if isinstance(stride, Stride))


def _launch_problems(launches: tuple[Launch, ...], names: set[str], written: set[str]) -> Iterator[str]:
    pointed: set[str] = set()
    for launch in launches:
        for parameter in launch.parameters:
            for part in _arguments_of(parameter):
                if part.argument not in names | {WORKSPACE}:
                    yield f"arguments: {launch.entry} takes {part.argument!r}, which is no argument of the op"
                if isinstance(part, Pointer | TensorMap):
                    pointed.add(part.argument)
    for name in sorted(written - pointed):
        yield f"arguments: no launch is given the output {name!r}"


