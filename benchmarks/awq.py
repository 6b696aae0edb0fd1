"""Speed of the AWQ GEMM beside cuBLAS, torch's int4 op and a bare read of the weights, in one run, with a roofline.

    python benchmarks/awq.py [--estimate] [--preset frontier] [--m 1,8,64] [--budget 10m] [--compare FILE] ...

Takes the options of `baracuda-py bench`, and is it; writes benchmarks/results/<machine>/awq.json, .csv, .png and .svg.
The same command again goes on with the cells that are left.
"""

from __future__ import annotations

import os
import sys

from machine import ROOT, commit

from baracuda_py.bench.environment import COMMIT
from baracuda_py.cli import main

if __name__ == "__main__":
    os.environ[COMMIT] = commit()
    main(["bench", "--output", str(ROOT / "results" / "{device}" / "awq"), *sys.argv[1:]])
