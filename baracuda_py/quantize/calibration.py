"""Activations of a whole model in one safetensors file: for each linear, by its name, statistics of its inputs.

    <linear>.mean_magnitude    (ic,)              the mean of |x| over the tokens
    <linear>.second_moment     (ic,) or (ic, ic)  the mean of x^2, or of x x^T
    <linear>.inputs            (tokens, ic)       instead of these two: the inputs themselves

Elements are F16, BF16 or F32. Linears that read the same input need it once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from baracuda_py.checkpoints.folder import read_tensor
from baracuda_py.checkpoints.headers import TensorHeader, read_header
from baracuda_py.errors import CheckpointError, InvalidProblem, Unsupported, UnsupportedCheckpoint
from baracuda_py.quantize.activations import ActivationStatistics
from baracuda_py.quantize.weights import check_floats

__all__ = ["Calibration", "located", "save_activations"]

_MEANS = ("mean_magnitude", "second_moment")
_INPUTS = "inputs"
_FLOATS = ("F16", "BF16", "F32")
# How far apart mean magnitudes may be that are said to be of the same input, of the largest: they may come from
# batches that were summed in another order, or rounded to F16.
_SAME = 1e-2


def save_activations(path: str | os.PathLike[str], activations: Mapping[str, ActivationStatistics | Any]) -> None:
    """Write a file that `Calibration.open` reads.

    Args:
        path: the file; replaced if it is there.
        activations: by a linear's name, statistics, or inputs (tokens, ic) in f16, bf16 or f32.
    """
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[Any]] = {}
    for name, found in activations.items():
        if isinstance(found, ActivationStatistics):
            tensors |= {f"{name}.{part}": np.ascontiguousarray(getattr(found, part)) for part in _MEANS}
        else:
            check_floats(found, name, "(tokens, ic)", rank=2)
            tensors[f"{name}.{_INPUTS}"] = np.ascontiguousarray(found)
    save_file(tensors, path)


@frozen(eq=False)
class Calibration:
    """The activations of a file; none is read before it is needed.

    Attributes:
        file: it.
        parts: the tensors of each linear, by the last part of their names.
    """

    file: Path
    parts: Mapping[str, Mapping[str, TensorHeader]] = field(repr=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read the header.

        Raises:
            CheckpointError: no such file, or one that is damaged; a tensor that is no activation, or of another shape
                or element than it must be.
        """
        file = Path(path)
        parts: dict[str, dict[str, TensorHeader]] = {}
        for name, header in read_header(file).tensors.items():
            linear, _, part = name.rpartition(".")
            if part not in (*_MEANS, _INPUTS):
                raise CheckpointError(
                    file, f"its name must end in .{', .'.join(_MEANS)} or .{_INPUTS}", tensor=name, rule="activations"
                )
            parts.setdefault(linear, {})[part] = header
        for linear, found in parts.items():
            _check(file, linear, found)
        return cls(file, parts)

    def channels(self, linear: str) -> int:
        """Input channels that the file has of `linear`."""
        return next(iter(self.parts[linear].values())).shape[-1]

    def search_nbytes(self, linear: str, group: int) -> int:
        """What a search over them holds: the tensors as they lie, and in float32 tokens or second moments, and for
        groups of `group` channels the moments within each."""
        found, ic = self.parts[linear], self.channels(linear)
        tensors = sum(header.nbytes for header in found.values())
        if _INPUTS in found:
            tokens = found[_INPUTS].shape[0]
            return tensors + 4 * ic * (tokens if tokens < ic else 2 * ic) + 4 * ic * group
        if len(found["second_moment"].shape) == 1:
            return tensors + 4 * 4 * ic
        return tensors + 8 * ic * ic + 4 * ic * group

    def read(self, linear: str) -> ActivationStatistics | NDArray[Any]:
        """What `quantize_awq` takes.

        Raises:
            CheckpointError: values that are not finite, or negative where they cannot be.
        """
        found = self.parts[linear]
        if _INPUTS in found:
            samples = read_tensor(found[_INPUTS])
            with located(self.file, found[_INPUTS].name):
                check_floats(samples, _INPUTS, "(tokens, ic)", rank=2)
            return samples
        with located(self.file, linear):
            magnitude, moment = (read_tensor(found[part]) for part in _MEANS)
            return ActivationStatistics(magnitude, moment)

    def shared(self, linears: Sequence[str]) -> str:
        """The first of linears with one input that the file has; `""` if it has none.

        Raises:
            CheckpointError: it has several, which differ.
        """
        known = [linear for linear in linears if linear in self.parts]
        if not known:
            return ""
        first = self._magnitudes(known[0])
        for other in known[1:]:
            magnitudes = self._magnitudes(other)
            if magnitudes.shape != first.shape or not np.allclose(magnitudes, first, rtol=0, atol=_SAME * first.max()):
                raise CheckpointError(
                    self.file, f"its activations must be those of {known[0]}, which reads the same input",
                    tensor=other, rule="activations", fix="Leave one of them away",
                )  # fmt: skip
        return known[0]

    def _magnitudes(self, linear: str) -> NDArray[np.float32]:
        found = self.read(linear)
        return found.mean_magnitude if isinstance(found, ActivationStatistics) else _mean_magnitude(found)


def _mean_magnitude(samples: NDArray[Any]) -> NDArray[np.float32]:
    return ActivationStatistics.of(samples).mean_magnitude


def _check(file: Path, linear: str, found: Mapping[str, TensorHeader]) -> None:
    """Either both means or the inputs, of one width."""
    if set(found) not in ({*_MEANS}, {_INPUTS}):
        raise CheckpointError(
            file, f"a linear must have {' and '.join(_MEANS)}, or {_INPUTS} alone", tensor=linear, rule="activations",
            got=", ".join(sorted(found)),
        )  # fmt: skip
    for part, header in found.items():
        ranks = {"mean_magnitude": (1,), "second_moment": (1, 2), _INPUTS: (2,)}[part]
        if header.dtype not in _FLOATS or len(header.shape) not in ranks or 0 in header.shape:
            shapes = {"mean_magnitude": "(ic,)", "second_moment": "(ic,) or (ic, ic)", _INPUTS: "(tokens, ic)"}[part]
            raise CheckpointError(
                file, f"it must be {', '.join(_FLOATS[:-1])} or {_FLOATS[-1]} {shapes}, not empty", tensor=header.name,
                rule="shape", got=str(header),
            )  # fmt: skip
    widths = {size for part, header in found.items() for size in header.shape[part == _INPUTS :]}
    if len(widths) > 1:
        raise CheckpointError(
            file, "its tensors must have the same input channels", tensor=linear, rule="shape",
            got=", ".join(f"{part} {header}" for part, header in found.items()),
        )  # fmt: skip


@contextmanager
def located(file: object, tensor: str) -> Iterator[None]:
    """Errors about arrays become errors about a tensor of a file."""
    try:
        yield
    except (CheckpointError, UnsupportedCheckpoint):
        raise
    except (InvalidProblem, Unsupported) as error:
        kind = CheckpointError if isinstance(error, InvalidProblem) else UnsupportedCheckpoint
        raise kind(file, str(error).removesuffix("."), tensor=tensor, rule=error.rule) from None
