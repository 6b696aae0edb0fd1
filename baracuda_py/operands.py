"""Checks the tensors of one call against an op's argument specs, and turns them into views.

The rules of an argument, in the order they are checked and by the name an error carries: presence, element, shape,
address, innermost stride, row stride, alignment, device; then, over all of them, overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

from baracuda_py.alike import Alike, Argument
from baracuda_py.errors import BaracudaError, InvalidProblem, MisalignedOperand
from baracuda_py.vocab.descriptors import TensorSpec
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.elements import bits_of
from baracuda_py.vocab.enums import ElementKind
from baracuda_py.vocab.preference import Workspace
from baracuda_py.vocab.tensors import HOST_MEMORY, TensorMut, TensorRef, row_major_strides

__all__ = ["OperandChecker"]


class _Slot:
    """One argument: what it must be."""

    __slots__ = ("alignment", "elements", "kind", "name", "needed", "shape", "spec", "strides", "written")

    def __init__(self, spec: TensorSpec, descriptor: Any, alignment: int) -> None:
        self.spec = spec
        self.name = spec.name
        self.written = spec.written
        self.kind = TensorMut if spec.written else TensorRef
        self.needed = spec.needed_on(descriptor)
        self.elements = spec.elements_on(descriptor) if self.needed else ()
        self.shape = spec.shape_on(descriptor) if self.needed else ()
        self.strides = spec.strides
        self.alignment = max(alignment, bits_of(self.elements[0]) // 8) if self.needed else 1


class OperandChecker:
    """Checks calls of one plan.

    Args:
        where: the op's name, for messages.
        specs: the op's argument specs.
        descriptor: the problem.
        alignment: bytes, by argument name, beyond the element's own size.
        device: where the plan runs.
        workspace_size: bytes of the workspace that the plan uses.

    Attributes:
        names: the arguments, in order.
        alike: the last call of torch tensors that passed, for the next one to be compared with.
    """

    def __init__(
        self,
        where: str,
        specs: Sequence[TensorSpec],
        descriptor: Any,
        alignment: Mapping[str, int],
        device: Device,
        workspace_size: int,
    ) -> None:
        self._where = where
        self._slots = [_Slot(spec, descriptor, alignment.get(spec.name, 1)) for spec in specs]
        self._device = HOST_MEMORY if device.kind == "host" else device.ordinal
        self._device_text = str(device)
        self._workspace_size = workspace_size
        self._written = [index for index, slot in enumerate(self._slots) if slot.written]
        self._arguments = attrgetter(*(slot.name for slot in self._slots), "__class__")  # a tuple, even of one argument
        self.names = tuple(slot.name for slot in self._slots)
        self.alike: Alike | None = None

    def views(self, args: Any, workspace: Workspace, stream: int) -> list[TensorRef | None]:
        """Views of `args` in spec order, None for absent ones; raises the error of the first broken rule."""
        alike = self.alike
        if alike is not None:
            addresses = alike.addresses(args, workspace.pointer, workspace.pointer + self._workspace_size)
            if addresses is not None:
                return [
                    None if view is None else view.moved(address, source)
                    for view, address, source in zip(alike.views, addresses, self._arguments(args), strict=False)
                ]
        sources = self._arguments(args)[:-1]
        views = self._checked(sources, workspace, stream)
        if all(view is None or _of_torch(source, view) for source, view in zip(sources, views, strict=True)):
            forms = [
                Argument(
                    slot.name, True, slot.written, slot.alignment, view.contiguous,
                    view.element in (*_PARTS_OF_COMPLEX, *_COMPLEX), view.element in _COMPLEX,
                )
                if view is not None
                else Argument(slot.name, False)
                for slot, view in zip(self._slots, views, strict=True)
            ]
            self.alike = Alike(forms, sources, views)
        return views

    def _checked(self, sources: tuple[Any, ...], workspace: Workspace, stream: int) -> list[TensorRef | None]:
        views: list[TensorRef | None] = []
        extents: list[tuple[int, int]] = []
        start = workspace.pointer
        end = start + min(workspace.nbytes, self._workspace_size)
        lent = None  # an argument that lies in the workspace
        for slot, source in zip(self._slots, sources, strict=True):
            view = self._view(slot, source, stream)
            views.append(view)
            low, high = (0, 0) if view is None else view.extent
            extents.append((low, high))
            if low < end and start < high and low < high and start < end:
                lent = slot
        for index in self._written:
            low, high = extents[index]
            crossing = 0  # counts itself
            for other_low, other_high in extents:
                if low < other_high and other_low < high:
                    crossing += 1
            if crossing > 1:
                self._check_overlap(index, views, extents)
        if lent is not None:
            raise self._error(lent, "overlap", "must not share memory with the workspace")
        return views

    def _view(self, slot: _Slot, source: Any, stream: int) -> TensorRef | None:
        if not slot.needed:
            if source is not None:
                raise self._error(slot, "presence", "must be None for this descriptor", got=type(source).__name__)
            return None
        if source is None:
            raise self._error(slot, "presence", "must be given for this descriptor", got="None")
        view = slot.kind.of(source, f"{self._where}: {slot.name}", stream)
        self._check(slot, view)
        return view

    def _check(self, slot: _Slot, view: TensorRef) -> None:
        if view.element not in slot.elements:
            names = " or ".join(element.name.lower() for element in slot.elements)
            raise self._error(slot, "element", f"must be {names}", value=view.element, got=view.element.name.lower())
        if view.shape != slot.shape:
            raise self._error(slot, "shape", f"must have shape {slot.shape}", value=view.shape)
        nbytes = bits_of(view.element) // 8
        if view.size == 0:
            return
        if not view.pointer:
            raise self._error(slot, "address", "must not be a null pointer", got="address 0")
        if slot.strides != "any" and view.shape and view.shape[-1] != 1 and view.strides[-1] != 1:
            raise self._error(slot, "innermost stride", "must have innermost stride 1", value=view.strides[-1])
        if slot.strides == "contiguous" and not view.contiguous:
            packed = row_major_strides(view.shape)
            raise self._error(slot, "row stride", f"must be contiguous, strides {packed}", value=view.strides)
        if slot.strides == "rows":
            self._check_rows(slot, view)
        if slot.written and not _distinct(view):
            must = "must show by its strides that no element is written twice"
            raise self._error(slot, "row stride", must, value=view.strides)
        strided = [s for e, s in zip(view.shape[:-1], view.strides[:-1], strict=True) if e > 1]
        # The pitch of a contiguous tensor follows from the descriptor: what it may be is a rule of the kernel.
        for value in (view.pointer, *(stride * nbytes for stride in strided if slot.strides == "rows")):
            if value % slot.alignment:
                what = "address" if value is view.pointer else "row stride in bytes"
                raise MisalignedOperand(
                    f"{self._where}: {slot.name}",
                    f"its {what} must be a multiple of {slot.alignment} bytes",
                    rule=f"{slot.name} alignment",
                    value=value,
                    got=hex(value) if value is view.pointer else str(value),
                    why="the kernel loads that many bytes at once",
                    fix="Copy it to a fresh allocation"
                    + (", or let select take another kernel" if slot.alignment > nbytes else ""),
                )
        # Memory of an unknown device is taken for the GPU's; on the host, reading what may not be there would crash.
        if self._device is not None and view.device not in (None if self._device >= 0 else HOST_MEMORY, self._device):
            where = {HOST_MEMORY: "host memory", None: "an unknown device"}.get(view.device, f"cuda:{view.device}")
            raise self._error(slot, "device", f"must lie where the plan runs, on {self._device_text}", got=where)

    def _check_rows(self, slot: _Slot, view: TensorRef) -> None:
        width = view.shape[-1]  # elements that one index of an axis spans
        axes = [axis for axis in range(len(view.shape) - 1) if view.shape[axis] > 1]
        for axis in sorted(axes, key=lambda axis: view.strides[axis]):
            if view.strides[axis] < width:
                raise self._error(
                    slot, "row stride", f"must have a stride of at least {width} along axis {axis}",
                    value=view.strides[axis],
                    why="rows must not overlap" if view.strides[axis] >= 0 else "rows must go forwards",
                )  # fmt: skip
            width += view.strides[axis] * (view.shape[axis] - 1)

    def _check_overlap(
        self, index: int, views: list[TensorRef | None], extents: list[tuple[int, int]]
    ) -> None:
        low, high = extents[index]
        for other, (other_low, other_high) in enumerate(extents):
            if other != index and max(low, other_low) < min(high, other_high):
                view, second = views[index], views[other]
                assert view is not None
                assert second is not None
                if not _apart(view, second):
                    slot = self._slots[index]
                    raise self._error(slot, "overlap", f"must not share memory with {self._slots[other].name}")

    def _error(
        self, slot: _Slot, rule: str, must: str, *, value: Any = None, got: str = "", why: str = ""
    ) -> BaracudaError:
        return InvalidProblem(
            f"{self._where}: {slot.name}", must, rule=f"{slot.name} {rule}", value=value, got=got, why=why,
            fix=slot.spec.doc and f"{slot.name}: {slot.spec.doc}",
        )  # fmt: skip


# Elements of torch's complex tensors' real and imaginary parts.
_PARTS_OF_COMPLEX = (ElementKind.F16, ElementKind.F32, ElementKind.F64)
_COMPLEX = (ElementKind.COMPLEX32, ElementKind.COMPLEX64)


def _of_torch(source: Any, view: TensorRef) -> bool:
    """Whether a view is of a torch tensor that has elements."""
    return view.owner is source and hasattr(source, "data_ptr") and view.size > 0


def _distinct(view: TensorRef) -> bool:
    """Whether each index has memory of its own: from the smallest stride up, each axis steps over all before it."""
    reach = 0
    for stride, extent in sorted((abs(s), e) for e, s in zip(view.shape, view.strides, strict=True) if e > 1):
        if stride <= reach:
            return False
        reach += stride * (extent - 1)
    return True


def _apart(one: TensorRef, two: TensorRef) -> bool:
    """Whether two views whose address ranges cross share no byte, as columns of a buffer; no if it is hard to say."""
    import numpy as np

    if bits_of(one.element) % 8 or bits_of(two.element) % 8:
        return False
    try:
        most: Any = _MOST_WORK  # NumPy's own stubs know two of the values
        return not np.shares_memory(_Addresses(one).array(), _Addresses(two).array(), max_work=most)
    except np.exceptions.TooHardError:
        return False


_MOST_WORK = 10_000  # of NumPy's search for a shared byte


class _Addresses:
    """The memory of a view, of any device, for NumPy to compare: nothing reads it."""

    def __init__(self, view: TensorRef) -> None:
        nbytes = bits_of(view.element) // 8
        self.__array_interface__ = {
            "version": 3, "typestr": f"|V{nbytes}", "shape": view.shape, "data": (view.pointer, True),
            "strides": tuple(stride * nbytes for stride in view.strides),
        }  # fmt: skip

    def array(self) -> Any:
        import numpy as np

        return np.asarray(self)

