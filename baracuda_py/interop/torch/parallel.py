"""AWQ layers cut over several ranks: by output channels, or by input channels with a sum over the ranks.

    world = TorchCollective()                                          # after torch.distributed.init_process_group
    up = ColumnParallelAwqLinear.from_layer(up_layer, world)           # x -> this rank's slice of the outputs
    down = RowParallelAwqLinear.from_layer(down_layer, world)          # that slice -> the whole output, on every rank

Megatron-LM (arXiv 1909.08053) pairs them so: one sum a block. Shards are those of `checkpoints.shard`: the weights are
the whole layer's, bit for bit. What a rank adds is rounded to the activations' dtype before the sum.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

from baracuda_py.errors import InvalidProblem, Unsupported
from baracuda_py.interop.torch.linear import AwqLinear
from baracuda_py.ops.quantize.awq_gemm import AwqWeightLayout

if TYPE_CHECKING:
    from baracuda_py.checkpoints.layer import PackedLayer
    from baracuda_py.checkpoints.splitting import FusedPart

__all__ = ["Collective", "ColumnParallelAwqLinear", "RowParallelAwqLinear", "TorchCollective"]


class Collective(Protocol):
    """What the layers need of several ranks. Calls are collective: every rank makes the same ones, in order.

    `TorchCollective` and `nccl.NcclCollective` are two. When a rank is lost, a call on the others raises RuntimeError.

    Attributes:
        rank: this one's, 0 .. size - 1.
        size: ranks.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def sum_(self, tensor: Any) -> None:
        """Put the sum over the ranks into `tensor`, which is contiguous, in the order of its current stream."""

    def gather(self, tensor: Any) -> Any:
        """The contiguous tensors of all ranks, (size, *shape), in the order of the current stream."""


class TorchCollective:
    """`torch.distributed`: NCCL for CUDA tensors, Gloo for those on the CPU, launched by torchrun or otherwise.

    When a rank is lost, a call on the others raises RuntimeError with Gloo; with NCCL it does so after the `timeout` of
    `init_process_group` if TORCH_NCCL_BLOCKING_WAIT is 1, and otherwise torch ends the process.

    Args:
        group: of torch.distributed; None: the default one.

    Raises:
        Unsupported: torch without torch.distributed, or no process group.
    """

    def __init__(self, group: Any = None) -> None:
        if not torch.distributed.is_available():
            raise Unsupported(
                "TorchCollective", "torch must be built with torch.distributed", rule="torch.distributed",
                fix="Install a build of torch that has it",
            )  # fmt: skip
        if not torch.distributed.is_initialized():
            raise Unsupported(
                "TorchCollective", "there must be a process group", rule="process group",
                fix="Call torch.distributed.init_process_group first, and launch with torchrun",
            )  # fmt: skip
        self._group = group
        # torch from 2.8 on runs a collective that is not async on the current stream and waits for nothing, so that the
        # variable would have no effect.
        self._waits = os.environ.get("TORCH_NCCL_BLOCKING_WAIT") == "1"
        self.rank, self.size = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
        if self.rank < 0:
            raise InvalidProblem("group", "this process must be one of its ranks", rule="rank", value=self.rank)

    def sum_(self, tensor: Any) -> None:
        """See `Collective`."""
        self._wait(torch.distributed.all_reduce(tensor, group=self._group, async_op=self._waits))

    def gather(self, tensor: Any) -> Any:
        """See `Collective`."""
        made = tensor.new_empty((self.size, *tensor.shape))
        self._wait(
            torch.distributed.all_gather_into_tensor(
                made.view(-1), tensor.view(-1), group=self._group, async_op=self._waits
            )
        )
        return made

    def _wait(self, work: Any) -> None:
        """For what was asked to be async; of other collectives torch returns None."""
        if work is not None:
            work.wait()


class ColumnParallelAwqLinear(torch.nn.Module):
    """This rank's output channels of a layer: (..., ic) -> (..., oc / size), or with `gather` all of them.

    Attributes:
        linear: the shard.
        collective: the ranks.
        gathers: whether the output is made whole on every rank.
    """

    def __init__(self, linear: AwqLinear, collective: Collective, *, gather: bool = False) -> None:
        super().__init__()
        self.linear, self.collective, self.gathers = linear, collective, gather

    @classmethod
    def from_layer(
        cls, layer: PackedLayer, collective: Collective, *, parts: Sequence[FusedPart] = (), gather: bool = False,
        device: Any = None, layout: AwqWeightLayout = AwqWeightLayout.HF_GEMM, lossy: bool = False,
    ) -> Self:  # fmt: skip
        """This rank's part of a whole layer, of which no more is read.

        Args:
            layer: as a checkpoint has it.
            collective: the ranks.
            parts: of a fused layer (`qkv_parts`, `gate_up_parts` of `checkpoints.shard`): every rank has its share of
                each.
            gather: whether `forward` makes the output whole.
            device, layout, lossy: as for `AwqLinear.from_layer`.

        Raises:
            UnsupportedCheckpoint: the layer cannot be cut so.
            InvalidProblem: `gather` of a fused layer, whose channels would come in another order.
        """
        from baracuda_py.checkpoints.shard import shard_fused

        if gather and parts:
            raise InvalidProblem(
                "gather", "a fused layer must be left in parts", rule="gather", value=len(parts),
                why="the ranks' shares of each part do not lie side by side",
            )  # fmt: skip
        part = shard_fused(layer, parts, collective.rank, collective.size)
        linear = AwqLinear.from_layer(part, device=device, layout=layout, lossy=lossy)
        return cls(linear, collective, gather=gather)

    def forward(self, x: Any) -> Any:
        """y (..., oc / size), or (..., oc), of x (..., ic), the same on every rank."""
        y = self.linear(x)
        if not self.gathers or self.collective.size == 1:
            return y
        return self.collective.gather(y).movedim(0, -2).flatten(-2)


class RowParallelAwqLinear(torch.nn.Module):
    """This rank's input channels of a layer, summed over the ranks: (..., ic / size) -> (..., oc) on every rank.

    Attributes:
        linear: the shard; rank 0's has the bias.
        collective: the ranks.
        scatters: whether the input is whole, and each rank takes its slice.
    """

    def __init__(self, linear: AwqLinear, collective: Collective, *, scatter: bool = False) -> None:
        super().__init__()
        self.linear, self.collective, self.scatters = linear, collective, scatter

    @classmethod
    def from_layer(
        cls, layer: PackedLayer, collective: Collective, *, scatter: bool = False, device: Any = None,
        layout: AwqWeightLayout = AwqWeightLayout.HF_GEMM, lossy: bool = False,
    ) -> Self:  # fmt: skip
        """This rank's part of a whole layer, of which no more is read.

        Args:
            layer: as a checkpoint has it.
            collective: the ranks.
            scatter: whether `forward` is given the whole input.
            device, layout, lossy: as for `AwqLinear.from_layer`.

        Raises:
            UnsupportedCheckpoint: the layer cannot be cut so.
        """
        from baracuda_py.checkpoints.shard import shard

        part = shard(layer, "rows", collective.rank, collective.size)
        linear = AwqLinear.from_layer(part, device=device, layout=layout, lossy=lossy)
        return cls(linear, collective, scatter=scatter)

    def forward(self, x: Any) -> Any:
        """y (..., oc), the same on every rank, of x (..., ic / size), or, with `scatter`, (..., ic)."""
        if self.scatters:
            width, ranks = self.linear.in_features, self.collective.size
            if x.shape[-1] != width * ranks:
                raise InvalidProblem(
                    "x", f"its last axis must have {width * ranks}, {width} for each of {ranks} ranks",
                    rule="in_features", value=tuple(x.shape),
                )  # fmt: skip
            x = x[..., self.collective.rank * width : (self.collective.rank + 1) * width]
        y = self.linear(x)
        if self.collective.size > 1:
            self.collective.sum_(y)
        return y
