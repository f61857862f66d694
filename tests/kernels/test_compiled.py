"""C code compiled once per content; what goes wrong is said. See also tests/simulate/test_build."""

import ctypes
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from accel_kernels import compiled

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "accel"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "code").mkdir()
    path = tmp_path / "code" / "answer.c"
    path.write_text('#include "answer.h"\n__attribute__((visibility("default"))) int answer(void)'
                    " { return ANSWER; }\n")  # fmt: skip
    path.with_suffix(".h").write_text("#define ANSWER 42\n")
    return path


def answer(path: Path) -> int:
    return int(ctypes.CDLL(str(path)).answer())


def test_once_per_content(cache, source, monkeypatch) -> None:
    first = compiled.compiled_library(source, "the answer")
    assert answer(first) == 42
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700
    monkeypatch.setattr(compiled, "run_compiler", lambda *_: pytest.fail("compiled twice"))
    assert compiled.compiled_library(source, "the answer") == first
    assert os.listdir(cache) == [first.parent.name], "nothing else is left"


def test_what_it_includes_and_options_count(cache, source) -> None:
    first = compiled.compiled_library(source, "the answer")
    source.with_suffix(".h").write_text("#define ANSWER 43\n")
    second = compiled.compiled_library(source, "the answer")
    third = compiled.compiled_library(source, "the answer", ["-O1"])
    assert len({first, second, third}) == 3
    assert [answer(path) for path in (first, second, third)] == [42, 43, 43]


def test_the_compilers_own_words(cache, source) -> None:
    source.write_text("int answer(void) { return QUESTION; }\n")
    with pytest.raises(compiled.CompileError, match=r"could not compile the answer[^~]*QUESTION"):
        compiled.compiled_library(source, "the answer")
    assert os.listdir(cache) == []


def test_no_compiler(cache, source, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(
        compiled.CompileError, match=r"the answer is compiled on first use.*install"
    ):
        compiled.compiled_library(source, "the answer")
    monkeypatch.setenv("CC", "nothing-of-this-name -O1")
    with pytest.raises(compiled.CompileError, match=r"'nothing-of-this-name'.*unset CC"):
        compiled.compiled_library(source, "the answer")


def test_what_others_can_write_is_not_loaded(cache, source) -> None:
    directory = compiled.compiled_library(source, "the answer").parent
    directory.chmod(0o770)
    with pytest.raises(compiled.CompileError, match="writable by others"):
        compiled.compiled_library(source, "the answer")
    directory.chmod(0o700)
    cache.chmod(0o777)
    with pytest.raises(compiled.CompileError, match="writable by others"):
        compiled.compiled_library(source, "the answer")


def test_a_damaged_cache_is_named(cache, source) -> None:
    path = compiled.compiled_library(source, "the answer")
    path.unlink()
    with pytest.raises(compiled.CompileError, match=r"lacks answer\.so: remove it"):
        compiled.compiled_library(source, "the answer")


def test_another_system(cache, source, monkeypatch) -> None:
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(compiled.CompileError, match="POSIX systems only"):
        compiled.compiled_library(source, "the answer")


def test_it_imports_no_torch() -> None:
    code = "import sys, accel_kernels.compiled, accel.simulate.build; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
