"""Where a plan runs: the host, a CUDA device of this machine, or an architecture by name for a dry run."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from attrs import evolve, field, frozen

from baracuda_py.errors import Unsupported
from baracuda_py.vocab.enums import ArchSku

__all__ = ["HOST", "Device", "dry_device"]

# Compute capability -> (multiprocessors, memory GB/s, dense f16 tensor TFLOP/s) of its largest common part, by the
# vendor's datasheets. Dry runs take their launches from the first; estimates, which only rank kernels, from the others.
_PARTS: dict[tuple[int, int], tuple[int, int, int]] = {
    (8, 0): (108, 2039, 312),
    (8, 6): (84, 768, 150),
    (8, 7): (16, 205, 40),
    (8, 9): (142, 960, 330),
    (9, 0): (132, 4800, 990),
    (10, 0): (148, 8000, 2250),
    (10, 3): (160, 8000, 2500),
    (12, 0): (188, 1792, 500),
    (12, 1): (48, 273, 125),
}

_SERVED_BY: dict[ArchSku, Callable[[tuple[int, int]], bool]] = {
    ArchSku.SM80: lambda capability: capability >= (8, 0),  # PTX is forward compatible
    ArchSku.SM89: lambda capability: capability >= (8, 9),
    ArchSku.SM90A: lambda capability: capability == (9, 0),  # an "a" target loads on its own architecture only
    ArchSku.SM100A: lambda capability: capability == (10, 0),
    ArchSku.SM120A: lambda capability: capability == (12, 0),
}


@frozen(cache_hash=True)
class Device:
    """A place to run.

    Attributes:
        kind: `"host"` or `"cuda"`.
        ordinal: the driver's device number; None on the host and in a dry run.
        capability: CUDA compute capability, e.g. (9, 0); None on the host.
        sm_count: multiprocessors; 0 on the host.
        name: for messages.
    """

    kind: Literal["host", "cuda"]
    ordinal: int | None = None
    capability: tuple[int, int] | None = None
    sm_count: int = 0
    name: str = field(default="", eq=False)

    @property
    def bytes_per_us(self) -> float:
        """Rough memory rate, for estimates."""
        return 20e3 if self.capability is None else 1e3 * _part(self.capability)[1]

    @property
    def flop_per_us(self) -> float:
        """Rough dense f16 rate, for estimates."""
        return 50e3 if self.capability is None else 1e6 * _part(self.capability)[2]

    @property
    def dry(self) -> bool:
        """True when plans for it can be looked at but not run."""
        return self.kind == "cuda" and self.ordinal is None

    def with_common_part(self) -> Device:
        """The same with as many multiprocessors as the largest common part of its capability has."""
        assert self.capability is not None
        return evolve(self, sm_count=_part(self.capability)[0])

    def loads(self, arch: ArchSku) -> bool:
        """Whether code compiled for `arch` runs here."""
        if self.kind == "host":
            return arch is ArchSku.HOST
        assert self.capability is not None
        served = _SERVED_BY.get(arch)
        return served is not None and served(self.capability)

    def __str__(self) -> str:
        if self.kind == "host":
            return "the host"
        assert self.capability is not None
        arch = "sm_{}{}".format(*self.capability)
        return f"{arch} (dry run)" if self.dry else f"cuda:{self.ordinal} ({self.name}, {arch})"


def _part(capability: tuple[int, int]) -> tuple[int, int, int]:
    older = [known for known in _PARTS if known <= capability]
    return _PARTS[max(older, default=(8, 0))]


HOST = Device("host", name="host")


def dry_device(arch: str) -> Device:
    """The device that `"sm_80"`, `"sm_90a"` ... names, for selection without hardware; Unsupported if unknown."""
    match = re.fullmatch(r"sm_?(\d+)(\d)[af]?", arch)
    capability = (int(match[1]), int(match[2])) if match else None
    if capability not in _PARTS:
        known = ", ".join("sm_{}{}".format(*known) for known in _PARTS)
        raise Unsupported(
            "device", f"an architecture must be one of {known}", rule="device", value=arch,
            fix="Pass None, 'host', 'cuda', 'cuda:1', an ordinal, a stream, an array, or one of these names",
        )  # fmt: skip
    return Device("cuda", None, capability, name=arch).with_common_part()
