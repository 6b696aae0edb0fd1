"""The speed of the AWQ GEMM: ours beside a dense GEMM, torch's int4 op and a bare read of the weights, in one run.

    cells       the problems: shapes of models, numbers of rows
    read        the kernel that only reads
    contenders  who takes part in a cell
    run         measures cells
    results     what was measured, as JSON and CSV; what it is judged by
    plot        the roofline
"""
