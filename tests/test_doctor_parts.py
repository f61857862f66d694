"""The doctor's parts: processes, the probe protocol, the machine, the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel.doctor import LocalMachine, probe_script
from accel.doctor.ascend import parse_table
from accel.doctor.machine import READ_LIMIT, normalised
from accel.doctor.probe import MARK, parse_events, understand
from accel.doctor.process import OUTPUT_LIMIT, Completed, run_command
from accel.doctor.torch_facts import base, release, torch_facts


def python(source: str, timeout: float = 30.0) -> Completed:
    return run_command([sys.executable, "-I", "-S", "-c", source], timeout, os.environ)


def test_a_process_that_ends_well() -> None:
    result = python("import sys; print('out'); print('first\\nlast', file=sys.stderr)")
    assert (result.returncode, result.stdout, result.timed_out) == (0, "out\n", False)
    assert result.last_line == "last"
    assert result.crashed_by == ""


def test_a_process_killed_by_a_signal() -> None:
    assert python("import os; os.abort()").crashed_by == "SIGABRT"
    assert Completed(-200).crashed_by == "signal 200"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    result = run_command([str(tmp_path / "nothing")], 1.0, {})
    assert result.returncode is None
    assert "FileNotFoundError" in result.refused


def test_a_hanging_process_is_killed_with_its_children(tmp_path: Path) -> None:
    """The child keeps the pipes open: reading to their end would wait for it."""
    alive = tmp_path / "alive"
    child = f"import pathlib, time; time.sleep(3); pathlib.Path({str(alive)!r}).touch()"
    source = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]);"
        "print('started', flush=True); time.sleep(600)"
    )
    started = time.monotonic()
    result = python(source, timeout=1.0)
    assert result.timed_out
    assert result.returncode is None
    assert result.stdout == "started\n"
    time.sleep(max(0.0, 3.5 - (time.monotonic() - started)))
    assert not alive.exists()


def test_a_daemon_left_behind_does_not_hold_the_doctor_up() -> None:
    source = (
        "import subprocess, sys; print('done');"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(5)'],"
        " start_new_session=True)"
    )
    started = time.monotonic()
    assert python(source).returncode == 0
    assert time.monotonic() - started < 4.8


def test_endless_output_is_kept_to_its_limit() -> None:
    result = python(f"print('x' * {OUTPUT_LIMIT * 4})")
    assert result.returncode == 0
    assert len(result.stdout) == OUTPUT_LIMIT


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_any_output_can_be_parsed(text: str) -> None:
    for event in parse_events(f"{MARK}{text}\n{text}"):
        assert isinstance(event["event"], str)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["build", "numpy", "devices", "smoke", "stage", "error", "done"]),
            st.dictionaries(
                st.sampled_from(
                    ["version", "names", "type", "warnings", "wrong", "seconds", "name", "device"]
                ),
                json_values,
            ),
        )
    )
)
def test_hostile_events_are_no_exception(events: list[tuple[str, dict[str, Any]]]) -> None:
    lines = [json.dumps({**fields, "event": name}) for name, fields in events]
    completed = Completed(0, "".join(f"{MARK}{line}\n" for line in lines))
    facts = torch_facts(understand("torch", completed, {}))
    assert isinstance(facts.version, str)
    assert len(facts.devices) == len(facts.device_names)


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="|+=-0123456789:.AOK \n/"))
def test_any_npu_smi_output_can_be_read(text: str) -> None:
    assert all(npu.card >= 0 for npu in parse_table(text))


def test_the_probe_marks_its_lines_whatever_was_printed_before() -> None:
    assert probe_script.MARK == MARK
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        print("no newline at the end", end="")
        probe_script.emit("stage", name="x")
    assert parse_events(out.getvalue()) == ({"event": "stage", "name": "x"},)


def smoke_events(torch: Any, device: str) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        probe_script.smoke(torch, device)
    return parse_events(out.getvalue())[-1]


def test_the_smoke_test_is_exact_and_sees_a_wrong_number() -> None:
    import torch

    assert smoke_events(torch, "cpu")["ok"] is True

    class Off(torch.autograd.Function):
        """A matmul whose forward is right and whose left gradient is one too large somewhere."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x, y)
            return x.matmul(y)

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, y = ctx.saved_tensors
            left = grad.matmul(y.T)
            left[-1, -1] += 1
            return left, x.T.matmul(grad)

    class Faulty:
        float32 = torch.float32

        @staticmethod
        def tensor(*args: Any, **kwargs: Any) -> Any:
            plain = torch.tensor(*args, **kwargs)
            return Operand(plain) if plain.requires_grad else plain

    class Operand:
        def __init__(self, plain: torch.Tensor) -> None:
            self.plain = plain

        def __matmul__(self, other: Operand) -> Any:
            return Off.apply(self.plain, other.plain)  # type: ignore[no-untyped-call]

        @property
        def grad(self) -> torch.Tensor | None:
            return self.plain.grad

    event = smoke_events(Faulty, "cpu")
    assert (event["ok"], event["wrong"]) == (False, ["gradient of the left factor"])


def test_smoke_numbers_are_exact_in_every_format() -> None:
    """At most 3 in magnitude going in, so that 8-bit floats hold them; sums below 2 ** 8."""
    left, right = probe_script.integers(4, 6, 2), probe_script.integers(6, 5, 4)
    values = [v for matrix in (left, right) for row in matrix for v in row]
    assert set(values) == {-3, -2, -1, 0, 1, 2, 3}
    assert all(abs(v) < 2**8 for row in probe_script.product(left, right) for v in row)


@pytest.mark.parametrize(
    ("version", "numbers", "plain"),
    [
        ("2.7.1.post4", (2, 7, 1), "2.7.1"),
        ("2.13.0+cpu", (2, 13, 0), "2.13.0"),
        ("2.14.0a0+git12", (2, 14, 0), "2.14.0"),
        ("unknown", (), ""),
        ("", (), ""),
    ],
)
def test_versions(version: str, numbers: tuple[int, ...], plain: str) -> None:
    assert release(version) == numbers
    assert base(version) == plain


def test_files_of_a_machine(tmp_path: Path) -> None:
    machine = LocalMachine(tmp_path)
    (tmp_path / "dev").mkdir()
    for name in ("davinci10", "davinci2", "davinci_manager"):
        (tmp_path / "dev" / name).touch()
    (tmp_path / "big").write_bytes(b"\xff" * (READ_LIMIT + 1))
    assert machine.glob("/dev/davinci[0-9]*") == ["/dev/davinci10", "/dev/davinci2"]
    assert machine.exists("/dev/davinci2")
    assert machine.read("/nothing") is None
    assert machine.read("/dev") is None
    assert machine.read("/big") == "\ufffd" * READ_LIMIT
    assert normalised("Torch_NPU") == normalised("torch.npu") == "torch-npu"


def on_terminal(tmp_path: Path, **variables: str) -> str:
    """What a terminal shows of the doctor on a machine whose torch raises."""
    (tmp_path / "torch").mkdir(exist_ok=True)
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('gone')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # how a terminal tells that nobody writes any more
            while chunk := os.read(ours, 4096):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    command = [sys.executable, "-m", "accel", "doctor"]
    env = {**plain, "PYTHONPATH": path, **variables}
    status = subprocess.run(command, stdout=theirs, stderr=theirs, env=env, timeout=60).returncode
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert status == 1
    return shown.decode()


def test_terminal_shows_colours_and_progress(tmp_path: Path) -> None:
    shown = on_terminal(tmp_path)
    assert "accel doctor: torch ..." in shown
    assert "\x1b[31;1m" in shown
    assert "\r\x1b[K\x1b[31;1maccel doctor: " in shown  # the progress line is gone by then


def test_interrupting_stops_the_probes(tmp_path: Path) -> None:
    started, survived = tmp_path / "started", tmp_path / "survived"
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(1.5)\n"
        f"pathlib.Path({str(survived)!r}).touch(); time.sleep(600)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    process = subprocess.Popen(
        [sys.executable, "-m", "accel", "doctor"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "\naccel doctor: interrupted\n"
    time.sleep(1.7)
    assert not survived.exists()


def run_with_stub(
    tmp_path: Path, stdout: Any, **variables: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('caf\\u00e9 \\u65cf')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", "accel", "doctor"]
    env = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env, timeout=60
    )


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = run_with_stub(tmp_path, full)
    assert result.returncode == 2
    assert "cannot write the report" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    result = run_with_stub(tmp_path, subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (1, "")
    assert "caf? ?" in result.stdout


def test_no_color_is_respected(tmp_path: Path) -> None:
    assert "\x1b[3" not in on_terminal(tmp_path, NO_COLOR="1")
