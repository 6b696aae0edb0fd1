"""The best kernels of others, from a CSV: what `--compare` sets beside ours.

Columns: n_out, k_in, m, best_peer, best_peer_us; also best_over_cublas, the peer's time over cuBLAS fp16 in its own
run, by which cards that differ, or that are limited by power, can be compared. Others are ignored.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from baracuda_py.errors import InvalidProblem

__all__ = ["Peer", "read_peers"]

_NEEDED = ("n_out", "k_in", "m", "best_peer", "best_peer_us")
_OVER_DENSE = "best_over_cublas"


@frozen
class Peer:
    """The best known time of a cell: the kernel, microseconds, and its ratio to a dense GEMM in the same run."""

    oc: int
    ic: int
    m: int
    name: str
    time_us: float
    over_dense: float | None = None

    @property
    def key(self) -> tuple[int, int, int]:
        """The cell."""
        return self.oc, self.ic, self.m

    @property
    def fields(self) -> dict[str, Any]:
        """As JSON has it."""
        return attrs.asdict(self)


def read_peers(path: Path) -> dict[tuple[int, int, int], Peer]:
    """The peers in a CSV by (oc, ic, m); InvalidProblem, naming the file, if it lacks a column or a number."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [name for name in _NEEDED if name not in (reader.fieldnames or ())]:
                raise ValueError(f"there is no column {', '.join(missing)}")
            peers = [_peer(row) for row in reader]
    except (OSError, TypeError, ValueError) as error:
        raise InvalidProblem(
            str(path), "a file to compare with must be a CSV of best peers", rule="compare", why=str(error),
            fix=f"Its columns are {', '.join(_NEEDED)} and, if known, {_OVER_DENSE}",
        ) from None  # fmt: skip
    return {peer.key: peer for peer in peers}


def _peer(row: dict[str, str]) -> Peer:
    over = row.get(_OVER_DENSE)
    oc, ic, m = (int(row[name]) for name in ("n_out", "k_in", "m"))
    return Peer(oc, ic, m, row["best_peer"], float(row["best_peer_us"]), float(over) if over else None)
