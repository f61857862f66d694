"""`accel simulate` as a command: its messages, what reaches the program, what comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

from tests.simulate.conftest import PLACES, Simulate, environment_with

PYTHON = sys.executable
SITE = str(Path(pytest.__file__).parents[1])


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that could not start."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("accel simulate: ")
    return result.stderr.removeprefix("accel simulate: ").rstrip()


def other_python(tmp_path: Path) -> str:
    """A Python without packages of its own, and so without torch-npu beside them."""
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    return str(home / "bin" / "python")


# --- what is wrong is said in one line ------------------------------------------------------------


def test_without_a_c_compiler(simulate: Simulate, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    nothing = str(tmp_path / "empty")
    said = refusal(simulate("--", PYTHON, PATH=nothing, CC="", XDG_CACHE_HOME=nothing))
    assert "found no C compiler (cc, gcc or clang" in said
    assert "apt-get install gcc" in said


def test_without_torch_npu(simulate: Simulate, tmp_path: Path) -> None:
    path = os.pathsep.join([*PLACES, SITE])
    said = refusal(simulate("--", PYTHON, python=other_python(tmp_path), PYTHONPATH=path))
    assert said.startswith("torch-npu is not installed: `accel simulate --install` puts torch-npu")
    assert str(tmp_path / "environment" / "torch-npu") in said


def test_without_torch(simulate: Simulate, tmp_path: Path) -> None:
    path = os.pathsep.join(PLACES)
    said = refusal(simulate("--", PYTHON, python=other_python(tmp_path), PYTHONPATH=path))
    assert said.startswith("torch is not installed for ")


def test_with_the_torch_npu_of_another_torch(simulate: Simulate, tmp_path: Path) -> None:
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu/__init__.py").write_text("")
    (tmp_path / "torch_npu-2.1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.1.0.post3\n"
    (tmp_path / "torch_npu-2.1.0.dist-info/METADATA").write_text(metadata)
    said = refusal(simulate("--", PYTHON, PYTHONPATH=os.pathsep.join([str(tmp_path), *PLACES])))
    assert said.startswith("torch-npu 2.1.0.post3 does not match torch 2.")
    assert "`accel simulate --install`" in said


def test_with_a_torch_npu_that_is_no_package(simulate: Simulate, tmp_path: Path) -> None:
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu/__init__.py").write_text("")
    said = refusal(simulate("--", PYTHON, PYTHONPATH=os.pathsep.join([str(tmp_path), *PLACES])))
    assert said.startswith("there is a module torch_npu without the package torch-npu")


def test_where_a_real_cann_is(simulate: Simulate, tmp_path: Path) -> None:
    said = refusal(simulate("--", PYTHON, ASCEND_HOME_PATH=str(tmp_path)))
    assert said.startswith(f"CANN is set up here (ASCEND_HOME_PATH={tmp_path})")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--chip", "910Z", "--", PYTHON], "910Z"),
        (["--chip", "910B", "--", PYTHON], "'910B' may mean two generations"),
        (["--memory", "lots", "--", PYTHON], "'lots' is no size; write 8G, 512M"),
        (["--devices", "17", "--", PYTHON], "17 simulated devices: 1 to 16 are possible"),
        (["--devices", "0", "--", PYTHON], "0 simulated devices: 1 to 16 are possible"),
        (["--"], "no command is given: accel simulate [options] -- python train.py"),
        ([], "no command is given: accel simulate [options] -- python train.py"),
        (["--report", "no/where.json", "--", PYTHON], "cannot write no/where.json"),
        (["--html", "no/where.html", "--", PYTHON], "cannot write no/where.html"),
        (["--report", "a;b.json", "--", PYTHON], "a report path cannot hold a semicolon"),
        (["--", "no-such-program"], "cannot run 'no-such-program': No such file or directory"),
    ],
)
def test_wrong_arguments(simulate: Simulate, arguments: list[str], expected: str) -> None:
    assert expected in refusal(simulate(*arguments))


def test_a_task_queue_is_refused(simulate: Simulate) -> None:
    assert "TASK_QUEUE_ENABLE=1" in refusal(simulate("--", PYTHON, TASK_QUEUE_ENABLE="1"))


def test_the_chips_are_listed(simulate: Simulate) -> None:
    result = simulate("--list-chips")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[2:]]
    assert ["910B2", "A2", "64", "yes", "no"] in rows
    assert ["910A", "910", "32", "no", "no"] in rows


# --- what reaches the program ---------------------------------------------------------------------


def test_the_program_and_its_children_have_the_chips(simulate: Simulate, tmp_path: Path) -> None:
    """The chosen chips, the program's own arguments and sitecustomize, in every process."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/sitecustomize.py").write_text("import sys; sys.customized = 'by the user'\n")
    (tmp_path / "program.py").write_text(
        textwrap.dedent(
            """
            import multiprocessing, subprocess, sys

            def facts():
                import torch
                memory = torch.npu.get_device_properties(0).total_memory
                print(torch.npu.device_count(), torch.npu.get_device_name(1), memory,
                      sys.customized, flush=True)
                print(torch.ones(3, device="npu:1").sum().item(), flush=True)

            if __name__ == "__main__":
                print(sys.argv[1:], flush=True)
                facts()
                child = multiprocessing.get_context("spawn").Process(target=facts)
                child.start()
                child.join()
                subprocess.run([sys.executable, "-c", "import program; program.facts()"])
                sys.exit(7)
            """
        )
    )
    given = ["--devices", "3", "--", "-x"]
    path = os.pathsep.join([*PLACES, str(tmp_path / "own")])
    result = simulate(
        *("--chip", "950", "--devices", "2", "--memory", "1G", "--"),
        *(PYTHON, "program.py", *given),
        PYTHONPATH=path,
    )
    assert result.returncode == 7, result.stderr
    fact = f"2 Ascend950DT_9581 {2**30} by the user"
    assert result.stdout.splitlines() == [str(given), *([fact, "3.0"] * 3)]


def test_strict_refuses_a_dtype_that_the_table_does_not_list(simulate: Simulate) -> None:
    code = "import torch; x = torch.ones(2, 2, 2, dtype=torch.int64, device='npu'); torch.bmm(x, x)"
    strict = simulate("--strict", "--", PYTHON, "-c", code)
    assert strict.returncode == 1
    expected = (
        "RuntimeError: aten::bmm on int64 is not listed for the simulated Ascend910B2: torch.bmm"
    )
    assert expected in strict.stderr
    assert simulate("--", PYTHON, "-c", code).returncode == 0


# --- what comes back ------------------------------------------------------------------------------


def test_the_command_is_run_as_given(simulate: Simulate) -> None:
    assert simulate("--", "sh", "-c", "exit 3").returncode == 3
    assert simulate("--", "sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL
    result = simulate("sh", "-c", "echo $ACCEL_SIMULATE $TASK_QUEUE_ENABLE; echo no >&2")
    assert (result.stdout, result.stderr) == ("on 0\n", "no\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signals_reach_the_command(name: str, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        f"signal.signal(signal.{name}, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [PYTHON, "-m", "accel", "simulate", "--", PYTHON, "-c", code],
        env=environment_with(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # without a terminal, whose signals would reach both
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=30) == 9
