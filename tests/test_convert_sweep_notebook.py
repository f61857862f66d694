"""Notebooks: code cells convert together, everything else stays byte for byte."""

import json

import pytest

from accel.convert.options import Options
from accel.convert.sweep import sweep
from accel.convert.sweep.notebook_json import cells_of, offsets


def cell(*lines: str, kind: str = "code") -> dict:
    made = {"cell_type": kind, "metadata": {}, "source": list(lines)}
    return made | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def notebook(*cells: dict, language: str = "python") -> dict:
    metadata = {"kernelspec": {"name": "x", "language": language, "display_name": "cuda env"}}
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def converted(book: dict | str, **layout):
    text = book if isinstance(book, str) else json.dumps(book, **({"indent": 1} | layout)) + "\n"
    data = text.encode()
    result = sweep(data, "a.ipynb", Options())
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    again = sweep(result.after, "a.ipynb", Options())
    assert again.after == result.after
    for entry in result.ledger:
        assert entry.token.lower() in data[slice(*entry.span)].decode().lower()
    return result


def sources(result) -> list[str]:
    return ["".join(one["source"]) for one in json.loads(result.after)["cells"]]


SETUP = cell("import torch\n", "import numpy as np")
CLEAR = cell("x = 1  # ü\n", "torch.cuda.empty_cache()")


def test_names_of_earlier_cells_are_known_in_later_ones() -> None:
    result = converted(notebook(SETUP, CLEAR))
    assert sources(result) == [
        "import torch\nimport accel\nimport numpy as np",
        "x = 1  # ü\naccel.empty_cache()",
    ]
    (finding,) = [f for f in result.findings if f.action == "convert"]
    assert finding.snippet.startswith("cell 2: ")
    shown = result.before.decode().splitlines()[finding.line - 1]
    assert "torch.cuda.empty_cache()" in shown


@pytest.mark.parametrize(
    "layout", [{"indent": 1}, {"indent": 4}, {"indent": None}, {"separators": (",", ":")}]
)
def test_only_changed_strings_change(layout) -> None:
    book = notebook(SETUP, cell("# CUDA", kind="markdown"), CLEAR)
    book["cells"][2]["outputs"] = [{"output_type": "stream", "text": ["cuda:0\n"]}]
    result = converted(book, **layout)
    expected = json.loads(result.before)
    expected["cells"][0]["source"] = ["import torch\n", "import accel\n", "import numpy as np"]
    expected["cells"][2]["source"][1] = "accel.empty_cache()"
    assert result.after.decode() == json.dumps(expected, **({"indent": 1} | layout)) + "\n"


def test_escapes_and_line_ends_of_the_file_stay() -> None:
    text = (
        '{"cells":[{"cell_type":"code","source":["import torch\\n",\r\n\t"s = \\"\\u00fc\\ud83d'
        '\\ude00\\t/\\/\\"; torch.cuda.empty_cache()"],"metadata":{}}],"metadata":{},\r\n'
        '"nbformat":4}'
    )
    result = converted(text)
    assert result.after.decode() == text.replace("torch.cuda.empty", "accel.empty").replace(
        '["import torch\\n",\r\n\t', '["import torch\\n",\r\n\t"import accel\\n",\r\n\t'
    )


def test_a_source_that_is_one_string() -> None:
    text = json.dumps(notebook(SETUP, CLEAR))
    book = json.loads(text)
    for one in book["cells"]:
        one["source"] = "".join(one["source"])
    result = converted(book)
    assert json.loads(result.after)["cells"][1]["source"] == "x = 1  # ü\naccel.empty_cache()"


@pytest.mark.parametrize("layout", [{"indent": 2}, {"indent": None}, {"separators": (",", ":")}])
def test_a_list_of_one_string_becomes_one_of_two(layout) -> None:
    book = notebook(cell("import torch"), cell("torch.cuda.empty_cache()"))
    result = converted(book, **layout)
    book["cells"][0]["source"] = ["import torch\n", "import accel"]
    expected = json.loads(result.after)
    assert expected["cells"][0]["source"] == book["cells"][0]["source"]
    assert result.after.decode() == json.dumps(expected, **({"indent": 1} | layout)) + "\n"


def test_a_source_whose_strings_are_no_lines() -> None:
    book = notebook(cell("import to", "rch\ntorch.cuda.", "empty_cache()\n"))
    assert sources(converted(book)) == ["import torch\nimport accel\naccel.empty_cache()\n"]


def test_a_byte_order_mark_stays() -> None:
    data = b"\xef\xbb\xbf" + json.dumps(notebook(SETUP, CLEAR)).encode()
    result = sweep(data, "a.ipynb", Options())
    assert result.error == ""
    assert result.after.startswith(b"\xef\xbb\xbf{")
    assert b"accel.empty_cache()" in result.after


# --- IPython -----------------------------------------------------------------------------------


def test_commands_stay_and_are_looked_at_like_scripts() -> None:
    lines = (
        "%matplotlib inline\n",
        "!pip install flash-attn \\\n",
        "    xformers\n",
        "import torch\n",
        "if True:\n",
        "    !CUDA_VISIBLE_DEVICES=0 python train.py\n",
        "    names = !nvidia-smi -L\n",
        "torch.cuda.empty_cache()\n",
        "torch.cuda?\n",
    )
    result = converted(notebook(cell(*lines)))
    after = sources(result)[0].splitlines(keepends=True)
    assert after == [*lines[:4], "import accel\n", *lines[4:7], "accel.empty_cache()\n", lines[8]]
    subjects = {f.subject for f in result.findings if f.action == "flag"}
    assert {"flash_attn", "xformers", "CUDA_VISIBLE_DEVICES", "nvidia-smi"} <= subjects


def test_magic_lines_within_a_string_stay() -> None:
    lines = ("import torch\n", 's = """\n', "!cuda\n", '"""\n', "torch.cuda.empty_cache()")
    after = sources(converted(notebook(cell(*lines))))[0]
    assert after == 'import torch\nimport accel\ns = """\n!cuda\n"""\naccel.empty_cache()'


@pytest.mark.parametrize("magic", ["%%time", "%%capture out"])
def test_cells_that_are_python_all_the_same(magic) -> None:
    book = notebook(SETUP, cell(f"{magic}\n", "torch.cuda.empty_cache()"))
    assert sources(converted(book))[1] == f"{magic}\naccel.empty_cache()"


@pytest.mark.parametrize("magic", ["%%time", "%%capture out", "%%prun -s name"])
def test_an_import_goes_behind_the_magic_of_its_cell(magic) -> None:
    """A magic of the whole cell is its first line, or it is none."""
    book = notebook(cell(f"{magic}\n", "# c\n", "x = zeros(1).cuda()"), cell("y = x.cuda()"))
    first, second = sources(converted(book))
    assert first == f"{magic}\n# c\nimport accel\nx = zeros(1).to(accel.device())"
    assert second == "y = x.to(accel.device())"


def test_code_behind_a_magic_that_runs_it_is_converted() -> None:
    lines = (
        "%time x = x.cuda()\n",
        "%timeit -n 10 -r3 x.cuda(); torch.cuda.synchronize()  # why\n",
        "if True:\n",
        "    %time y = x.cuda()\n",
        "%prun torch.cuda.synchronize()\n",
        "%time",
    )
    result = converted(notebook(SETUP, cell(*lines)))
    assert sources(result)[1].splitlines() == [
        "%time x = x.to(accel.device())",
        "%timeit -n 10 -r3 x.to(accel.device()); accel.synchronize()  # why",
        "if True:",
        "    %time y = x.to(accel.device())",
        "%prun accel.synchronize()",
        "%time",
    ]
    assert {e.action for e in result.ledger if e.rule != "ACC139"} == {"convert"}


@pytest.mark.parametrize(
    "line",
    [
        "%time for x in xs: x.cuda()",
        "%prun -s cumulative f(x.cuda())",
        "%lprun -f g g(x.cuda())",
        "%memit x.cuda()",
        "y = %timeit -o x.cuda()",
        "%%timeit x = x.cuda()",
        "%time match x.cuda(): \\\n  case 1: pass",
    ],
)
def test_code_behind_other_magics_is_flagged(line) -> None:
    """It was kept as a path, or as a name of the project's own."""
    result = converted(notebook(SETUP, cell(line)))
    assert sources(result)[1] == line
    (found,) = [f for f in result.findings if f.line > 1 and f.rule == "ACC128"]
    assert (found.action, found.advice != "") == ("flag", True)
    assert {e.action for e in result.ledger if e.rule != "ACC139"} == {"flag"}


def test_a_finding_behind_a_magic_is_in_its_place() -> None:
    book = notebook(SETUP, cell("# ü\n", "%timeit -n 3 f('é', 'cuda_x')"))
    (found,) = [f for f in converted(book).findings if f.action == "flag"]
    data = json.dumps(book, indent=1).encode()
    assert found.snippet == "cell 2: %timeit -n 3 f('é', 'cuda_x')"
    assert data[found.span.start : found.span.end] == b"'cuda_x'"


def test_cells_in_other_languages() -> None:
    book = notebook(
        cell("%%bash\n", "nvidia-smi\n", "export CUDA_HOME=/x"),
        cell("%%writefile a.cu\n", "// cuda"),
        cell("%%html\n", "<b>no word of it</b>"),
    )
    result = converted(book)
    assert not result.is_changed
    assert [f.rule for f in result.findings] == ["ACC121", "ACC120", "ACC128"]


def test_a_cell_that_does_not_parse_costs_no_other() -> None:
    book = notebook(SETUP, cell("for cuda in\n"), CLEAR)
    result = converted(book)
    assert sources(result)[1:] == ["for cuda in\n", "x = 1  # ü\naccel.empty_cache()"]
    (flagged,) = [f for f in result.findings if f.rule == "ACC128"]
    assert "cell 2 does not parse" in flagged.message


def test_a_notebook_in_another_language_is_kept() -> None:
    result = converted(notebook(cell("cuda <- 1; torch.cuda.empty_cache()"), language="R"))
    assert not result.is_changed
    assert {entry.action for entry in result.ledger} == {"keep"}


# --- bad input ---------------------------------------------------------------------------------

GOOD = json.dumps(notebook(SETUP, CLEAR)).encode()


@pytest.mark.parametrize(
    "data",
    [
        GOOD[: len(GOOD) // 2],
        GOOD[:-1],
        GOOD + b"}",
        b'{"torch": 1}',
        b'["torch"]',
        b'{"cells": {"torch": 1}}',
        b"torch",
        b'{"cells": ["torch \xff"]}',
        b'{"worksheets": [{"cells": [{"input": "import torch"}]}]}',
        b'{"a":' * 100_000 + b'"torch"',
    ],
)
def test_what_is_no_notebook_is_an_error_and_stays(data) -> None:
    result = sweep(data, "a.ipynb", Options())
    assert result.error.startswith("not a notebook that can be read:")
    assert result.after == data


@pytest.mark.parametrize(
    "book",
    [
        {"cells": [], "torch": 1},
        {"cells": [1, "torch", None, []], "nbformat": 4},
        {"cells": [{"cell_type": "code", "torch": 1}]},
        {"cells": [{"cell_type": "code", "source": []}, {"source": "import torch"}]},
        {"cells": [{"cell_type": "code", "source": [1, ["torch.cuda"]]}]},
        {"cells": [{"cell_type": "code", "source": "", "metadata": {"cells": [{"source": "x"}]}}]},
    ],
)
def test_odd_notebooks_stay(book) -> None:
    result = sweep(json.dumps(book).encode(), "a.ipynb", Options())
    assert not result.is_changed


def test_places_of_escaped_characters() -> None:
    text = r'{"cells": [{"source": ["a\n\"\u00fc\ud83d\ude00z"]}]}'
    (only,), _ = cells_of(text)
    (literal,) = only.sources
    found = [text[at] for at in offsets(text, literal)]
    assert found == ["a", "\\", "\\", "\\", "\\", "z", '"']
