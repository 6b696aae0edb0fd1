"""What a call with torch tensors needs besides its plan: inputs as kernels can read them, a workspace, copies."""

from __future__ import annotations

from typing import Any

import torch

from baracuda_py.plan import Plan
from baracuda_py.vocab.preference import Workspace

__all__ = ["as_tensor", "readable", "workspace_for"]


def readable(tensor: Any, strides: str, alignment: int = 1) -> Any:
    """`tensor`, or a copy where a kernel that asks for these strides and bytes of alignment cannot read it as it lies.

    Args:
        tensor: of torch.
        strides: as in a `TensorSpec`.
        alignment: as in a `Kernel`.
    """
    bits = tensor.data_ptr()
    if tensor.is_neg():  # the sign is in the tensor, not in its memory
        return tensor.clone(memory_format=torch.contiguous_format)
    if not tensor.is_contiguous() and strides != "any":
        if strides != "rows" or tensor.dim() != 2 or tensor.stride(1) != 1 or tensor.stride(0) < tensor.shape[1]:
            return tensor.clone(memory_format=torch.contiguous_format)
        bits |= tensor.stride(0) * tensor.element_size()
    return tensor.clone(memory_format=torch.contiguous_format) if bits % alignment else tensor


def workspace_for(plan: Plan, like: Any) -> Workspace:
    """`plan.workspace_size` bytes on the device of the tensor `like`, for work on its current stream.

    They are torch's for the time of the call: its allocator is ordered by streams, and keeps what a CUDA graph was
    captured with in the pool of that graph, which a buffer that calls share would not be.
    """
    if not plan.workspace_size:
        return Workspace.NONE
    room = torch.empty(plan.workspace_size, dtype=torch.uint8, device=like.device)
    return Workspace(room.data_ptr(), plan.workspace_size, room.device.index if room.is_cuda else -1, room)


def as_tensor(array: Any) -> Any:
    """A torch tensor with a copy of a NumPy array, bfloat16 too."""
    import numpy as np

    array = np.array(array)  # what a file is mapped to cannot be written, which torch warns of
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.view(np.int32) if array.dtype == np.uint32 else array)
