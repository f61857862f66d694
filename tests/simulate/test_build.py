"""Compiling the runtime: once per content, privately, for whoever comes first."""

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from accel import DeviceError
from accel.simulate import build

# Without optimising, which takes most of the time; what is simulated is compiled as it is.
QUICK = (*build._FLAGS, "-O0")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_FLAGS", QUICK)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "accel"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_FLAGS", QUICK)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("compiled")))
        return build.runtime_directory()


@pytest.fixture
def directory(cache, compiled, monkeypatch):
    """The compiled runtime in a cache of this test's own."""
    cache.mkdir(mode=0o700)
    shutil.copytree(compiled, cache / compiled.name)
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled twice"))
    assert build.runtime_directory() == cache / compiled.name
    return cache / compiled.name


def test_it_is_compiled_once_and_kept_private(cache, monkeypatch):
    first = build.runtime_directory()
    assert first.parent == cache
    assert {path.name for path in first.glob("*.so")} == {build.MAIN, *build.OTHERS}
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled twice"))
    assert build.runtime_directory() == first
    assert os.listdir(cache) == [first.name], "nothing else is left"


def test_other_content_is_compiled_anew(cache, compiled, monkeypatch):
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-DOTHER"))
    assert build.runtime_directory().name != compiled.name


def test_several_at_once(cache):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: build.runtime_directory(), range(3)))
    assert len(set(found)) == 1
    assert os.listdir(cache) == [found[0].name]


def test_it_compiles_without_a_warning(tmp_path):
    sources = sorted(map(str, build.SOURCES.glob("*.c")))
    command = [*build._compiler(), *build._FLAGS, "-Werror", *sources, "-o", tmp_path / "x.so"]
    result = subprocess.run([*command, *build._LIBRARIES], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(cache, tmp_path, monkeypatch):
    compiler = tmp_path / "bad-cc"
    compiler.write_text("#!/bin/sh\necho 'stdint.h: not found' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(DeviceError, match=r"stdint\.h: not found"):
        build.runtime_directory()
    assert os.listdir(cache) == []


def test_a_compiler_that_is_named_and_not_there(cache, monkeypatch):
    monkeypatch.setenv("CC", "/nonexistent/cc -m64")
    with pytest.raises(DeviceError, match="/nonexistent/cc"):
        build.runtime_directory()


def test_options_in_cc(cache, monkeypatch):
    monkeypatch.setenv("CC", "cc -g0")
    assert build.runtime_directory().is_dir()


def test_a_damaged_cache_is_named(directory):
    (directory / build.OTHERS[0]).unlink()
    with pytest.raises(DeviceError, match=f"lacks {build.OTHERS[0]}"):
        build.runtime_directory()


def test_a_link_in_the_cache_is_refused(directory, tmp_path):
    directory.rename(tmp_path / "elsewhere")
    directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match="is a link"):
        build.runtime_directory()


def test_a_cache_that_others_can_write_is_refused(cache, directory):
    cache.chmod(0o777)
    with pytest.raises(DeviceError, match="writable by others"):
        build.runtime_directory()


def test_no_compiler(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(DeviceError, match="no C compiler"):
        build.runtime_directory()


def test_a_directory_that_others_can_write_is_refused(directory):
    directory.chmod(0o777)
    with pytest.raises(DeviceError, match="writable by others"):
        build.runtime_directory()


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="XDG_CACHE_HOME"):
        build.runtime_directory()


def test_another_system(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(DeviceError, match="needs Linux"):
        build.runtime_directory()
