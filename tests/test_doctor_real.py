"""The doctor as a process on this machine, healthy and made ill in the ways users meet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import accel
from accel.doctor.checks.common import MINIMUM_NUMPY, MINIMUM_TORCH
from accel.simulate.package import installation_directory

REPOSITORY = Path(__file__).parents[1]
IMPORT_ROOT = Path(accel.__file__).parents[1]
MEND = "export TORCH_DEVICE_BACKEND_AUTOLOAD=0"


def environment(path: Path | None = None, **variables: str) -> dict[str, str]:
    """This process's environment with a directory in front of the import path."""
    parts = [str(path) if path else "", os.environ.get("PYTHONPATH", "")]
    joined = os.pathsep.join(part for part in parts if part)
    return {**os.environ, **({"PYTHONPATH": joined} if joined else {}), **variables}


def doctor(*options: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accel", "doctor", *options]
    return checked(subprocess.run(command, capture_output=True, text=True, env=env, timeout=120))


def checked(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Whatever the machine is like, nobody is shown a traceback."""
    assert "Traceback" not in result.stderr
    assert result.stdout.startswith("{") or "Traceback" not in result.stdout
    return result


def document(*options: str, env: Mapping[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    result = doctor("--json", *options, env=env)
    assert result.stderr == ""
    data: dict[str, Any] = json.loads(result.stdout)
    assert data["status"] == result.returncode
    return result.returncode, data


def findings(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["id"]: finding for finding in data["findings"]}


def stub_torch(directory: Path, source: str) -> Path:
    """A package named torch in front of the real one."""
    (directory / "torch").mkdir()
    (directory / "torch" / "__init__.py").write_text(source)
    return directory


def fake_plugin(directory: Path, entry_points: str) -> Path:
    """A distribution with entry points."""
    metadata = directory / "acme_plugin-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-plugin\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    return directory


@pytest.fixture
def torch_npu_without_cann() -> Path:
    """The directory with torch_npu that ci/setup made, beside the environment's packages."""
    directory = installation_directory()
    assert (directory / "torch_npu").is_dir(), "ci/setup installs it: accel simulate --install"
    return directory


def test_healthy_machine() -> None:
    started = time.monotonic()
    result = doctor()
    assert time.monotonic() - started < 30  # about 3 s; a probe that runs to its limit takes 60
    assert result.returncode == 0
    assert result.stderr == ""
    assert re.match(r"accel doctor: all well; usable: cpu", result.stdout)
    assert re.search(r"^  cpu +ok ", result.stdout, re.MULTILINE)
    assert "\x1b" not in result.stdout


def test_torch_npu_without_cann(torch_npu_without_cann: Path) -> None:
    result = doctor(env=environment(torch_npu_without_cann))
    assert result.returncode == 1
    assert "[torch-npu-without-cann]" in result.stdout
    assert "libhccl.so" in result.stdout
    assert "source /usr/local/Ascend/cann/set_env.sh" in result.stdout
    assert "/usr/local/Ascend/ascend-toolkit/set_env.sh" in result.stdout
    assert f"{sys.executable} -m pip uninstall torch-npu" in result.stdout
    assert MEND in result.stdout
    assert "tried, it works" in result.stdout


def test_the_verified_mend_mends(torch_npu_without_cann: Path) -> None:
    name, _, value = MEND.removeprefix("export ").partition("=")
    status, data = document(env=environment(torch_npu_without_cann, **{name: value}))
    assert status == 0
    found = {identifier: f["severity"] for identifier, f in findings(data).items()}
    assert found == {"torch-npu-without-cann": "warning", "autoload-off": "note"}
    assert [(d["device"], d["usable"]) for d in data["devices"]] == [("cpu", True)]
    assert data["facts"]["torch"]["version"].startswith("2.")


def test_cann_found_but_not_sourced(torch_npu_without_cann: Path, tmp_path: Path) -> None:
    script = tmp_path / "Ascend" / "cann" / "set_env.sh"
    script.parent.mkdir(parents=True)
    script.touch()
    status, data = document(env=environment(torch_npu_without_cann, HOME=str(tmp_path)))
    assert status == 1
    (finding,) = data["findings"]
    assert (finding["id"], finding["severity"]) == ("cann-not-sourced", "error")
    assert "ImportError: libhccl.so" in finding["traceback"]
    mends = {mend["command"]: mend["verified"] for mend in finding["mends"]}
    assert mends[f"source {script}"] is None
    assert mends[MEND] is True
    assert data["facts"]["torch"]["imported"] is False
    assert data["facts"]["torch_without_plugins"]["imported"] is True
    assert data["smoke_tests"][0]["setting"] == MEND.removeprefix("export ")


@pytest.mark.parametrize(
    ("source", "options", "expected", "words"),
    [
        ("raise ImportError('libtorch_cpu.so: gone')", (), "torch-broken", "libtorch_cpu.so: gone"),
        ("raise ImportError(\"No module named 'torch'\")", (), "torch-missing", "no package"),
        ("import os; os.abort()", (), "torch-crashes", "SIGABRT"),
        ("import time; time.sleep(600)", ("--timeout", "1"), "torch-hangs", "import torch"),
        ("while True: print('x' * 9999)", ("--timeout", "1"), "torch-hangs", "import torch"),
        ("import sys; sys.exit(0)", (), "torch-broken", "SystemExit"),
        ("import os; os._exit(0)", (), "torch-garbled", "without a result"),
        ("import os; os._exit(7)", (), "torch-broken", "exit status 7"),
        ("", (), "torch-broken", "has no attribute '__version__'"),
    ],
)
def test_stub_torch(
    tmp_path: Path, source: str, options: tuple[str, ...], expected: str, words: str
) -> None:
    started = time.monotonic()
    status, data = document(*options, env=environment(stub_torch(tmp_path, source)))
    assert time.monotonic() - started < 30
    assert status == 1
    found = findings(data)
    assert expected in found
    assert words in found[expected]["why"]
    assert data["smoke_tests"] == []
    assert "no device is usable" in data["verdict"]


def test_interpreter_without_torch() -> None:
    """`-I -S` hides site-packages; the probes have to see what the doctor itself sees."""
    program = (
        f"import sys; sys.path.insert(0, {str(IMPORT_ROOT)!r}); from accel.cli.doctor import *; "
        "parser = argparse.ArgumentParser(); add_arguments(parser); "
        "sys.exit(run(parser.parse_args()))"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    result = checked(subprocess.run(command, capture_output=True, text=True, timeout=60))
    assert result.returncode == 1
    assert "[torch-missing]" in result.stdout
    assert "[numpy-missing]" in result.stdout
    assert f"{sys.executable} -m pip install 'torch>={MINIMUM_TORCH}'" in result.stdout


def test_broken_plugins_of_both_kinds(tmp_path: Path) -> None:
    """One that kills `import torch`, and one of Accel's own that raises."""
    (tmp_path / "acme_torch.py").write_text("import os\ndef autoload():\n    os.abort()\n")
    (tmp_path / "acme_accel.py").write_text("raise OSError('libacme.so: file too short')\n")
    groups = "[torch.backends]\nacme = acme_torch:autoload\n[accel.devices]\nacme = acme_accel:A\n"
    status, data = document(env=environment(fake_plugin(tmp_path, groups)))
    assert status == 1
    found = findings(data)
    assert set(found) == {"torch-backend-failed", "accel-plugin-failed"}
    backend, ours = found["torch-backend-failed"], found["accel-plugin-failed"]
    assert "acme (acme-plugin)" in backend["what"]
    assert "SIGABRT" in backend["why"]
    assert backend["mends"][0] == {
        "command": MEND,
        "effect": "go on without the plugin, on cpu",
        "verified": True,
    }
    assert "accel.devices plugin acme (acme-plugin)" in ours["what"]
    assert "OSError: libacme.so: file too short" in ours["why"]
    assert "acme_accel.py" in ours["traceback"]
    assert [m["command"] for m in ours["mends"]] == [
        f"{sys.executable} -m pip install --upgrade acme-plugin",
        f"{sys.executable} -m pip uninstall acme-plugin",
    ]
    assert data["smoke_tests"][0]["ok"]


def test_damaged_metadata(tmp_path: Path) -> None:
    """A dist-info cut off in the middle stops `import torch`, here as torch does it."""
    path = fake_plugin(tmp_path, "[torch.backends]\nacme\n")
    reads = "import importlib.metadata; importlib.metadata.entry_points(group='torch.backends')"
    status, data = document(env=environment(stub_torch(path, reads)))
    assert status == 1
    command = findings(data)["metadata-broken"]["mends"][0]["command"]
    assert command == f"rm -r {tmp_path / 'acme_plugin-1.0.dist-info'}"
    assert findings(data)["metadata-broken"]["severity"] == "error"


def test_torch_takes_the_allocator_variable_the_doctor_says() -> None:
    """Pins what `alloc-conf-ignored` claims to the torch that is installed."""
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    program = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    settings = {name: f"max_split_size_mb:{64 + i}" for i, name in enumerate(names)}
    command = [sys.executable, "-c", program]
    env = environment(**settings)
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert result.stdout.strip() == settings[names[0]]


@pytest.mark.parametrize("options", [("--timeout", "0"), ("--timeout", "x"), ("--nonsense",)])
def test_wrong_usage(options: tuple[str, ...]) -> None:
    result = doctor(*options)
    assert result.returncode == 2
    assert "usage: accel" in result.stderr


def test_oldest_supported_releases_are_those_of_the_package() -> None:
    pyproject = (REPOSITORY / "pyproject.toml").read_text()
    assert f'"torch>={MINIMUM_TORCH}"' in pyproject
    assert f'"numpy>={MINIMUM_NUMPY}"' in pyproject


def test_nothing_of_the_doctor_imports_torch_or_numpy() -> None:
    program = (
        "import importlib, pkgutil, sys, accel.cli.doctor, accel.doctor as d;"
        "names = [m.name for m in pkgutil.walk_packages(d.__path__, 'accel.doctor.')];"
        "assert len(names) > 15, names;"
        "[importlib.import_module(name) for name in names];"
        "sys.exit(str({'torch', 'numpy', 'safetensors'} & set(sys.modules) or ''))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stderr.strip() == ""
