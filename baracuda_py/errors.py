"""Every error the package raises, all below `BaracudaError`.

A message says where, what must hold, what came, why, and what to do:
`awq_gemm: oc % 64 == 0 must hold (got oc = 48): a tile is 64 columns wide. Pad oc, or let bp.select choose.`
The same facts are attributes, so that a caller never has to parse the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import frozen

__all__ = [
    "BaracudaError",
    "BufferTooSmall",
    "CheckpointError",
    "DriverError",
    "InvalidProblem",
    "KernelInternal",
    "MisalignedOperand",
    "NoKernel",
    "RankLost",
    "Refused",
    "RegistrationError",
    "Unsupported",
    "UnsupportedCheckpoint",
    "WorkspaceTooSmall",
]


OTHER_SKU = "a SKU serves one of each"
"""Why a kernel refuses a problem for the sake of its SKU alone."""


class BaracudaError(Exception):
    """Base of the family.

    Attributes:
        where: the op, argument or call that refused.
        rule: the name of the one rule that does not hold, e.g. `"oc % 64"`.
        must: what must hold, in words.
        value: what came instead, or None when there is no single value.
        why: the reason for the rule; may be empty.
        fix: what the caller can do; may be empty.
    """

    def __init__(
        self,
        where: str,
        must: str,
        *,
        rule: str = "",
        value: Any = None,
        got: str = "",
        why: str = "",
        fix: str = "",
    ) -> None:
        self.where = where
        self.rule = rule
        self.must = must
        self.value = value
        self.why = why
        self.fix = fix
        self._got_text = got or ("" if value is None else repr(value))
        super().__init__(self._compose())

    def _compose(self) -> str:
        text = f"{self.where}: {self.must}" if self.where else self.must
        if self._got_text:
            text += f" (got {self._got_text})"
        if self.why:
            text += f": {self.why.rstrip('.')}"
        text = text.rstrip(".") + "."
        if self.fix:
            text += f" {self.fix.rstrip('.')}."
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(cls: type[BaracudaError], args: tuple[Any, ...], state: dict[str, Any]) -> BaracudaError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class Unsupported(BaracudaError):
    """The problem is well-formed, and nothing here (or not this kernel) serves it."""


class InvalidProblem(BaracudaError):
    """The descriptor or an argument contradicts the op's own rules."""


class _OfCheckpoint(BaracudaError):
    def __init__(self, file: object, must: str, *, tensor: str = "", **facts: Any) -> None:
        self.file = str(file)
        self.tensor = tensor
        super().__init__(f"{self.file}: {tensor}" if tensor else self.file, must, **facts)


class CheckpointError(_OfCheckpoint, InvalidProblem):
    """A checkpoint that is damaged or contradicts itself.

    Attributes:
        file: the file or folder, as text.
        tensor: the tensor or layer in it; `""` when it is not about one.
    """


class UnsupportedCheckpoint(_OfCheckpoint, Unsupported):
    """A checkpoint in a format that is not read, or a conversion that would change weights.

    Attributes:
        file: the file or folder, as text.
        tensor: the tensor or layer in it; `""` when it is not about one.
    """


class MisalignedOperand(BaracudaError):
    """A pointer or a row stride is not a multiple of the bytes a kernel loads at once."""


class _TooSmall(BaracudaError):
    def __init__(self, where: str, needed: int, got: int, *, what: str, fix: str = "") -> None:
        self.needed = needed
        self.got = got
        super().__init__(
            where, f"{what} must hold at least {needed} bytes", rule=what, value=got, got=f"{got} bytes", fix=fix
        )


class WorkspaceTooSmall(_TooSmall):
    """The borrowed workspace has `got` bytes; the plan needs `needed`."""

    def __init__(self, where: str, needed: int, got: int) -> None:
        super().__init__(
            where, needed, got, what="workspace", fix="Borrow a buffer of plan.workspace_size bytes"
        )


class BufferTooSmall(_TooSmall):
    """A raw buffer has `got` bytes; its shape and strides reach `needed`."""

    def __init__(self, where: str, needed: int, got: int) -> None:
        super().__init__(where, needed, got, what="buffer")


class KernelInternal(BaracudaError):
    """A kernel or library reported failure; `status` is its own code."""

    def __init__(self, where: str, status: int, *, must: str = "", fix: str = "") -> None:
        self.status = status
        super().__init__(where, must or "the kernel must report success", value=status, got=f"status {status}", fix=fix)


class DriverError(BaracudaError):
    """A CUDA driver call failed.

    Attributes:
        result: the CUresult number; None when the driver itself is missing.
        name: its symbolic name, e.g. `"CUDA_ERROR_INVALID_PTX"`.
        call: the driver function, e.g. `"cuLaunchKernel"`.
        log: the JIT compiler's error log; empty when there is none.
    """

    def __init__(
        self,
        result: int | None,
        call: str,
        *,
        name: str = "",
        must: str = "",
        why: str = "",
        fix: str = "",
        log: str = "",
    ) -> None:
        self.result = result
        self.call = call
        self.name = name
        self.log = log
        got = f"{name} ({result})" if result is not None else name
        text_why = why if not log else f"{why + '; ' if why else ''}JIT log: {log.strip()}"
        super().__init__(call, must or "the driver call must succeed", value=result, got=got, why=text_why, fix=fix)


class RankLost(BaracudaError, RuntimeError):
    """Ranks that work together have lost one, or failed; what they were computing is not to be used."""


class RegistrationError(BaracudaError):
    """An op, kernel, backend or plug-in cannot be registered; `rule` names what is wrong with it."""


@frozen
class Refused:
    """One kernel that does not serve a problem: its `KernelSku`, and the error it would raise if pinned."""

    sku: Any
    refusal: BaracudaError


class NoKernel(Unsupported):
    """No registered kernel serves the problem on the device; `refusals` says why, kernel by kernel.

    The text says each reason once, with the kernels that it holds for; those that are for another element, epilogue or
    the like, or for another device, are counted.

    Attributes:
        refusals: a tuple of `Refused(sku, refusal)`, one for each kernel of the op.
    """

    def __init__(self, where: str, device: str, refusals: Iterable[Refused]) -> None:
        self.refusals = tuple(refusals)
        self.device = device
        super().__init__(where, f"some registered kernel must serve this problem on {device}", rule="no kernel")
        reasons: dict[str, list[str]] = {}
        elsewhere: list[str] = []
        others: list[str] = []
        for sku, refusal in ((one.sku, one.refusal) for one in self.refusals):
            if refusal.why == OTHER_SKU:
                others.append(refusal.rule.partition(" in ")[0])
            elif refusal.rule == "arch":
                elsewhere.append(sku.arch.name.lower())
            else:
                reason = str(refusal).removeprefix(f"{refusal.where}: ")
                reasons.setdefault(reason, []).append(sku.variant or sku.backend.name.lower())
        lines = [str(self.args[0])]
        for reason, names in reasons.items():
            lines.append(f"  {', '.join(dict.fromkeys(names))}: {reason}")
        if elsewhere:
            lines.append(f"  {len(elsewhere)} more are for devices of {' or '.join(dict.fromkeys(elsewhere))}.")
        if others:
            lines.append(f"  {len(others)} more are for another {' or '.join(dict.fromkeys(others))}.")
        self.args = ("\n".join(lines),)
