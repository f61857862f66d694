"""Writing: whole files, with their permissions, through links, never over what is not in git."""

import os
import subprocess

import pytest

from accel.convert import git, writing
from tests.convert_results import file, made

BEFORE, AFTER = b"x = 1\n", b"x = 2\n"


def change(path="a.py", **more):
    return file(path, BEFORE, AFTER, **more)


def in_git(root, files):
    made(root, files)
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(root), *identity, *command], check=True)
    return root


def left_behind(root):
    return [name for name in os.listdir(root) if name.startswith(".accel")]


def test_only_changed_files_are_written_with_their_permissions(tmp_path) -> None:
    made(tmp_path, {"a.py": BEFORE, "b.py": BEFORE})
    (tmp_path / "a.py").chmod(0o755)
    kept = (tmp_path / "b.py").stat().st_mtime_ns
    done = writing.write([(change(), tmp_path / "a.py"), (file("b.py", BEFORE), tmp_path / "b.py")])
    assert done == writing.Written(("a.py",), ())
    assert (tmp_path / "a.py").read_bytes() == AFTER
    assert (tmp_path / "a.py").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "b.py").stat().st_mtime_ns == kept


def test_a_link_stays_a_link(tmp_path) -> None:
    made(tmp_path, {"real/a.py": BEFORE})
    (tmp_path / "a.py").symlink_to("real/a.py")
    assert writing.write([(change(), tmp_path / "a.py")]).done == ("a.py",)
    assert os.readlink(tmp_path / "a.py") == "real/a.py"
    assert (tmp_path / "real/a.py").read_bytes() == AFTER


def test_a_read_only_file_is_as_it_was_and_the_others_are_written(tmp_path) -> None:
    made(tmp_path, {"a.py": BEFORE, "b.py": BEFORE})
    (tmp_path / "a.py").chmod(0o444)
    done = writing.write([(change(), tmp_path / "a.py"), (change("b.py"), tmp_path / "b.py")])
    assert done.done == ("b.py",)
    ((path, reason),) = done.failed
    assert path == "a.py"
    assert "read-only" in reason
    assert (tmp_path / "a.py").read_bytes() == BEFORE
    assert left_behind(tmp_path) == []


def test_a_file_that_changed_since_is_left(tmp_path) -> None:
    made(tmp_path, {"a.py": b"x = 3\n"})
    done = writing.write([(change(), tmp_path / "a.py")])
    assert "changed since" in done.failed[0][1]
    assert (tmp_path / "a.py").read_bytes() == b"x = 3\n"


@pytest.mark.parametrize(
    ("language", "before", "after", "word"),
    [
        ("python", b"x\n", b"x = (\n", "parse"),
        ("python", b"x\n", b"x\x00\n", "parse"),
        ("notebook", b"{}", b"{", "JSON"),
        ("json", b"{}", b"{", "JSON"),
    ],
)
def test_what_would_be_broken_is_not_written(tmp_path, language, before, after, word) -> None:
    made(tmp_path, {"a": before})
    done = writing.write([(file("a", before, after, language=language), tmp_path / "a")])
    assert word in done.failed[0][1]
    assert (tmp_path / "a").read_bytes() == before


def test_a_json_file_with_comments_may_be_written(tmp_path) -> None:
    made(tmp_path, {"a": b"{} // x"})
    one = file("a", b"{} // x", b"{} // y", language="json")
    assert writing.write([(one, tmp_path / "a")]).done == ("a",)


def test_a_full_disk_leaves_the_file(tmp_path, monkeypatch) -> None:
    made(tmp_path, {"a.py": BEFORE})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    done = writing.write([(change(), tmp_path / "a.py")])
    assert done.failed == (("a.py", "No space left on device"),)
    assert (tmp_path / "a.py").read_bytes() == BEFORE
    assert left_behind(tmp_path) == []


def test_an_interrupt_says_what_is_written_and_what_is_not(tmp_path, monkeypatch) -> None:
    made(tmp_path, dict.fromkeys(("a.py", "b.py", "c.py"), BEFORE))
    real = writing.replace

    def interrupted(target, data):
        real(target, data)
        if target.name == "b.py":
            raise KeyboardInterrupt

    monkeypatch.setattr(writing, "replace", interrupted)
    done = writing.write([(change(n), tmp_path / n) for n in ("a.py", "b.py", "c.py")])
    assert done.is_interrupted
    assert done.done == ("a.py", "b.py")
    assert done.failed == (("c.py", "interrupted before it was written"),)


def test_git_names_what_is_not_committed(tmp_path) -> None:
    root = in_git(tmp_path, {"a.py": BEFORE, "sub/[b].py": BEFORE, "sub/c.py": BEFORE})
    assert git.state([str(root)], [root / "a.py"]) == git.State((), ())
    (root / "sub/[b].py").write_bytes(AFTER)
    found = git.state([str(root)], [root / "a.py"])
    assert found.modified == (str(root / "sub/[b].py"),)
    assert git.state([str(root / "a.py")], [root / "a.py"]).modified == ()
    assert git.state([str(root / "sub/c.py")], [root / "sub/c.py"]).modified == ()
    assert git.state([str(root / "sub/[b].py")], [root / "sub/[b].py"]).modified


def test_git_counts_what_is_staged_and_what_is_deleted(tmp_path) -> None:
    root = in_git(tmp_path, {"a.py": BEFORE, "b.py": BEFORE})
    (root / "a.py").write_bytes(AFTER)
    subprocess.run(["git", "-C", str(root), "add", "a.py"], check=True)
    (root / "b.py").unlink()
    assert git.state([str(root)], [root / "a.py"]).modified == (
        str(root / "a.py"), str(root / "b.py"),
    )  # fmt: skip


def test_git_has_no_copy_of_what_is_new_or_elsewhere(tmp_path) -> None:
    root = in_git(tmp_path / "in", {"a.py": BEFORE})
    made(tmp_path, {"in/new.py": BEFORE, "out/c.py": BEFORE})
    files = [root / "a.py", root / "new.py", tmp_path / "out/c.py"]
    found = git.state([str(tmp_path)], files)
    assert found.modified == ()
    assert found.unprotected == (str(root / "new.py"), str(tmp_path / "out/c.py"))


def test_a_tree_of_its_own_within_a_tree_is_asked_itself(tmp_path) -> None:
    outer = in_git(tmp_path, {"a.py": BEFORE})
    inner = in_git(tmp_path / "inner", {"b.py": BEFORE})
    (inner / "b.py").write_bytes(AFTER)
    assert git.state([str(outer)], [outer / "a.py", inner / "b.py"]).modified == (
        str(inner / "b.py"),
    )


def test_git_that_does_not_answer_is_a_problem(tmp_path, monkeypatch) -> None:
    made(tmp_path, {".git/x": b"", "a.py": BEFORE})
    found = git.state([str(tmp_path)], [tmp_path / "a.py"])
    assert found.problem.startswith(f"git cannot be asked about {tmp_path}: fatal:")
    monkeypatch.setenv("PATH", "")
    assert "No such file" in git.state([str(tmp_path)], [tmp_path / "a.py"]).problem
