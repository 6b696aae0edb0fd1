"""How calls are timed, against a clock that only the calls move."""

from __future__ import annotations

import numpy as np
import pytest

import baracuda_py as bp
from baracuda_py.tuning.arguments import RotatedArguments, copies_of
from baracuda_py.tuning.timing import GraphTimer, HostTimer, Spread, in_turns
from baracuda_py.vocab.device import HOST


class Clock:
    """Nanoseconds; `spend` makes calls that take a time, and note their names."""

    def __init__(self):
        self.now, self.log = 0, []

    def __call__(self):
        return self.now

    def spend(self, name, microseconds):
        def call():
            self.log.append(name)
            self.now += 1000 * microseconds

        return call


def test_a_replay_on_the_host_is_the_mean_of_its_calls_without_the_one_before():
    clock = Clock()
    calls = [clock.spend(name, us) for name, us in (("a", 3), ("b", 5), ("c", 100))]
    with HostTimer(clock).replay(calls) as replay:
        assert clock.log == ["a"], "a first call, before anything is timed"
        assert replay() == 36
    assert clock.log == ["a", "c", "a", "b", "c"]


def test_contenders_take_turns_round_by_round():
    log = []
    replays = {name: lambda name=name: log.append(name) or float(len(log)) for name in "xyz"}
    times = in_turns(replays, 3)
    rounds = ["".join(log[start : start + 3]) for start in (0, 3, 6)]
    assert [sorted(one) for one in rounds] == [list("xyz")] * 3
    assert len(set(rounds)) > 1, "not always the same one behind the same"
    assert times == {name: [3 * turn + one.index(name) + 1 for turn, one in enumerate(rounds)] for name in "xyz"}


class Driver:
    """Counts the launches of a graph that takes `graph_us`, between the events and ahead of them."""

    def __init__(self, graph_us):
        self.graph_us, self.launches, self.events = graph_us, 0, []

    def call(self, name, *arguments):
        if name == "cuEventCreate":
            self.events.append(None)
            return len(self.events) - 1
        if name == "cuEventRecord":
            self.events[arguments[0]] = self.launches
        if name == "cuEventElapsedTime":
            return 1e-3 * self.graph_us * (self.events[arguments[1]] - self.events[arguments[0]])
        return None


@pytest.mark.parametrize(("block_us", "lead", "timed"), [(0.0, 1, 1), (30.0, 1, 1), (100.0, 1, 2), (1e3, 10, 20)])
def test_a_graph_is_replayed_for_as_long_as_was_asked_behind_half_of_it(block_us, lead, timed):
    driver = Driver(graph_us=50.0)

    def launch():
        driver.launches += 1

    replay = GraphTimer(driver, 0, block_us).of_launch(launch, 5)
    before = driver.launches
    assert replay() == pytest.approx(10.0)
    start, stop = driver.events[-2:]
    assert (start - before, stop - start) == (lead, timed)


def test_a_spread_is_the_median_the_quartiles_and_the_least():
    assert Spread.of([9.0, 1.0, 3.0, 5.0, 100.0]) == Spread(5.0, (3.0, 9.0), 1.0, 5)
    assert Spread.of([7.0]) == Spread(7.0, (7.0, 7.0), 7.0, 1)


@pytest.mark.parametrize(
    ("nbytes", "rotated", "copies"), [(8, 0, 1), (8, 8, 1), (8, 9, 2), (1, 1 << 20, 512), (0, 9, 1)]
)
def test_copies_make_as_many_bytes_as_are_to_be_walked_over_but_no_more_than_512(nbytes, rotated, copies):
    assert copies_of(nbytes, rotated) == copies


def _places(sets, name):
    return len({one[name].ctypes.data for one in sets})


def test_weights_have_copies_of_their_own_with_the_same_values_and_the_rest_is_shared():
    op = bp.default_registry().op("int4_awq_gemm")
    desc = bp.Int4AwqGemmDescriptor(3, 256, 64)
    nbytes = 64 * 256 // 2 + 2 * 64 * 2 + 2 * 64 // 2
    sets = RotatedArguments(HOST, 4 * nbytes).of(op, desc)
    assert len(sets) == 4
    assert {name: _places(sets, name) for name in sets[0] if name != "bias"} == {
        "activation": 1, "weight_packed": 4, "scales": 4, "zeros": 4, "output": 1,
    }  # fmt: skip
    assert all(np.array_equal(one["weight_packed"], sets[0]["weight_packed"]) for one in sets)
    assert len(np.unique(sets[0]["weight_packed"])) > 1000


def test_fp8_arguments_are_as_quantising_normal_values_makes_them():
    op = bp.default_registry().op("int4_awq_fp8_gemm")
    [one] = RotatedArguments(HOST, 0).of(op, bp.Int4AwqFp8GemmDescriptor(64, 256, 64))
    values = one["activation"].astype(np.float32)
    assert np.abs(values).max() == 448
    assert 80 < values.std() < 160, "few are subnormal"
    assert abs(values.mean()) < 5


def test_further_arguments_are_rotated_where_they_are_named_also_those_that_are_written():
    op = bp.default_registry().op("dense_gemm")
    desc = bp.DenseGemmDescriptor(2, 8, 16)
    sets = RotatedArguments(HOST, 3 * 2 * (16 * 8 + 2 * 8), ("b", "output")).of(op, desc)
    assert {name: _places(sets, name) for name in ("a", "b", "output")} == {"a": 1, "b": 3, "output": 3}
