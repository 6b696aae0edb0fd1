"""What runs all that a GPU can show goes on behind what fails, keeps its time, and packs what was written."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from baracuda_py.cli import main

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "on_gpu.py"


def loaded():
    spec = importlib.util.spec_from_file_location("on_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


@pytest.fixture
def on_gpu(tmp_path, monkeypatch):
    module = loaded()
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "check_gpu", lambda: None)
    monkeypatch.setenv("BARACUDA_PY_COMMIT", "abc")
    (tmp_path / "results" / "card").mkdir(parents=True)
    (tmp_path / "results" / "card" / "old.json").write_text("{}")
    os.utime(tmp_path / "results" / "card" / "old.json", (0, 0))
    return module


# With a child that holds on to its output, as a test's worker does.
STUCK = """
import subprocess, sys, time
print("begun", flush=True)
subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"])
"""


def script(folder, name, text):
    (folder / f"{name}.py").write_text(text)


def run(on_gpu, monkeypatch, steps, *words):
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", *map(str, words)])
    return on_gpu.main(tuple(on_gpu.Step(name, f"{name}.py", (), limit_s) for name, limit_s in steps))


def test_what_fails_is_told_and_the_rest_runs(on_gpu, tmp_path, monkeypatch, capfd):
    script(tmp_path, "broken", "print('what went wrong'); raise SystemExit(3)")
    script(tmp_path, "stuck", STUCK)
    script(tmp_path, "fine", f"open({str(tmp_path / 'results' / 'card' / 'new.json')!r}, 'w').write('1')")
    steps = (("broken", 20), ("stuck", 5), ("fine", 20))
    assert run(on_gpu, monkeypatch, steps, "--archive", tmp_path / "all.tar.gz") == 1
    told = capfd.readouterr().err
    assert "what went wrong" in told
    assert "broken: ended with 3" in told
    assert "stuck: stopped after 5 s" in told
    assert "begun" in told
    assert "fine: done in" in told
    with tarfile.open(tmp_path / "all.tar.gz") as packed:
        assert packed.getnames() == ["results/card/new.json"]


def test_without_a_gpu_nothing_begins_and_one_line_says_why(tmp_path):
    told = subprocess.run(
        [sys.executable, str(SCRIPT), "--archive", str(tmp_path / "all.tar.gz")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert told.returncode == 1
    assert told.stderr.splitlines() == [
        "error: this needs an NVIDIA GPU; `baracuda-py doctor` says what is missing"
    ]
    assert not told.stdout
    assert not list(tmp_path.iterdir())


def test_what_might_not_end_in_time_does_not_begin(on_gpu, tmp_path, monkeypatch, capfd):
    script(tmp_path, "long", "raise SystemExit(9)")
    script(tmp_path, "short", "")
    assert run(on_gpu, monkeypatch, (("long", 100), ("short", 20)), "--minutes", 1) == 1
    told = capfd.readouterr().err
    assert "long: no time left" in told
    assert "short: done in" in told
    assert run(on_gpu, monkeypatch, (("long", 100), ("short", 20)), "--only", "short") == 0


@pytest.mark.parametrize("words", [(step.script, *step.arguments) for step in loaded().STEPS], ids=" ".join)
def test_every_script_takes_its_arguments(words):
    script, *arguments = words
    if script == "awq.py":
        with pytest.raises(SystemExit) as stopped:
            main(["bench", *arguments, "--device", "sm_90"])
        assert stopped.value.code == 3, "of the device, which is not there: nothing is wrong before it"
    else:
        assert set(arguments) <= set(re.findall(r"--\w+", (SCRIPT.parent / script).read_text()))


def test_what_interrupts_ends_the_script_and_its_children(on_gpu, tmp_path, monkeypatch):
    script(tmp_path, "stuck", STUCK)
    started = []

    class Interrupted(subprocess.Popen):
        def communicate(self, *words, **named):
            started.append(self)
            self.stdout.readline()  # it has begun
            raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(on_gpu, monkeypatch, [("stuck", 60)])
    assert started[0].wait(timeout=10) == -signal.SIGKILL
    assert not started[0].stdout.read(), "the child, which holds the pipe too, has ended"
