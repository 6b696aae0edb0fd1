"""`doctor`: what is there, what is missing, how to get it, and the exit codes."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError

import pytest
from attrs import evolve

import baracuda_py
from baracuda_py import sys as kernels
from baracuda_py import tuning
from baracuda_py.cli import doctor
from baracuda_py.errors import DriverError


def findings(result):
    return json.loads(result.out)["findings"]


def section(result, name):
    return [one for one in findings(result) if one["section"] == name]


def test_without_a_gpu_the_host_is_enough(run, no_gpu):
    result = run("doctor", "--json")
    assert result.code == 0
    report = json.loads(result.out)
    assert (report["host_works"], report["has_gpu"]) == (True, False)
    [driver] = section(result, "gpu")
    assert (driver["state"], driver["fix"]) == ("missing", "Install an NVIDIA driver")
    assert driver["fix"] not in driver["detail"]
    assert run("doctor", "--require", "gpu").code == 1
    assert "Install an NVIDIA driver" in run("doctor").out


def test_with_a_gpu_every_kernel_is_loaded(run, gpu):
    result = run("doctor", "--require", "gpu", "--json")
    assert result.code == 0
    assert [one["name"] for one in section(result, "gpu")] == ["driver", "cuda:0"]
    assert "Fake 90, sm_90, 132 multiprocessors" in section(result, "gpu")[1]["detail"]
    entries = {(module.name, entry) for module in kernels.modules() for entry in module.entries}
    assert set(gpu.loaded) == entries
    assert all(one["state"] == "ok" and "loads on GPU 0" in one["detail"] for one in section(result, "ptx"))


def test_a_module_that_does_not_load_is_broken_and_the_rest_is_not(run, gpu):
    broken = kernels.modules()[0]
    gpu.broken_entry = next(iter(broken.entries))
    result = run("doctor", "--json")
    first, *others = section(result, "ptx")
    assert first["state"] == "broken"
    assert "ptxas fatal" in first["detail"]
    assert all(one["state"] == "ok" for one in others)
    assert result.code == 0


def test_a_host_that_computes_wrong_fails(run, no_gpu, monkeypatch):
    from baracuda_py.cli import run as run_module

    monkeypatch.setattr(run_module, "_relative_error", lambda *_: float("nan"))
    result = run("doctor", "--json")
    assert result.code == 1
    assert json.loads(result.out)["host_works"] is False
    assert section(result, "host")[0]["state"] == "broken"


def test_libraries_come_from_the_metadata_with_the_extra_that_brings_them(monkeypatch):
    installed = {"numpy": "2.3", "rich": "15.0"}

    def version(name):
        try:
            return installed[name]
        except KeyError:
            raise PackageNotFoundError(name) from None

    lines = ["numpy>=2.0", "rich<20", "onnxruntime>=1.20; extra == 'host'", "attrs>=24", 'pytest>=9; extra == "test"']
    lines += ["torch>=2.4; extra == 'torch'", "torch>=2.4; extra == 'transformers'", "numpy>=2; extra == 'x'"]
    monkeypatch.setattr(doctor, "requires", lambda _: lines)
    monkeypatch.setattr(doctor, "version", version)
    listed = list(doctor._libraries())
    found = {one.name: one for one in listed}
    assert [one.name for one in listed] == ["numpy", "rich", "onnxruntime", "attrs", "torch"], "each once"
    assert found["torch"].fix == "Run: pip install 'baracuda-py[torch]'"
    assert (found["numpy"].state, found["numpy"].detail) == ("ok", "2.3")
    assert (found["onnxruntime"].state, found["onnxruntime"].fix) == (
        "missing", "Run: pip install 'baracuda-py[host]'",
    )  # fmt: skip
    assert (found["attrs"].state, found["attrs"].fix) == ("broken", "Run: pip install 'baracuda-py'")


def test_plugins_that_fail_are_told_with_their_error(run, gpu, monkeypatch):
    from importlib.metadata import EntryPoint

    from baracuda_py import registry as registry_module
    from baracuda_py.backends.host import HostBackend
    from baracuda_py.ops import builtin_ops
    from baracuda_py.plan import new_registry

    points = {
        "baracuda_py.ops": [EntryPoint("sound", "builtins:id", "baracuda_py.ops"),
                            EntryPoint("unsound", "no_such_module:add", "baracuda_py.ops")],
        "baracuda_py.backends": [],
    }  # fmt: skip
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points[group])
    monkeypatch.setattr(doctor, "entry_points", lambda group: points[group])
    monkeypatch.delenv("BARACUDA_PY_NO_PLUGINS", raising=False)
    registry = new_registry(plugins=True)
    registry.register_backend(HostBackend())
    registry.register_backend(gpu)
    for op in builtin_ops():
        registry.register(op)
    monkeypatch.setattr(baracuda_py, "default_registry", lambda: registry)
    result = run("doctor", "--json")
    sound, unsound = section(result, "plug-ins")
    assert (sound["name"], sound["state"]) == ("sound", "ok")
    assert (unsound["name"], unsound["state"]) == ("unsound", "broken")
    assert "ModuleNotFoundError" in unsound["detail"]
    assert "warning: plug-in 'unsound'" in result.err
    assert result.code == 0


def test_what_is_required_must_be_something_that_can_be(run):
    assert run("doctor", "--require", "tpu").code == 2


def test_a_gpu_that_cannot_be_opened_is_broken(run, gpu, monkeypatch):
    def fails(_ordinal):
        raise DriverError(2, "cuDevicePrimaryCtxRetain", name="CUDA_ERROR_OUT_OF_MEMORY", fix="Free some")

    monkeypatch.setattr(gpu, "device", fails)
    result = run("doctor", "--require", "gpu", "--json")
    assert result.code == 1
    found = section(result, "gpu")[1]
    assert (found["name"], found["state"], found["fix"]) == ("cuda:0", "broken", "Free some")


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setenv(tuning.FOLDER, str(tmp_path))
    tuning._tables.cache_clear()
    yield tmp_path
    tuning._tables.cache_clear()


def test_the_tables_that_a_gpu_goes_by_are_told(run, gpu, tables):
    mine = tuning.table_for(gpu.gpu)
    tuning.write_table(mine, tables / "mine.json")
    tuning._tables.cache_clear()
    [found] = section(run("doctor", "--json"), "tuning")
    assert (found["name"], found["state"]) == ("cuda:0", "ok")
    assert str(tables / "mine.json") in found["detail"]
    assert "nvidia-h100-80gb-hbm3.json (NVIDIA H100 80GB HBM3)" in found["detail"]
    gpu.gpu = evolve(gpu.gpu, capability=(8, 6))
    [found] = section(run("doctor", "--json"), "tuning")
    assert (found["name"], found["state"]) == ("cuda:0", "missing")
    assert "sm_86" in found["detail"]
    assert "baracuda-py tune" in found["fix"]


def test_without_a_gpu_the_tables_that_there_are_are_told(run, no_gpu):
    [found] = section(run("doctor", "--json"), "tuning")
    assert (found["name"], found["state"]) == ("tables", "ok")
    assert "nvidia-h100-80gb-hbm3.json (NVIDIA H100 80GB HBM3)" in found["detail"]


@pytest.mark.parametrize("machine", ["gpu", "no_gpu"])
def test_a_broken_table_is_told_as_such_and_the_host_works(run, request, monkeypatch, tables, machine):
    request.getfixturevalue(machine)
    monkeypatch.setattr(baracuda_py.default_registry(), "_tables", tuning.table_for)
    (tables / "bad.json").write_text("{}")
    result = run("doctor", "--json")
    assert result.code == 0
    [found] = section(result, "tuning")
    assert found["state"] == "broken"
    assert "bad.json" in found["detail"]
    assert found["fix"] == f"Remove the file, or unset {tuning.FOLDER}"
    assert found["fix"] not in found["detail"]
    monkeypatch.setenv(tuning.FOLDER, str(tables / "none"))
    [found] = section(run("doctor", "--json"), "tuning")
    assert found["state"] == "broken"
    assert "baracuda-py tune" in found["fix"]


@pytest.mark.gpu
def test_on_a_real_gpu_the_doctor_finds_it_and_loads_everything(run):
    result = run("doctor", "--require", "gpu", "--json")
    assert result.code == 0
    assert all(one["state"] == "ok" for one in section(result, "ptx"))


@pytest.mark.gpu
def test_on_a_real_gpu_the_demo_runs_there(run):
    result = run("demo", "--json")
    assert result.code == 0
    assert all(one["device"].startswith("cuda:") and one["passed"] for one in json.loads(result.out))
    assert all(one["clock"] == "CUDA events" for one in json.loads(result.out))
