"""The package as it lies there: which module may import which, what an import costs, what is public."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import baracuda_py

ROOT = Path(baracuda_py.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))
ROOT_MODULE = "baracuda_py"  # an import of the bare package is for its public names, and made inside functions only

# Layer -> the layers it may import from, besides itself.
ALLOWED = {
    "errors": set(),
    "vocab": {"errors"},
    "sys": set(),
    "tuning": {"errors", "vocab", "registry", "plan", "arrays"},
    "backends": {"errors", "vocab", "sys"},
    "registry": {"errors", "vocab"},
    "alike": {"vocab"},
    "operands": {"errors", "vocab", "alike"},
    "plan": {"errors", "vocab", "registry", "operands"},
    "ops": {"errors", "vocab", "registry", "sys"},
    "arrays": {"errors", "vocab", "plan"},
    "checkpoints": {"errors", "vocab", "registry", "plan", "arrays", "ops"},
    "interop": {"errors", "vocab", "registry", "operands", "plan", "arrays", "ops", "checkpoints"},
    "quantize": {"errors", "vocab", "registry", "plan", "arrays", "ops", "checkpoints"},
    "bench": {"errors", "vocab", "registry", "plan", "arrays", "ops", "sys", "tuning"},
    "testing": {"errors", "vocab", "registry", "plan", "arrays"},
    "cli": {
        "errors", "vocab", "registry", "plan", "arrays", "ops", "backends", "sys", "checkpoints", "interop", "quantize",
        "tuning", "bench",
    },
    "__main__": {"cli"},
}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path) -> list[str]:
    """Modules of the package that a file imports anywhere in it, functions and TYPE_CHECKING blocks included."""
    package = _name(path) if path.name == "__init__.py" else _name(path).rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found += [f"{module}.{alias.name}" for alias in node.names] if module == ROOT_MODULE else [module]
    return [name for name in found if name.split(".")[0] == ROOT_MODULE]


def _layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent != ROOT or p.stem != "__init__"], ids=_name)
def test_imports_go_one_way(path):
    layer = _layer(_name(path))
    assert layer in ALLOWED, f"{_name(path)}: say in ALLOWED what the layer {layer!r} may import"
    for module in _imported(path):
        target = _layer(module)
        if target in ("", "default_registry", "__version__"):
            assert layer not in ("errors", "vocab", "sys", "backends", "registry", "ops"), "lower layers know no root"
            continue
        assert target == layer or target in ALLOWED[layer], f"{_name(path)} imports {module}"


_MEASURE = """
import sys, time
before = set(sys.modules)
start = time.perf_counter()
import baracuda_py
elapsed = time.perf_counter() - start
print(elapsed, *sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_importing_the_package_takes_under_150_ms_and_loads_no_heavy_module(slowness):
    elapsed = []
    for _ in range(5):
        output = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True, check=True).stdout
        seconds, *loaded = output.split()
        elapsed.append(float(seconds))
        heavy = {"numpy", "torch", "jax", "cupy", "cuda", "ml_dtypes", "onnxruntime", "nvmath", "rich", "typer"}
        assert not heavy & set(loaded)
    assert min(elapsed) < 0.150 * slowness, f"{1e3 * min(elapsed):.0f} ms, slowness {slowness:.1f}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_public_names_exist_and_are_documented(path):
    if path.name == "__main__.py" or _name(path) == f"{ROOT_MODULE}.sys.build":
        pytest.skip("a program, not a module to import")
    pytest.importorskip("typer") if _layer(_name(path)) == "cli" else None
    if ROOT / "interop" in path.parents and path.parent != ROOT / "interop":
        pytest.importorskip(path.relative_to(ROOT / "interop").parts[0])
    module = importlib.import_module(_name(path))
    assert module.__doc__ or path.name == "__init__.py", "a module opens with a sentence"
    for name in getattr(module, "__all__", ()):
        assert not name.startswith("_"), f"{name} is private"
        value = getattr(module, name)
        if inspect.isclass(value) and value.__module__ == module.__name__:
            assert (value.__doc__ or "").strip(), f"{name} has no docstring"
            assert not (value.__doc__ or "").startswith("Method generated"), f"{name} has no docstring"
        elif inspect.isfunction(value):
            assert (value.__doc__ or "").strip(), f"{name} has no docstring"


def test_the_root_offers_what_it_lists():
    for name in dir(baracuda_py):
        assert getattr(baracuda_py, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        baracuda_py.no_such_name  # noqa: B018
