"""`NcclCollective`: on the CPU over a stand-in for nccl4py with threads as ranks; for NCCL see test_torch_parallel."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file

from baracuda_py import checkpoints
from baracuda_py.errors import InvalidProblem, RankLost, Unsupported
from baracuda_py.interop.torch import AwqLinear
from baracuda_py.interop.torch.nccl import NcclCollective
from baracuda_py.interop.torch.parallel import ColumnParallelAwqLinear, RowParallelAwqLinear
from baracuda_py.quantize import quantize_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from nccl_stand_in import REMOTE, NCCLError, StandIn

TIMEOUT_S = 0.5


@pytest.fixture(params=["in progress", "posted"])
def nccl(request, monkeypatch):
    return StandIn(monkeypatch, posted=request.param == "posted")


def ranks(size, work, timeout_s=30.0):
    """What `work(world)` returns or raises on every rank, each a thread."""
    unique_id, found = NcclCollective.unique_id(), [None] * size

    def run(rank):
        try:
            world = NcclCollective(unique_id, rank, size, device=f"cuda:{rank}", timeout_s=timeout_s)
            with torch.no_grad():
                found[rank] = work(world)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return found


def settled(tensor, reached):
    """Wait as a stream's synchronize would."""
    end = time.monotonic() + 10
    while not reached(tensor):
        assert time.monotonic() < end
        time.sleep(0.001)
    return tensor


@pytest.mark.parametrize("size", [1, 2, 4])
def test_sums_and_gathers_are_over_all_ranks_on_the_current_stream(nccl, size):
    def work(world):
        mine = torch.full((2, 3), float(2**world.rank))
        world.sum_(mine)
        settled(mine, lambda tensor: tensor[0, 0] == 2**size - 1)
        every = world.gather(torch.arange(3) + 10 * world.rank)
        assert every.shape == (size, 3)
        settled(every, lambda tensor: tensor[:, 0].tolist() == [10 * rank for rank in range(size)])
        world.close()
        return nccl.stream().cuda_stream

    streams = ranks(size, work)
    assert len(set(streams)) == size
    for rank, stream in enumerate(streams):
        calls = [(name, handle) for who, name, handle in nccl.calls if who == rank]
        assert calls == [("init", None), ("allreduce", stream), ("allgather", stream), ("finalize", None)]
    assert sorted(nccl.destroyed) == list(range(size))
    assert not nccl.aborted
    assert nccl.configs == [{"blocking": False}] * size


def test_layers_cut_over_it_compute_what_they_did(monkeypatch, tmp_path):
    StandIn(monkeypatch)
    torch.manual_seed(0)
    (tmp_path / "dense").mkdir()
    tensors = {f"{name}.weight": 0.05 * torch.randn(128, 128) for name in ("up", "down")}
    save_file(tensors, tmp_path / "dense" / "model.safetensors")
    quantize_checkpoint(tmp_path / "dense", tmp_path / "awq", group_size=64)
    model, x = checkpoints.open(tmp_path / "awq"), torch.randn(3, 128).half()

    def work(world):
        up = ColumnParallelAwqLinear.from_layer(model["up"], world)
        down = RowParallelAwqLinear.from_layer(model["down"], world)
        whole = ColumnParallelAwqLinear(up.linear, world, gather=True)
        return whole(x), down(up(x))

    with torch.no_grad():
        up, down = (AwqLinear.from_layer(model[name]) for name in ("up", "down"))
        hidden, expected = up(x), down(up(x))
    for found in ranks(2, work):
        for y, exact in zip(found, (hidden, expected), strict=True):
            assert torch.linalg.norm((y - exact).float()) <= 2e-3 * torch.linalg.norm(exact.float())


def test_a_rank_that_never_comes_is_an_error_in_the_stated_time(nccl, slowness):
    start = time.monotonic()
    with pytest.raises(RankLost, match=r"come to init \(got nothing for 0.5 s\).*rank 0 of 2"):
        NcclCollective(NcclCollective.unique_id(), 0, 2, device="cuda:0", timeout_s=TIMEOUT_S)
    assert TIMEOUT_S <= time.monotonic() - start < (TIMEOUT_S + 1) * slowness
    assert nccl.aborted == [0]


def test_a_rank_that_is_lost_later_is_an_error_in_the_stated_time(nccl, slowness):
    def work(world):
        world.sum_(torch.ones(2))
        if world.rank == 1:
            return
        start = time.monotonic()
        try:
            while True:  # posted: the call returns, and a later one, or check, raises
                world.check()
                if not nccl.posted or time.monotonic() - start < 0.1:
                    world.sum_(torch.ones(2))
                time.sleep(0.01)
        finally:
            assert TIMEOUT_S <= time.monotonic() - start < (TIMEOUT_S + 1.5) * slowness

    lost, _ = ranks(2, work, TIMEOUT_S)
    assert isinstance(lost, RankLost)
    assert isinstance(lost, RuntimeError)
    assert ("the GPU must finish" if nccl.posted else "come to allreduce") in str(lost)
    assert nccl.aborted[0] == 0


def test_after_it_every_call_raises_and_nothing_reaches_nccl(nccl):
    world = NcclCollective(NcclCollective.unique_id(), 0, 1, device="cuda:0", timeout_s=TIMEOUT_S)
    nccl.errors[0] = REMOTE
    end = time.monotonic() + 10
    while not nccl.aborted:  # without any call: the watching thread asks
        assert time.monotonic() < end
        time.sleep(0.01)
    calls = list(nccl.calls)
    for call in (
        world.check, world.watch, lambda: world.sum_(torch.ones(1)), lambda: world.gather(torch.ones(1)),
    ):  # fmt: skip
        with pytest.raises(RankLost, match="result 6"):
            call()
    world.close()
    assert nccl.calls == calls
    assert not nccl.destroyed


def test_where_the_gpu_cannot_be_watched_calls_raise(nccl, monkeypatch):
    monkeypatch.setattr("baracuda_py.interop.torch.nccl._let_others_capture", lambda: 1 / 0)
    world = NcclCollective(NcclCollective.unique_id(), 0, 1, device="cuda:0")
    world._watcher.join(10)
    with pytest.raises(RankLost, match="ZeroDivisionError"):
        world.sum_(torch.ones(1))


def test_what_nccl_refuses_is_its_own_text(nccl, monkeypatch):
    def refuse(*_given, **_more):
        raise NCCLError("UnhandledCudaError (1)")

    monkeypatch.setattr(nccl.Communicator, "initialize", refuse)
    with pytest.raises(RankLost, match=r"able to init \(got UnhandledCudaError \(1\)\)"):
        NcclCollective(NcclCollective.unique_id(), 0, 1, device="cuda:0")


def test_captured_calls_are_not_watched_until_asked(monkeypatch):
    nccl = StandIn(monkeypatch, posted=True)

    def work(world):
        if world.rank == 1:
            return world.close  # never called: the rank is gone
        nccl.captures = True
        world.sum_(torch.ones(2))
        time.sleep(2 * TIMEOUT_S)
        world.check()
        world.watch()
        time.sleep(2 * TIMEOUT_S)
        with pytest.raises(RankLost, match="the GPU must finish"):
            world.check()
        return True

    assert ranks(2, work, TIMEOUT_S)[0] is True


def test_a_block_that_ends_with_an_error_does_not_wait_for_the_others(nccl):
    def work(world):
        if world.rank == 1:
            return time.sleep(0.2)
        with pytest.raises(ZeroDivisionError), world:
            _ = 1 / 0
        with pytest.raises(RankLost, match="ZeroDivisionError"):
            world.check()
        return True

    assert ranks(2, work)[0] is True
    assert 0 in nccl.aborted


def test_a_block_that_ends_well_closes(nccl):
    with NcclCollective(NcclCollective.unique_id(), 0, 1, device="cuda:0") as world:
        world.sum_(torch.ones(2))
    assert nccl.destroyed == [0]
    assert not world._watcher.is_alive()
    with pytest.raises(RankLost, match="closed"):
        world.sum_(torch.ones(2))


def test_a_store_of_torch_brings_the_id_to_all_ranks(nccl):
    store, found = torch.distributed.HashStore(), [None, None]

    def run(rank):
        world = NcclCollective.from_store(store, rank, 2, device=f"cuda:{rank}", timeout_s=30)
        found[rank] = (world.rank, world.size)
        world.close()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [(0, 2), (1, 2)]
    assert nccl.ids == 1


def test_events_are_used_again(monkeypatch):
    nccl = StandIn(monkeypatch, posted=True)
    world = NcclCollective(NcclCollective.unique_id(), 0, 1, device="cuda:0", timeout_s=0.04)
    made = []
    monkeypatch.setattr(torch.cuda, "Event", lambda before=torch.cuda.Event: made.append(before()) or made[-1])
    for _ in range(50):
        world.sum_(torch.ones(1))
        time.sleep(0.02)
    assert len(made) <= 10
    assert not nccl.aborted
    world.close()


@pytest.mark.parametrize(("rank", "size", "device", "said"), [
    (2, 2, "cuda:0", "rank must be one of 2"), (-1, 2, "cuda:0", "rank must be"), (0, 1, "cpu", "must be a GPU"),
    (0, 1, "cuda", "with its number"),
])  # fmt: skip
def test_impossible_ranks_and_devices_are_refused(nccl, rank, size, device, said):
    with pytest.raises(InvalidProblem, match=said):
        NcclCollective(NcclCollective.unique_id(), rank, size, device=device)
    assert not nccl.calls


def test_tensors_with_gaps_are_refused(nccl):
    with NcclCollective(NcclCollective.unique_id(), 0, 1, device="cuda:0") as world:
        with pytest.raises(InvalidProblem, match="contiguous"):
            world.sum_(torch.ones(4, 4)[:, :2])
        with pytest.raises(InvalidProblem, match="contiguous"):
            world.gather(torch.ones(4, 4).T)
    assert [name for _, name, _ in nccl.calls] == ["init", "finalize"]


def test_without_nccl4py_what_to_install_is_said(monkeypatch):
    code = (
        "import sys; sys.modules['nccl'] = None; from baracuda_py.interop.torch.nccl import NcclCollective; "
        "NcclCollective.unique_id()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.splitlines()[-1]
    assert "nccl4py must be installed" in last
    assert "pip install 'baracuda-py[nccl]'" in last
    nccl = StandIn(monkeypatch)
    nccl.core.get_version = lambda: type("Versions", (), {"libnccl": None})
    with pytest.raises(Unsupported, match="nvidia-nccl-cu13"):
        NcclCollective.unique_id()
