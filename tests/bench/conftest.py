"""Results that were never measured, for tests of what is made of them."""

from __future__ import annotations

import pytest

from baracuda_py.bench.cells import Cell
from baracuda_py.bench.contenders import DENSE, INT4, OURS, READ, Absent, Contender
from baracuda_py.bench.results import Results
from baracuda_py.bench.run import Ceilings, Measured
from baracuda_py.tuning.timing import Spread
from baracuda_py.vocab.enums import ElementKind

F16, BF16 = ElementKind.F16, ElementKind.BF16


def contender(kind, kernel, element, layout, selected, nbytes, overlaps=False):
    return Contender(kind, kernel, element, layout, selected, nbytes, 4, 0.0, lambda timer: None, overlaps)


def measured(cell, *, int4=True, factor=1.0):
    """A cell where the fastest of ours takes `factor` times 10 us."""
    element, dense = cell.element, f"cublas_{cell.element.name.lower()}"
    times = [
        (12 * factor, contender(OURS, "sm80.bespoke.small_m_oc_major", element, "oc_major", True, cell.nbytes)),
        (11 * factor, contender(OURS, "sm80.bespoke.tile_oc_major", element, "oc_major", False, cell.nbytes)),
        (10 * factor, contender(OURS, "sm80.bespoke.stream_tiled", element, "tiled", True, cell.nbytes)),
        (9.5 * factor, contender(OURS, "sm90a.bespoke.bulk_tiled", element, "tiled", False, cell.nbytes, True)),
        (40 if factor == 1 else 250, contender(DENSE, dense, element, "", False, 4 * cell.nbytes)),
        (9, contender(READ, "read_streaming", None, "", False, cell.weight_nbytes)),
        (8, contender(READ, "read_evict_first", None, "", False, cell.weight_nbytes)),
    ]  # fmt: skip
    absent = []
    if int4:
        times.append((20, contender(INT4, "torch_int4pack_mm", BF16, "", False, cell.nbytes)))
    else:
        absent.append(Absent(INT4, "torch_int4pack_mm", BF16, "", "torch sees no CUDA device"))
    spreads = ((one, Spread(us, (us - 0.5, us + 0.75), us - 1, 20)) for us, one in times)
    return Measured(cell, tuple(spreads), tuple(absent))


@pytest.fixture
def results():
    """Two weights and elements at three numbers of rows; int4 is absent at one of the weights."""
    made = Results({"gpu": "Fake 90", "commit": "abc", "samples": 20, "rotated_nbytes": 7})
    made.begin(Ceilings(3.0e6, {F16: 700e6, BF16: 650e6}))
    for element in (F16, BF16):
        for oc, ic in ((4096, 4096), (4096, 512)):
            for m in (1, 8, 4096):
                cell = Cell(element, 128, oc, ic, m)
                made.add(measured(cell, int4=ic > 512, factor=30.0 if m > 8 else 1.0))
    return made
