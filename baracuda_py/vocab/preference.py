"""What a caller asks of a selection, and the workspace it lends to a run."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen
from attrs.validators import ge, instance_of, optional

from baracuda_py.errors import InvalidProblem
from baracuda_py.vocab.enums import BackendKind
from baracuda_py.vocab.sku import KernelSku, PrecisionGuarantee

__all__ = ["PlanPreference", "Workspace"]


def _sku(value: KernelSku | str | None) -> KernelSku | None:
    return KernelSku.parse(value) if isinstance(value, str) else value


@frozen(cache_hash=True)
class PlanPreference:
    """Limits and wishes for `select`.

    Attributes:
        max_workspace_bytes: refuse kernels that need more; None: no limit.
        allow_sm90a: whether kernels compiled for Hopper only may be chosen.
        prefer_backend: take this backend's kernels where one serves, whatever the estimates say.
        require: a partial guarantee; kernels that promise less are refused.
        sku: take exactly this kernel (a `KernelSku` or its token), or fail with its refusal.
    """

    max_workspace_bytes: int | None = field(default=None, validator=optional([instance_of(int), ge(0)]))
    allow_sm90a: bool = True
    prefer_backend: BackendKind | None = field(default=None, validator=optional(instance_of(BackendKind)))
    require: PrecisionGuarantee | None = field(default=None, validator=optional(instance_of(PrecisionGuarantee)))
    sku: KernelSku | None = field(default=None, converter=_sku)


class Workspace:
    """Device memory lent to one run: `Workspace.NONE`, or `Workspace.borrowed(buffer)`.

    A plan reads and writes the first `plan.workspace_size` bytes and keeps no reference after the run. Two runs that
    may overlap in time must not share one.

    Attributes:
        pointer: address of the first byte; 0 for NONE.
        nbytes: size.
        device: CUDA ordinal, -1 for the host, None when not known (a raw pointer).
    """

    __slots__ = ("device", "nbytes", "owner", "pointer")

    NONE: ClassVar[Workspace]

    def __init__(self, pointer: int, nbytes: int, device: int | None = None, owner: Any = None) -> None:
        self.pointer = pointer
        self.nbytes = nbytes
        self.device = device
        self.owner = owner

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a Workspace cannot be copied or pickled: it would lend memory that nothing keeps")

    @classmethod
    def borrowed(cls, buffer: Any, nbytes: int | None = None) -> Workspace:
        """Lend `buffer`: a contiguous writable array of any element kind, or a raw address with its `nbytes`."""
        if isinstance(buffer, int):
            if nbytes is None or nbytes < 0 or buffer < 0:
                raise InvalidProblem(
                    "workspace", "a raw address needs its size in bytes", rule="nbytes", value=nbytes,
                    fix="Call Workspace.borrowed(address, nbytes)",
                )  # fmt: skip
            return cls(buffer, nbytes)
        from baracuda_py.vocab.tensors import TensorMut

        view = TensorMut.of(buffer, "workspace")
        if not view.contiguous:
            raise InvalidProblem("workspace", "the buffer must be contiguous", rule="contiguous", value=view.strides)
        return cls(view.pointer, view.span_bytes, view.device, buffer)

    def __repr__(self) -> str:
        return f"Workspace({self.nbytes} bytes at {self.pointer:#x})" if self.nbytes else "Workspace.NONE"


Workspace.NONE = Workspace(0, 0)
