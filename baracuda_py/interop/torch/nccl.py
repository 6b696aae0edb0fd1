"""`NcclCollective`: NCCL through nccl4py, without torch.distributed's process groups.

    store = torch.distributed.TCPStore(host, port, size, is_master=rank == 0)
    world = NcclCollective.from_store(store, rank, size)

or, however the ranks can exchange 128 bytes (MPI, a file, an engine's own channel):

    mine = NcclCollective.unique_id() if rank == 0 else None
    world = NcclCollective(comm.bcast(mine), rank, size)
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import torch

from baracuda_py.errors import InvalidProblem, RankLost, Unsupported

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["NcclCollective"]

_SUCCESS, _IN_PROGRESS = 0, 7  # of ncclResult_t
_SPIN_S = 0.002  # NCCL enqueues a call in microseconds, from a thread of its own; for longer things, poll
_POLL_S = 0.001
_WATCH_S = 0.1  # between two looks at what the GPU has not finished


class NcclCollective:
    """A `Collective` of one GPU a rank; NCCL's communicator is this object's own, and does not block.

    Calls are enqueued on torch's current stream of the device, also while a CUDA graph captures it, and allocate only
    what they return.

    When a rank is lost, the others get `RankLost` within `timeout_s` and a second: while the communicator is made, from
    a call that NCCL cannot enqueue, or from the next call after the GPU did not finish one. For the last, a thread
    watches what is enqueued and aborts the communicator. Kernels that waited for the lost rank then end, and whoever
    waited for the stream goes on with wrong data: call `check` behind a wait whose results count.

    Replays of a graph are not watched by themselves: call `watch` behind one.

    Args:
        unique_id: as `unique_id()` made it on one of the ranks; of one communicator only.
        rank, size: this rank, and how many there are. Every rank must make its object at about the same time.
        device: of torch; None: the current one.
        timeout_s: how long anything may take that ranks do together: making the communicator, and what is enqueued,
            from then until the GPU has done it and all before it on the stream.

    Raises:
        Unsupported: nccl4py or NCCL is not installed.
        InvalidProblem: an impossible rank, or a device that is no GPU.
        RankLost: not all ranks came, or NCCL failed.
    """

    def __init__(
        self, unique_id: bytes, rank: int, size: int, *, device: Any = None, timeout_s: float = 60.0
    ) -> None:
        self._nccl = nccl = _nccl4py()
        if not 0 <= rank < size:
            raise InvalidProblem("NcclCollective", f"rank must be one of {size}", rule="rank", value=rank)
        self._device = torch.device("cuda", torch.cuda.current_device()) if device is None else torch.device(device)
        if self._device.type != "cuda" or self._device.index is None:
            raise InvalidProblem(
                "NcclCollective", "the device must be a GPU with its number", rule="device", got=str(device)
            )
        self.rank, self.size, self.timeout_s = rank, size, timeout_s
        self._lock = threading.Lock()  # NCCL's calls on a communicator come one after the other
        self._lost: RankLost | None = None
        self._pending: deque[tuple[Any, float]] = deque()  # events that the GPU has not reached, and since when
        self._spare: list[Any] = []
        self._closed = threading.Event()
        self._communicator: Any = nccl.Communicator()
        given, config = nccl.UniqueId.from_bytes(unique_id), nccl.NCCLConfig(blocking=False)
        with torch.cuda.device(self._device), self._lock:
            self._enqueue("init", lambda communicator: communicator.initialize(size, rank, given, config))
        self._watcher = threading.Thread(target=self._watch_all, name="baracuda_py NCCL", daemon=True)
        self._watcher.start()
        atexit.register(self._stop)  # a thread in a CUDA call while Python ends can end the process with an error

    @staticmethod
    def unique_id() -> bytes:
        """What one rank makes, and all must be given: 128 bytes."""
        return bytes(_nccl4py().get_unique_id())

    @classmethod
    def from_store(
        cls, store: Any, rank: int, size: int, *, key: str = "baracuda_py.nccl", device: Any = None,
        timeout_s: float = 60.0,
    ) -> Self:  # fmt: skip
        """The same, the unique id exchanged through a store of torch.distributed (TCPStore, FileStore, ...).

        Args:
            store: of all the ranks; its own timeout holds for waiting on rank 0.
            key: of the store, which a second communicator must not share.
            rank, size, device, timeout_s: as above.
        """
        if rank == 0:
            store.set(key, cls.unique_id())
        return cls(bytes(store.get(key)), rank, size, device=device, timeout_s=timeout_s)

    def sum_(self, tensor: Any) -> None:
        """See `Collective`."""
        self._call("allreduce", tensor, tensor, self._nccl.SUM)

    def gather(self, tensor: Any) -> Any:
        """See `Collective`."""
        made = tensor.new_empty((self.size, *tensor.shape))
        self._call("allgather", tensor, made)
        return made

    def check(self) -> None:
        """Raise RankLost if a rank has been lost; waits for nothing."""
        if self._lost is not None:
            raise self._lost

    def watch(self) -> None:
        """Watch what is enqueued so far on the current stream, as calls do themselves; for behind a graph's replay."""
        self.check()
        stream = torch.cuda.current_stream(self._device)
        with self._lock:
            self._watch(stream)

    def close(self) -> None:
        """End the communicator: collective, behind all calls. Where a rank is lost it is aborted instead."""
        self._stop()
        with self._lock:
            if self._lost is None:
                self._enqueue("finalize", lambda communicator: communicator.finalize())
                self._communicator.destroy()
            self._communicator = None
            self._lost = self._lost or RankLost("NcclCollective", "it must not be closed", rule="closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        self._stop()  # without waiting for the other ranks, which may never come to close theirs
        with self._lock:
            if self._lost is None:
                self._abort("its block must not be left by an error", repr(error))

    def _stop(self) -> None:
        self._closed.set()
        self._watcher.join()
        atexit.unregister(self._stop)

    def _call(self, name: str, tensor: Any, *more: Any) -> None:
        for one in (tensor, *more[:1]):
            if isinstance(one, torch.Tensor) and not one.is_contiguous():
                raise InvalidProblem("tensor", f"{name} needs it contiguous", rule="strides", value=tensor.stride())
        stream = torch.cuda.current_stream(self._device)
        handle = stream.cuda_stream
        with self._lock:
            self.check()
            self._enqueue(name, lambda communicator: getattr(communicator, name)(tensor, *more, stream=handle))
            if not torch.cuda.is_current_stream_capturing():
                self._watch(stream)

    def _enqueue(self, name: str, call: Any) -> None:
        """Make a call of the communicator and wait till NCCL has taken it, not till the GPU has done it."""
        begun = time.monotonic()
        try:
            call(self._communicator)
            while (state := int(self._communicator.get_async_error())) == _IN_PROGRESS:
                passed = time.monotonic() - begun
                if passed > self.timeout_s:
                    raise self._abort(f"every rank must come to {name}", f"nothing for {self.timeout_s:g} s")
                time.sleep(0 if passed < _SPIN_S else _POLL_S)
        except self._nccl.NCCLError as error:
            raise self._abort(f"NCCL must be able to {name}", str(error)) from error
        if state != _SUCCESS:
            raise self._abort(f"NCCL must be able to {name}", self._nccl.get_error_string(state))

    def _watch(self, stream: Any) -> None:
        event = self._spare.pop() if self._spare else torch.cuda.Event()
        event.record(stream)
        self._pending.append((event, time.monotonic()))

    def _watch_all(self) -> None:
        try:
            _let_others_capture()
            while self._lost is None and not self._closed.wait(min(_WATCH_S, self.timeout_s / 4)):
                with self._lock:
                    if self._lost is None:
                        self._look()
        except Exception as error:  # unwatched, calls could wait for ever
            with self._lock:
                if self._lost is None:
                    self._abort("it must be possible to watch the GPU", repr(error))

    def _look(self) -> None:
        while self._pending and self._pending[0][0].query():
            self._spare.append(self._pending.popleft()[0])
        state = int(self._communicator.get_async_error())
        if state not in (_SUCCESS, _IN_PROGRESS):
            self._abort("NCCL must not fail", self._nccl.get_error_string(state))
        elif self._pending and time.monotonic() - self._pending[0][1] > self.timeout_s:
            self._abort("the GPU must finish what ranks do together", f"nothing for {self.timeout_s:g} s")

    def _abort(self, must: str, got: str) -> RankLost:
        """End what NCCL has on the GPU; the error that every call raises from now on."""
        self._lost = RankLost(
            "NcclCollective", must, rule="lost", got=got, why=f"rank {self.rank} of {self.size} waits for the others",
            fix="End this rank, or make a new communicator of those that are left",
        )  # fmt: skip
        communicator, self._communicator = self._communicator, None
        self._pending.clear()
        try:
            communicator.abort()
        except self._nccl.NCCLError as error:
            self._lost.add_note(f"aborting the communicator failed: {error}")
        return self._lost


class _Nccl4py:
    """What is used of nccl4py."""

    def __init__(self, core: Any, error: Any) -> None:
        self.Communicator, self.NCCLConfig, self.UniqueId = core.Communicator, core.NCCLConfig, core.UniqueId
        self.SUM, self.get_unique_id, self.get_error_string = core.SUM, core.get_unique_id, core.get_error_string
        self.NCCLError = error


def _nccl4py() -> _Nccl4py:
    try:
        import nccl.core as core
        from nccl.bindings.nccl import NCCLError
    except ImportError as error:
        raise Unsupported(
            "NcclCollective", "nccl4py must be installed", rule="nccl4py", got=str(error),
            fix="pip install 'baracuda-py[nccl]', or use TorchCollective",
        ) from None  # fmt: skip
    if core.get_version().libnccl is None:
        raise Unsupported(
            "NcclCollective", "NCCL's library must be found", rule="libnccl",
            fix="Install a torch that brings it, or the package nvidia-nccl-cu13",
        )  # fmt: skip
    return _Nccl4py(core, NCCLError)


def _let_others_capture() -> None:
    """Let this thread look at events while another captures a graph, which it would spoil otherwise."""
    from cuda.bindings import driver

    driver.cuThreadExchangeStreamCaptureMode(driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
