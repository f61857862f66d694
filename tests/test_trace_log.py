"""The log of a traced program: what is counted, by which line, in which process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accel.convert import traced
from accel.convert.traced import TracedCall, read_log
from accel.tracing import parts
from accel.tracing.settings import Settings, parse_settings
from accel.tracing.summary import to_text
from tests.trace_running import ROOT, environment_with, trace, trace_program


def test_calls_are_counted_by_the_line_that_made_them(tmp_path) -> None:
    package = tmp_path / "site-packages" / "helpers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def put(tensor):\n    return tensor.cuda()\n")
    result = trace_program(
        tmp_path,
        """\
        import sys
        sys.path.insert(0, "site-packages")
        import torch, helpers
        for step in range(3):
            x = (
                torch.ones(2)
                .cuda(non_blocking=True)
            )
        helpers.put(x)
        exec("x.to(\\n'cuda:0')")
        name = "cu" + "da"
        getattr(torch, name).synchronize(); getattr(x, name)()
        layer = torch.nn.Linear(2, 2, device="cuda")
        list(map(torch.Tensor.cuda, [x, x]))
        """,
    )
    found = {
        (call.path, call.line, call.api, call.given, call.redirected_to, call.package): call.count
        for call in result.calls
    }
    library = os.path.join("site-packages", "helpers", "__init__.py")
    # Python before 3.11 knows no more of a call than the line it starts on.
    split = 7 if sys.version_info >= (3, 11) else 6
    assert found == {
        ("program.py", split, "torch.Tensor.cuda", "", "cpu", ""): 3,
        (library, 2, "torch.Tensor.cuda", "", "cpu", "helpers"): 1,
        ("<string>", 1, "torch.Tensor.to", "cuda:0", "cpu", ""): 1,
        ("program.py", 12, "torch.cuda.synchronize", "", "accel.synchronize", ""): 1,
        ("program.py", 12, "torch.Tensor.cuda", "", "cpu", ""): 1,
        ("program.py", 13, "torch.empty", "cuda", "cpu", ""): 2,
        ("program.py", 14, "torch.Tensor.cuda", "", "cpu", ""): 2,
    }
    assert "CUDA calls: 11 from 6 lines, in 1 process, to cpu" in result.errors


def test_the_example_of_the_page_is_what_is_printed(tmp_path) -> None:
    page = (ROOT / "docs/trace.md").read_text()
    (program,) = re.findall(r"```\n(import torch\n.*?)```", page, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(program)
    result = trace(tmp_path, sys.executable, "train.py")
    assert result.output == "cpu 0\n"
    assert printed in result.errors


def test_children_by_fork_and_spawn_and_threads_are_in_it(tmp_path) -> None:
    result = trace_program(
        tmp_path,
        """
        import multiprocessing, os, sys, threading, torch
        from torch.utils.data import DataLoader, Dataset

        class Items(Dataset):
            def __len__(self): return 2
            def __getitem__(self, index): return torch.ones(1).to(f"cuda:{index}")

        def work(): torch.ones(1).cuda()

        if __name__ == "__main__":
            work()
            list(DataLoader(Items(), num_workers=1))
            for method in ("fork", "spawn"):
                child = multiprocessing.get_context(method).Process(target=work)
                child.start(); child.join(); assert child.exitcode == 0
            pid = os.fork()
            if pid == 0:
                work(); sys.exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            thread = threading.Thread(target=work); thread.start(); thread.join()
        """,
    )
    assert {(call.given, call.count) for call in result.of("torch.Tensor.to")} == {
        ("cuda:0", 1), ("cuda:1", 1),
    }  # fmt: skip
    assert sum(call.count for call in result.of("torch.Tensor.cuda")) == 5
    assert result.notes == ()


def test_the_log_is_whole_after_an_exception_and_the_status_is_the_program_s(tmp_path) -> None:
    (tmp_path / "program.py").write_text("import torch\ntorch.cuda.init()\nraise SystemExit(7)\n")
    assert trace(tmp_path, sys.executable, "program.py").status == 7
    (tmp_path / "program.py").write_text("import torch\ntorch.cuda.init()\nraise KeyError('x')\n")
    result = trace(tmp_path, sys.executable, "program.py")
    assert result.status == 1
    assert "KeyError" in result.errors
    assert [(call.line, call.count) for call in result.calls] == [(2, 1)]


def test_a_killed_process_is_named(tmp_path) -> None:
    code = "import os, torch\ntorch.cuda.init()\nos.kill(os.getpid(), 9)\n"
    (tmp_path / "program.py").write_text(code)
    result = trace(tmp_path, sys.executable, "program.py")
    assert result.status == 128 + signal.SIGKILL
    assert [call.api for call in result.calls] == ["torch.cuda.init"]
    assert re.fullmatch(r"process \d+ was killed .* its end is missing", *result.notes)


def test_a_program_without_torch_is_left_alone(tmp_path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text("import sys\nsys.hidden_ran = True\n")
    code = """
        import sys
        assert sys.hidden_ran, "the environment's own sitecustomize did not run"
        accel = {name for name in sys.modules if name.startswith("accel")}
        assert accel <= {"accel", "accel._version", "accel.errors", "accel.tracing",
                         "accel.tracing.hook"}, accel
        assert "torch" not in sys.modules and "json" not in sys.modules
        """
    places = environment_with()["PYTHONPATH"]
    hidden = os.pathsep.join([places, str(tmp_path / "hidden")])
    result = trace_program(tmp_path, code, PYTHONPATH=hidden)
    assert result.calls == ()
    assert result.notes == (
        "no process of the program imported torch, so that nothing was redirected",
    )


def test_the_import_of_torch_looks_as_it_does_without_the_shim(tmp_path) -> None:
    trace_program(
        tmp_path,
        """
        import importlib, importlib.machinery, importlib.resources, inspect, torch
        assert isinstance(torch.__loader__, importlib.machinery.SourceFileLoader)
        assert torch.__spec__.loader is torch.__loader__
        assert inspect.getsource(torch.typename) and importlib.resources.files("torch").is_dir()
        assert torch.Tensor.to.__name__ == "to" and torch.zeros.__doc__.startswith("\\nzeros(")
        """,
    )


def test_signals_reach_the_program(tmp_path) -> None:
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    run = "import sys; from accel.trace import run_command; sys.exit(run_command(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", run, sys.executable, "-c", code],
        env=environment_with(),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 5


def test_what_cannot_be_started_is_said() -> None:
    from accel.trace import run_command

    with pytest.raises(ValueError, match="no program is given"):
        run_command([])
    with pytest.raises(OSError, match=r"cannot run '\./not-there'"):
        run_command(["./not-there"])
    with pytest.raises(OSError, match="cannot write /not-there/log"):
        run_command(["true"], "/not-there/log")
    with pytest.raises(ValueError, match="write a chip"):
        run_command(["true"], simulate="910B2:x")


def test_settings_travel_as_text() -> None:
    settings = Settings("/tmp/a", "/tmp/b", claim_cuda=False)
    assert parse_settings(settings.to_text()) == settings
    for text in ("on", "{}", '{"stem": 1, "directory": "", "claim_cuda": true}', "[]"):
        with pytest.raises(ValueError, match="ACCEL_TRACE"):
            parse_settings(text)


def test_parts_are_merged_and_a_broken_one_is_named(tmp_path) -> None:
    stem = parts.new_stem(str(tmp_path))
    call = parts.Call("a.py", 3, 3, "torch.cuda.init", "", "accel.init")
    for pid, dropped in ((2, 0), (1, 5)):
        process = parts.Process(pid, "", "a.py", "cpu", "2.13.0", ended=True, dropped=dropped)
        parts.write_part(parts.part_name(stem), parts.Part(process, (call,)))
    broken = parts.part_name(stem)
    with open(broken, "w") as file:
        file.write('{"process"')
    found, notes = parts.take_parts(stem)
    log = parts.merge(found, notes, command=["a"], directory="/", exit_status=0)
    assert [one.count for one in log.calls] == [2]
    assert [process.pid for process in log.processes] == [1, 2]
    assert len(log.notes) == 2
    assert os.path.basename(broken) in log.notes[0]
    assert "5 calls from more places" in log.notes[1]
    assert os.listdir(tmp_path) == []
    assert "in 2 processes, to cpu" in to_text(log)


def written(tmp_path, **changed: object) -> str:
    call = parts.Call("a.py", 3, 4, "torch.load", "cuda", "cpu", "", "a note", 2)
    log = parts.Log(("python", "a.py"), "/", 0, (), (call,), ())
    document = {**json.loads(log.to_text()), **changed}
    (tmp_path / "log.json").write_text(json.dumps(document))
    return str(tmp_path / "log.json")


def test_a_log_is_read_without_torch(tmp_path) -> None:
    path = written(tmp_path)
    assert read_log(path) == (
        TracedCall("a.py", 3, "torch.load", 2, "cpu", "", "a note", "cuda", 4),
    )
    assert (traced.SCHEMA, traced.SCHEMA_VERSION) == (parts.SCHEMA, parts.SCHEMA_VERSION)
    code = "import sys; from accel.convert import traced; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment_with(), check=True)


GOOD = {"path": "a", "line": 1, "end_line": 1, "api": "b", "given": "", "redirected_to": "c",
        "package": "", "note": "", "count": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"schema": "accel.numerics"}, '"schema" is not "accel.trace"'),
        ({"schema_version": 2}, "version is 2; this accel reads 1"),
        ({"schema_version": True}, "version is True"),
        ({"calls": {}}, 'no list "calls"'),
        ({"calls": ["x" * 100]}, "a call is 'xxx"),
        ({"calls": [{**GOOD, "line": -1}]}, '"line" of a call is -1 and no count'),
        ({"calls": [{**GOOD, "count": 0}]}, '"count" of a call is 0'),
        ({"calls": [{**GOOD, "count": True}]}, '"count" of a call is True'),
        ({"calls": [{**GOOD, "count": 1.5}]}, '"count" of a call is 1.5'),
        ({"calls": [{**GOOD, "path": None}]}, '"path" of a call is None and no text'),
        ({"calls": [GOOD, {}]}, '"path" of a call is None'),
    ],
)
def test_another_file_gives_one_clear_error(tmp_path, changed, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_log(written(tmp_path, **changed))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe", b'{"schema": "accel.trace"', b"[" * 100_000, b"1"]
)
def test_a_truncated_or_hostile_file_gives_one_clear_error(tmp_path, content: bytes) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is not a log of `accel convert trace`"):
        read_log(path)
    with pytest.raises(OSError, match="not-there"):
        read_log(tmp_path / "not-there")


def test_every_shortened_log_is_refused(tmp_path) -> None:
    path = Path(written(tmp_path))
    content = path.read_text()
    for length in range(0, len(content) - 1, 7):
        path.write_text(content[:length])
        with pytest.raises(ValueError, match="is not a log"):
            read_log(path)
