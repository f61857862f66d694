from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from accel.report import check_writable, files, write_atomically


def test_text_and_bytes_are_written_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", "grün\n")
    write_atomically(str(tmp_path / "b.bin"), b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "grün\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.bin"]


def test_a_failing_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*a\.txt: No space left on device"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("write", [check_writable, lambda path: write_atomically(path, "x")])
def test_unwritable_places_are_named(tmp_path: Path, write: object) -> None:
    assert callable(write)
    with pytest.raises(OSError, match=r"cannot write .*missing/a\.txt: No such file"):
        write(tmp_path / "missing" / "a.txt")
    with pytest.raises(OSError, match=r"cannot write .*irectory"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_check_writable_leaves_nothing_and_accepts_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    check_writable(tmp_path / "a")
    check_writable(tmp_path / "b")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_a_link_keeps_pointing_at_the_written_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "x"


def test_a_device_is_written_directly() -> None:
    check_writable("/dev/null")
    write_atomically("/dev/null", "x")
    assert not Path("/dev/null").is_file()


def test_the_umask_decides_who_may_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_the_package_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None\n"
        "import accel.report, accel.cli.compare\n"
        "from accel.report import html, svg, text, Progress\n"
        "print(html.page('t', [svg.error_plot([svg.Series('a', [1.0])])])[:15])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "<!doctype html>\n"
