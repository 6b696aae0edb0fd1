"""The Python blocks of README and docs run, in order, as one script a page."""

from __future__ import annotations

from typing import Any

import pytest

PAGES = (
    "README.md", "docs/tutorial.md", "docs/guide-workspaces-and-graphs.md", "docs/guide-checkpoints.md",
    "docs/guide-quantize.md",
)  # fmt: skip
KNOWN_NEEDS = {"torch", "transformers", "jax", "cupy", "gpu"}


def run(blocks: Any, page: str, provided: set[str]) -> int:
    """Run the blocks that need nothing else than `provided`; how many of them need all of it."""
    scope: dict[str, Any] = {"__name__": "docs"}
    chosen = [block for block in blocks(page) if block.language == "python" and block.needs <= provided]
    for block in chosen:
        exec(block.compiled(), scope)
    return sum(block.needs == provided for block in chosen)


@pytest.mark.parametrize("page", PAGES)
def test_plain_blocks_run(blocks: Any, page: str) -> None:
    assert run(blocks, page, set())


@pytest.mark.parametrize(
    ("page", "needs"),
    [("docs/tutorial.md", {"torch"}), ("docs/guide-torch.md", {"torch"}),
     ("docs/guide-torch.md", {"torch", "transformers"}), ("docs/guide-jax-cupy.md", {"jax"})],
)  # fmt: skip
def test_blocks_of_frameworks_run_on_the_cpu(blocks: Any, page: str, needs: set[str]) -> None:
    for name in needs:
        pytest.importorskip(name)
    assert run(blocks, page, needs)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("page", "framework"),
    [("docs/tutorial.md", "torch"), ("docs/tutorial.md", "cupy"), ("docs/guide-workspaces-and-graphs.md", "torch"),
     ("docs/guide-jax-cupy.md", "cupy")],
)  # fmt: skip
def test_gpu_blocks_run(blocks: Any, page: str, framework: str) -> None:
    pytest.importorskip(framework)
    assert run(blocks, page, {framework, "gpu"})


@pytest.mark.parametrize("page", [*PAGES, "docs/guide-torch.md", "docs/guide-jax-cupy.md"])
def test_what_a_block_needs_is_known(blocks: Any, page: str) -> None:
    assert {need for block in blocks(page) for need in block.needs} <= KNOWN_NEEDS
