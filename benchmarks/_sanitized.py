"""Runs one share of the GPU kernels, each on every small example it serves, once: the program under compute-sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/_sanitized.py 0/4 [--ours]

With `--ours`, without calls that NVIDIA's libraries have a part in.

Outputs and workspaces are fresh device memory that nothing has written, so that initcheck sees what is read too early
or not written.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import baracuda_py as bp
from baracuda_py.arrays import empty
from baracuda_py.testing.calls import Case, cases
from baracuda_py.testing.data import inputs_for


def run(case: Case) -> None:
    """One call on exactly sized allocations of its own; the outputs are copied back."""
    inputs = inputs_for(case.op, case.descriptor)
    tensors = {}
    for spec in case.op.specs:
        if not spec.needed_on(case.descriptor):
            tensors[spec.name] = None
        elif spec.role == "out":
            tensors[spec.name] = empty(
                spec.shape_on(case.descriptor), spec.elements_on(case.descriptor)[0], case.device
            )
        else:
            tensors[spec.name] = bp.to_device(inputs[spec.name], case.device)
    plan = case.plan
    plan.run(0, bp.allocate_workspace(plan), case.op.args(**tensors))
    if case.kernel.sku.backend is not bp.BackendKind.BESPOKE:
        return  # initcheck does not see what NVIDIA's libraries store by tensor maps
    for spec in case.op.specs:
        if spec.written and tensors[spec.name] is not None:
            tensors[spec.name].numpy()


def main() -> None:
    share, shares = map(int, sys.argv[1].split("/"))
    registry = bp.default_registry()
    ours = sys.argv[2:] == ["--ours"]
    every = (case for case in cases(registry, registry.device(0)) if not case.empty)
    mine = [case for case in every if case.kernel.sku.backend is bp.BackendKind.BESPOKE or not ours][share::shares]
    for case in mine:
        print(f"case: {case}", flush=True)  # so that an error stands behind what caused it
        run(case)
    print(f"calls: {len(mine)}")


if __name__ == "__main__":
    main()
