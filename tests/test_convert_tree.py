"""Trees: which files are read, in any number of processes, and what a bad file costs the others."""

import os
from pathlib import Path

import pytest

from accel.convert import sweep, tree, walking
from accel.convert.options import Options
from accel.convert.shadowing import shadows
from accel.convert.tree import convert_tree
from accel.convert.walking import LARGEST, discover, place_of
from tests.convert_results import CONVERTED, SOURCE, made

ROOT = Path(__file__).parents[1]


def walk(*paths, exclude=()):
    return discover(paths, exclude=exclude, language_of=sweep.language_of)


def names(found):
    return [one.path for one in found.files]


def reasons(found):
    return dict(found.omitted)


def test_files_are_found_in_one_order(tmp_path) -> None:
    made(tmp_path, {"b.py": SOURCE, "a/c.py": SOURCE, "a/b/x.py": SOURCE, "run.sh": "echo\n",
                    "data.bin": b"\0"})  # fmt: skip
    found = walk(tmp_path)
    assert names(found) == ["a/b/x.py", "a/c.py", "b.py", "run.sh"]
    assert [one.language for one in found.files] == ["python", "python", "python", "shell"]
    assert found.omitted == ()


def test_what_tools_made_is_left_out_and_named(tmp_path) -> None:
    made(tmp_path, {
        "a.py": SOURCE, "setup.py": "", "build/lib/a.py": SOURCE, "node_modules/x.py": SOURCE,
        "__pycache__/x.py": SOURCE, "x.egg-info/y.py": SOURCE, ".git/hooks/h.py": SOURCE,
        "env/pyvenv.cfg": "", "env/lib/z.py": SOURCE, ".github/workflows/ci.yml": "a: 1\n",
    })  # fmt: skip
    found = walk(tmp_path)
    assert names(found) == [".github/workflows/ci.yml", "a.py", "setup.py"]
    assert reasons(found) == {
        ".git/": "hidden", "__pycache__/": "made by a tool", "build/": "made by a build",
        "env/": "a Python environment", "node_modules/": "made by a tool",
        "x.egg-info/": "made by a tool",
    }  # fmt: skip


@pytest.mark.parametrize("files", [{}, {"setup.py": "", "build/__init__.py": ""}])
def test_source_code_in_a_directory_called_build_is_read(tmp_path, files) -> None:
    made(tmp_path, {"build/a.py": SOURCE, **files})
    assert "build/a.py" in names(walk(tmp_path))


def test_what_is_given_by_name_is_read_wherever_it_is(tmp_path) -> None:
    made(tmp_path, {"setup.py": "", "build/a.py": SOURCE})
    assert names(walk(tmp_path / "build")) == ["a.py"]
    given = tmp_path / "build/a.py"
    assert names(walk(given)) == [given.as_posix()]


def test_a_given_file_of_no_known_kind_is_named(tmp_path) -> None:
    made(tmp_path, {"LICENSE": "text"})
    found = walk(tmp_path / "LICENSE")
    assert found.files == ()
    assert list(reasons(found).values()) == ["not a kind of file that is read"]


def test_a_script_without_a_suffix_is_known_by_its_first_line(tmp_path) -> None:
    made(
        tmp_path,
        {
            "train": "#!/usr/bin/env python3\n" + SOURCE,
            "other": "#!/bin/awk -f\n",
            "run": "#!/bin/bash\nexport CUDA_VISIBLE_DEVICES=0\n",
            "LICENSE": "text",
        },
    )
    assert [(one.path, one.language) for one in walk(tmp_path).files] == [
        ("run", "shell"),
        ("train", "python"),
    ]
    run, train = convert_tree([tmp_path], Options()).files
    assert (run.path, run.language, bool(run.ledger)) == ("run", "shell", True)
    assert train.is_changed


def test_links_are_followed_once(tmp_path) -> None:
    made(tmp_path, {"a/b.py": SOURCE})
    (tmp_path / "a/loop").symlink_to(tmp_path)
    (tmp_path / "0link").symlink_to(tmp_path / "a")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    found = walk(tmp_path)
    assert names(found) == ["a/b.py"]
    assert "read already" in reasons(found)["0link/"]
    assert "read already" in reasons(found)["a/loop/"]
    assert reasons(found)["gone.py"] == "neither a file nor a directory"


def test_links_in_a_circle_cost_no_other_file(tmp_path) -> None:
    made(tmp_path, {"x.py": SOURCE})
    for name in ("a", "b.py", "c.sh"):
        (tmp_path / name).symlink_to(tmp_path / f"{name}.2")
        (tmp_path / f"{name}.2").symlink_to(tmp_path / name)
    found = walk(tmp_path)
    assert names(found) == ["x.py"]
    assert reasons(found)["a"].startswith("cannot be read: Too many levels of symbolic links")
    assert {"b.py", "c.sh"} <= set(reasons(found))


def test_what_cannot_be_asked_about_is_left_out(tmp_path, monkeypatch) -> None:
    made(tmp_path, {"x.py": SOURCE, "shut/y.py": SOURCE})
    real = walking.Path.exists

    def refuse(path, **more):
        if "shut" in path.parts:
            raise PermissionError(13, "Permission denied")
        return real(path, **more)

    monkeypatch.setattr(walking.Path, "exists", refuse)
    found = walk(tmp_path)
    assert names(found) == ["x.py"]
    assert reasons(found) == {"shut": "cannot be read: Permission denied"}


def test_a_file_has_one_name(tmp_path, monkeypatch) -> None:
    made(tmp_path, {"b/real.py": SOURCE, "c.py": SOURCE})
    (tmp_path / "a.py").symlink_to("b/real.py")
    found = walk(tmp_path)
    assert names(found) == ["b/real.py", "c.py"]
    assert reasons(found) == {"a.py": "another name of b/real.py"}
    monkeypatch.chdir(tmp_path)
    assert names(walk("c.py", "b/../c.py", ".")) == ["b/../c.py", "b/real.py"]


def test_patterns_leave_names_out(tmp_path) -> None:
    made(tmp_path, {"a.py": "", "third/b.py": "", "lib/c_test.py": "", "lib/d.py": ""})
    found = walk(tmp_path, exclude=["third/", "*_test.py"])
    assert names(found) == ["a.py", "lib/d.py"]
    assert reasons(found) == {
        "third/": "excluded by third/", "lib/c_test.py": "excluded by *_test.py",
    }  # fmt: skip


def test_several_paths_keep_their_names_apart(tmp_path, monkeypatch) -> None:
    made(tmp_path, {"one/a.py": SOURCE, "two/a.py": SOURCE})
    monkeypatch.chdir(tmp_path)
    found = walk("one", "two/", "two")
    assert names(found) == ["one/a.py", "two/a.py"]
    assert all(place_of(found.roots, name).exists() for name in names(found))
    assert names(walk(".")) == names(found)


def test_wrong_paths_are_errors(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        walk(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no path is given"):
        walk()


def test_a_package_of_this_librarys_name_is_a_conflict(tmp_path) -> None:
    made(tmp_path, {"accel/__init__.py": "", "nets/__init__.py": "", "nets/accel.py": "",
                    "tools/accel.py": "", "train.py": SOURCE})  # fmt: skip
    assert list(shadows(walk(tmp_path).files, "accel")) == ["accel/__init__.py", "tools/accel.py"]
    assert len(convert_tree([tmp_path], Options()).conflicts) == 2
    assert convert_tree([tmp_path], Options(target="torch")).conflicts == ()


def test_modules_above_a_given_path_are_looked_at_as_far_as_the_project_goes(tmp_path) -> None:
    made(tmp_path, {"accel.py": "", "p/setup.py": "", "p/a/b/t.py": SOURCE, "p/nets/accel.py": "",
                    "p/nets/__init__.py": "", "p/nets/t.py": SOURCE})  # fmt: skip
    for given in ("p/a/b/t.py", "p/a", "p/nets/t.py"):
        assert convert_tree([tmp_path / given], Options()).conflicts == (), given
    made(tmp_path, {"p/accel/__init__.py": ""})
    for given in ("p/a/b/t.py", "p/a", "p/nets/t.py", "p"):
        (said,) = convert_tree([tmp_path / given], Options()).conflicts
        assert "accel/__init__.py would be imported" in said
        assert convert_tree([tmp_path / given], Options(), exclude=["accel/*"]).conflicts == ()


def test_this_library_does_not_stand_in_its_own_way() -> None:
    assert convert_tree([ROOT / "examples"], Options()).conflicts == ()
    own = convert_tree([ROOT / "accel/__init__.py"], Options())
    assert own.conflicts == ()


def test_a_tree_is_converted_and_nothing_is_written(tmp_path) -> None:
    made(tmp_path, {"a.py": SOURCE, "b.py": "x = 1\n"})
    found = convert_tree([tmp_path], Options())
    assert [one.path for one in found.files] == ["a.py", "b.py"]
    assert found.files[0].after.decode() == CONVERTED
    assert not found.files[1].is_changed
    assert (tmp_path / "a.py").read_text() == SOURCE
    assert found.roots == (str(tmp_path),)


def test_processes_change_nothing_but_the_time(tmp_path) -> None:
    made(tmp_path, {
        **{f"pkg/m{n}.py": SOURCE * (n % 5 + 1) for n in range(40)}, "old.py": "print 1\n",
        "run.sh": "CUDA_VISIBLE_DEVICES=0 python train.py\n",
    })  # fmt: skip
    one, two = (convert_tree([tmp_path], Options(), jobs=jobs) for jobs in (1, 2))
    assert one.files == two.files
    assert len(one.files) == 42
    assert sum(file.is_changed for file in one.files) >= 40


def test_a_file_that_cannot_be_read_costs_no_other(tmp_path, monkeypatch) -> None:
    made(tmp_path, {"a.py": SOURCE, "b.py": SOURCE, "c.py": b"\xff\xfe\x00",
                    "d.py": "import torch\nprint 'x'\n"})  # fmt: skip
    real = walking.Path.read_bytes

    def refuse(path):
        if path.name == "b.py":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(walking.Path, "read_bytes", refuse)
    found = {one.path: one for one in convert_tree([tmp_path], Options()).files}
    assert found["a.py"].is_changed
    assert found["b.py"].error == "cannot be read: Permission denied"
    assert found["c.py"].error
    assert found["d.py"].error
    assert not any(found[name].is_changed for name in ("b.py", "c.py", "d.py"))


def test_a_large_source_file_is_an_error_and_large_data_is_left_out(tmp_path) -> None:
    for name in ("big.py", "data.json"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(LARGEST + 1)
    found = convert_tree([tmp_path], Options())
    assert [one.path for one in found.files] == ["big.py"]
    assert "over the limit of 16 MiB" in found.files[0].error
    assert reasons(walk(tmp_path))["data.json"].startswith("data: 16 MiB")


def test_a_bug_in_one_file_is_told_with_its_name(tmp_path, monkeypatch) -> None:
    made(tmp_path, {"a.py": SOURCE, "b.py": SOURCE})
    real = tree.engine.convert_source

    def broken(data, path, options, project=None):
        if path == "a.py":
            raise KeyError("surprise")
        return real(data, path, options, project)

    monkeypatch.setattr(tree.engine, "convert_source", broken)
    found = convert_tree([tmp_path], Options()).files
    assert found[0].error.startswith("a bug of the converter: KeyError at test_convert_tree.py:")
    assert found[0].after == SOURCE.encode()
    assert found[1].is_changed


def test_a_result_that_would_not_parse_is_not_taken(tmp_path, monkeypatch) -> None:
    made(tmp_path, {"a.py": SOURCE})
    real = tree.engine.convert_source

    def broken(data, path, options, project=None):
        found = real(data, path, options, project)
        return tree.FileResult(path, "python", data, b"x = (\n", found.findings)

    monkeypatch.setattr(tree.engine, "convert_source", broken)
    (found,) = convert_tree([tmp_path], Options()).files
    assert "would not parse" in found.error
    assert not found.is_changed


def test_a_worker_that_dies_is_an_error_with_names(tmp_path, monkeypatch) -> None:
    made(tmp_path, {"a.py": SOURCE, "b.py": SOURCE})
    monkeypatch.setattr(tree, "_begin", os._exit)  # called with the options: the process ends
    with pytest.raises(RuntimeError, match=r"a worker process died.*a\.py, b\.py"):
        convert_tree([tmp_path], Options(), jobs=2)


def test_wrong_jobs_are_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="got -1"):
        convert_tree([tmp_path], Options(), jobs=-1)


def test_progress_counts_every_file(tmp_path) -> None:
    made(tmp_path, {"a.py": SOURCE, "b.py": SOURCE, "run.sh": "echo\n"})
    bars = []

    def bar(total):
        bars.append(tree.Progress(total, enabled=False))
        return bars[-1]

    convert_tree([tmp_path], Options(), progress=bar)
    assert [(one.total, one.done) for one in bars] == [(3, 3)]
