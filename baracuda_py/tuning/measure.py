"""Measures the kernels of an op on a GPU, as a tuning table has them.

Every kernel's calls walk over as many copies of the constant arguments (weights) as outsize the L2 cache, so that they
come from memory as in a model; kernels are timed as `timing` says, and the median counts.
"""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median
from typing import Any

from attrs import field, frozen

from baracuda_py.errors import Unsupported
from baracuda_py.plan import Plan
from baracuda_py.registry import Registry
from baracuda_py.tuning.arguments import ROTATED_NBYTES, RotatedArguments, bound_calls
from baracuda_py.tuning.timing import in_turns, timer_on
from baracuda_py.vocab.descriptors import to_fields
from baracuda_py.vocab.device import Device
from baracuda_py.vocab.tuning import Problem, kernel_label

__all__ = ["Tuner"]


@frozen(eq=False)
class Tuner:
    """Measures on one GPU.

    Attributes:
        registry: whose kernels.
        device: a GPU of this machine.
        samples: replays of each kernel's graph.
        rotated_nbytes: constant arguments that a graph walks over.
    """

    registry: Registry[Plan]
    device: Device
    samples: int = 20
    rotated_nbytes: int = ROTATED_NBYTES
    _arguments: RotatedArguments = field(init=False, repr=False)

    @_arguments.default
    def _made(self) -> RotatedArguments:
        return RotatedArguments(self.device, self.rotated_nbytes)

    def __attrs_post_init__(self) -> None:
        if self.device.kind != "cuda" or self.device.dry:
            raise Unsupported("tune", "the device must be a GPU of this machine", rule="device", got=str(self.device))

    def measure(self, descriptor: Any) -> Problem:
        """The median time in microseconds of every kernel that serves the problem on the GPU.

        Raises:
            Unsupported, InvalidProblem: the op does not allow the descriptor.
            NoKernel: no kernel serves it.
        """
        explanation = self.registry.explain(descriptor, self.device)
        if explanation.error is not None:
            raise explanation.error
        kernels = [one.kernel for one in explanation.candidates if one.refusal is None]
        with timer_on(self.registry, self.device) as timer, ExitStack() as stack:
            arguments = self._arguments.of(explanation.op, descriptor)
            replays = {}
            for kernel in kernels:
                plan = self.registry.plan(kernel.sku, descriptor, self.device)
                calls = bound_calls(plan, arguments, timer.stream)
                replays[kernel_label(kernel.sku)] = stack.enter_context(timer.replay(calls))
            times = in_turns(replays, self.samples)
        return Problem(to_fields(descriptor), {label: round(median(taken), 3) for label, taken in times.items()})
