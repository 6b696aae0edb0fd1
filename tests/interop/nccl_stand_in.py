"""A stand-in for nccl4py and torch's streams, in which ranks are threads of one process and tensors lie on the CPU.

It keeps NCCL's contract for communicators that do not block: calls return before they are done, the state is "in
progress" until every rank has made the same call, nothing else may be called meanwhile, and `abort` ends what waits.
With `posted`, a call is "success" once it is made, and it is the stream's events that wait for the other ranks.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from types import ModuleType, SimpleNamespace

import torch

SUCCESS, REMOTE, IN_PROGRESS = 0, 6, 7
SUM = 0


class NCCLError(Exception):
    pass


class UniqueId:
    def __init__(self, content=None):
        self._content = content

    @staticmethod
    def from_bytes(content):
        return UniqueId(bytes(content))

    def __bytes__(self):
        return self._content


class Work:
    """One call of all ranks together."""

    def __init__(self, size):
        self.size, self.given = size, {}
        self.done = threading.Event()

    def join(self, rank, name, source, target):
        self.given[rank] = name, source, target
        if len(self.given) < self.size:
            return
        assert len({name for name, _, _ in self.given.values()}) == 1, "ranks made different calls"
        sources = [None if source is None else source.clone() for _, (_, source, _) in sorted(self.given.items())]
        for _, _, target in self.given.values():
            if name == "allreduce":
                target.copy_(torch.stack(sources).sum(0))
            elif name == "allgather":
                target.copy_(torch.stack(sources))
        self.done.set()


class StandIn:
    """The module nccl.core and a part of torch.cuda.

    Attributes:
        posted: as above.
        calls: (rank, name, stream's handle) of every call.
        captures: whether the streams are being captured.
        errors: what `get_async_error` of a rank answers instead.
    """

    def __init__(self, monkeypatch, posted=False):
        self.posted, self.captures = posted, False
        self.calls, self.errors, self.ids = [], {}, 0
        self.aborted, self.destroyed, self.configs = [], [], []
        self.pending = {}  # stream's handle -> the last work on it
        self.works = {}
        self.lock = threading.Lock()
        self.streams = threading.local()
        stand_in = self

        class Communicator:
            def __init__(self):
                self.id, self.rank, self.made, self.last = None, None, 0, None

            def initialize(self, size, rank, unique_id, config):
                stand_in.configs.append(config)
                self.id, self.rank, self.size = bytes(unique_id), rank, size
                self._start("init", None, None, posted=False)

            def allreduce(self, source, target, op, *, stream):
                assert op == SUM
                self._start("allreduce", source, target, stream)

            def allgather(self, source, target, *, stream):
                self._start("allgather", source, target, stream)

            def finalize(self):
                self._start("finalize", None, None, posted=False)

            def get_async_error(self):
                if self.rank in stand_in.errors:
                    return stand_in.errors[self.rank]
                return SUCCESS if self.last is None or self.last.done.is_set() else IN_PROGRESS

            def abort(self):
                stand_in.aborted.append(self.rank)
                for work in stand_in.pending.values():
                    work.done.set()

            def destroy(self):
                assert self.get_async_error() == SUCCESS
                stand_in.destroyed.append(self.rank)

            def _start(self, name, source, target, stream=None, posted=None):
                assert self.last is None or self.last.done.is_set(), "a call while another is in progress"
                with stand_in.lock:
                    stand_in.calls.append((self.rank, name, stream))
                    work = stand_in.works.setdefault((self.id, self.made), Work(self.size))
                    self.made += 1
                    work.join(self.rank, name, source, target)
                if stand_in.posted if posted is None else posted:
                    stand_in.pending[stream] = work
                else:
                    self.last = work

        class Event:
            def record(self, stream):
                self.work = stand_in.pending.get(stream.cuda_stream)

            def query(self):
                return self.work is None or self.work.done.is_set()

        core = ModuleType("nccl.core")
        core.Communicator, core.UniqueId, core.SUM = Communicator, UniqueId, SUM
        core.NCCLConfig = lambda **given: given
        core.get_unique_id = self._unique_id
        core.get_error_string = lambda state: f"result {state}"
        core.get_version = lambda: SimpleNamespace(libnccl="2.32")
        bindings = ModuleType("nccl.bindings.nccl")
        bindings.NCCLError = NCCLError
        package = ModuleType("nccl")
        package.core = core
        modules = {"nccl": package, "nccl.core": core, "nccl.bindings": ModuleType("nccl.bindings")}
        for name, module in (modules | {"nccl.bindings.nccl": bindings}).items():
            monkeypatch.setitem(sys.modules, name, module)
        self.core, self.Communicator = core, Communicator
        monkeypatch.setattr(torch.cuda, "device", lambda _device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: self.stream())
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.captures)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr("baracuda_py.interop.torch.nccl._let_others_capture", lambda: None)

    def stream(self):
        """The thread's own."""
        if not hasattr(self.streams, "own"):
            self.streams.own = SimpleNamespace(cuda_stream=threading.get_ident())
        return self.streams.own

    def _unique_id(self):
        self.ids += 1
        return UniqueId(bytes([self.ids]) * 128)
