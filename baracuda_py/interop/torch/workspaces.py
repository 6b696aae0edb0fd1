"""Workspaces for calls that do not bring one: one a device and stream, shared by every plan that runs there."""

from __future__ import annotations

import threading
from typing import Any

import torch

from baracuda_py.plan import Plan
from baracuda_py.vocab.preference import Workspace

__all__ = ["workspace_for"]

_lock = threading.Lock()
_current: dict[tuple[str, int], Workspace] = {}
# A CUDA graph that was captured with a buffer replays with it: one that became too small is not freed.
_outgrown: list[Workspace] = []


def workspace_for(plan: Plan, like: Any) -> Workspace:
    """At least `plan.workspace_size` bytes on the device of the tensor `like`, for its current stream."""
    if not plan.workspace_size:
        return Workspace.NONE
    stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else 0
    key = (str(like.device), stream)
    found = _current.get(key)
    if found is not None and found.nbytes >= plan.workspace_size:
        return found
    with _lock:
        found = _current.get(key)
        if found is None or found.nbytes < plan.workspace_size:
            if found is not None:
                _outgrown.append(found)
            # Twice what is asked for, so that growing prompts do not outgrow it at every step.
            room = torch.empty(2 * plan.workspace_size, dtype=torch.uint8, device=like.device)
            found = _current[key] = Workspace.borrowed(room)
    return found
