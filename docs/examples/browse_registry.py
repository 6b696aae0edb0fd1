"""A walk through the registry, in cells as notebooks have them; no GPU is needed."""

# %% What there is.
import baracuda_py as bp

registry = bp.default_registry()
for op in registry.ops():
    print(f"{op.name:24} {op.category.name:14} {len(op.kernels):4} kernels: {op.doc.partition(chr(10))[0]}")

# %% One op: its arguments, and how it is called.
gemm = registry.op("int4_awq_gemm")
for spec in gemm.specs:
    print(f"{spec.name:16} {spec.role:9} {spec.doc}")

# %% Kernels by any mix of category, op, element, backend, architecture and guarantee.
for sku in registry.skus(op="int4_awq_gemm", element=bp.ElementKind.BF16, backend=bp.BackendKind.BESPOKE)[:5]:
    print(sku)

# %% What would serve a problem on a GPU that is not here, and why not the others.
problem = bp.Int4AwqGemmDescriptor(1, 4096, 14336, split_k_iters=None, weight_layout=bp.AwqWeightLayout.OC_MAJOR)
for candidate in registry.explain(problem, "sm_90").candidates:
    sku, refusal = candidate.sku, candidate.refusal
    if (sku.element, sku.epilogue) == (problem.element, problem.epilogue):
        print(f"{sku.variant:20} " + (f"{candidate.cost_us:.1f} us" if refusal is None else str(refusal)))

# %% The plan that `select` chooses: its name in tables and logs, what it promises, what it needs.
plan = bp.select(problem, "sm_90")
print(plan.sku, plan.precision_guarantee, plan.workspace_size, sep="\n")

# %% The same kernel again, by its SKU.
assert registry.plan(str(plan.sku), problem, "sm_90").sku == plan.sku
