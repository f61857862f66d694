"""The engine beneath the rules: bytes, edits, scopes, f-strings, the ledger."""

import ast
import random

import pytest

from accel.convert import engine, ledger, tokens
from accel.convert.edits import ConflictError, apply
from accel.convert.engine import convert_source
from accel.convert.finding import Edit, Finding, Span
from accel.convert.module import Module
from accel.convert.options import Options
from accel.convert.project import index
from accel.convert.source import Source

SYNC = "import torch\n\ntorch.cuda.synchronize()\n"
DONE = "import torch\nimport accel\n\naccel.synchronize()\n"


def convert(data: bytes, **options):
    return convert_source(data, "program.py", Options(**options))


def module(text: str) -> Module:
    return Module(Source(text.encode()), "program.py", Options())


# --- bytes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_and_line_ends_survive(bom, newline) -> None:
    result = convert(bom + SYNC.replace("\n", newline).encode())
    assert result.after == bom + DONE.replace("\n", newline).encode()


def test_another_encoding_is_written_back() -> None:
    text = "# -*- coding: latin-1 -*-\nimport torch\nx = 'é'; torch.cuda.synchronize()  # ü\n"
    result = convert(text.encode("latin-1"))
    wanted = text.replace("import torch\n", "import torch\nimport accel\n")
    assert result.after == wanted.replace("torch.cuda.", "accel.").encode("latin-1")


def test_columns_are_of_characters_and_spans_of_bytes() -> None:
    result = convert("import torch\nx = 'äöü€𝄞'; torch.cuda.synchronize()\n".encode())
    finding = result.findings[0]
    assert (finding.line, finding.column) == (2, 14)
    assert result.before[finding.span.start : finding.span.end] == b"torch.cuda.synchronize"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"import torch\nprint 'cuda'\n", "line 2: not Python 3"),
        (b"import torch\nx = '\xff cuda'\n", "cannot be decoded"),
        (b"# coding: nonsense\nimport torch\n", "unknown encoding"),
        (b"import torch\nx = (\n", "not Python 3"),
        (b"import torch\nx = 'cuda\x00'\n", "not Python 3"),
        ("import torch\nx = 1\n".encode("utf-16"), "invalid or missing encoding"),
        (b"import torch\n  x = 1\n", "line 2: not Python 3"),
    ],
)
def test_a_file_that_is_no_python_is_kept_and_told(data, said) -> None:
    result = convert(data)
    assert result.after == result.before == data
    assert said in result.error
    assert result.findings == result.ledger == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("print 'cuda'\n", "1 word of CUDA in it; it is Python 2: run 2to3 on it first"),
        ("try:\n    x.cuda(); y.cuda()\nexcept Error, e:\n    pass\n", "2 words of CUDA in it; it"),
        ("raise ValueError, 'no'\n", "0 words of CUDA in it; it is Python 2"),
        ("x = (  # cuda\n", "1 word of CUDA in it; mend the file, or exclude it"),
        ("print = x y\n", "mend the file"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_python_says_what_is_in_it_and_what_to_do(text, said) -> None:
    assert said in convert(f"import torch\n{text}".encode()).error
    assert "1 word of CUDA" in convert("import torch cuda\n".encode("utf-16")).error
    npu = convert(f"import torch_npu\n{text}".encode(), source="npu").error
    assert "1 word of npu in it" in npu


def test_deep_nesting_is_an_error_of_that_file() -> None:
    result = convert(b"import torch\nx = " + b"(" * 5000 + b")" * 5000 + b"\n")
    assert "not Python 3" in result.error


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b"# cuda", b"import torch"])
def test_small_files(data) -> None:
    result = convert(data)
    assert result.error == ""
    assert result.after == data


# --- edits -------------------------------------------------------------------------------------


def test_edits_nest_and_keep_pieces() -> None:
    text = b"f(g(x), y)"
    outer = Edit(Span(0, 10), ("h[", Span(2, 6), "]"))
    inner = Edit(Span(4, 5), ("z",))
    lost = Edit(Span(8, 9), ("q",))
    changed, applied = apply(text, [inner, lost, outer])
    assert changed == b"h[g(z)]"
    assert applied == {outer.span, inner.span}


def test_words_do_not_run_together() -> None:
    edits = [Edit(Span(6, 12), ("f(x)",)), Edit(Span(14, 17), ("y",))]
    assert apply(b"return'cuda'in'd'or 1", edits)[0] == b"return f(x)in y or 1"


def test_of_two_edits_on_one_span_the_first_is_taken() -> None:
    assert apply(b"ab", [Edit(Span(0, 1), ("1",)), Edit(Span(0, 1), ("2",))])[0] == b"1b"


def test_insertions_and_neighbours_do_not_disturb_each_other() -> None:
    edits = [Edit(Span(1, 1), ("+",)), Edit(Span(0, 1), ("x",)), Edit(Span(1, 2), ("y",))]
    assert apply(b"ab", edits)[0] == b"x+y"


def test_overlapping_edits_are_refused() -> None:
    with pytest.raises(ConflictError, match="overlap"):
        apply(b"abc", [Edit(Span(0, 2), ("x",)), Edit(Span(1, 3), ("y",))])


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        ("import torch\n@torch.cuda.f", "torch.cuda.f"),
        ("import torch.cuda\n@torch.cuda.f", "torch.cuda.f"),
        ("import torch.cuda as c\n@c.f", "torch.cuda.f"),
        ("from torch import cuda\n@cuda.f", "torch.cuda.f"),
        ("from torch import cuda as c\nd = c\n@d.f", "torch.cuda.f"),
        ("from torch.cuda import f\n@f", "torch.cuda.f"),
        ("from torch import *\n@cuda.f", "torch.cuda.f"),
        ("from .utils import f\n@f", ".utils.f"),
        ("@print", "builtins.print"),
        ("import torch\ntorch = None\n@torch.f", "torch.f"),
        ("import torch\ntorch = fake\n@torch.f", None),
        ("try:\n    import a as x\nexcept ImportError:\n    import b as x\n@x.f", None),
        ("import torch\ndef g(torch):\n    @torch.f", None),
        ("import torch\ng = lambda torch: @torch.f", None),
        ("import torch\n[@torch.f for torch in y]", None),
        ("import torch\n[1 for x in @torch.f]", "torch.f"),
        ("import torch\nfor torch in x:\n    pass\n@torch.f", None),
        ("import torch\ndef g():\n    import other as torch\n    @torch.f", "other.f"),
        ("import torch\ndef g():\n    global torch\n    torch = 1\n@torch.f", None),
        ("import torch\nclass A:\n    torch = 1\n    def g(self):\n        @torch.f", "torch.f"),
        ("import torch\nclass A:\n    torch = other\n    @torch.f", "builtins.other.f"),
        ("import torch\ndef g(a=@torch.f, torch=1): pass", "torch.f"),
        ("import torch\nif (torch := h()):\n    @torch.f", None),
        ("import torch\nwith h() as torch:\n    @torch.f", None),
        ("import torch\ntry:\n    pass\nexcept E as torch:\n    @torch.f", None),
        ("import torch\na, b = torch.f, 1\n@a", "torch.f"),
        ("import torch\n(a, b) = pair\n@a", None),
        ("import torch\nmatch z:\n    case [torch]:\n        @torch.f", None),
        ("a = b\nb = a\n@a", None),
        ("import torch\n@(torch).f", "torch.f"),
        ("import torch\n@h().f", None),
    ],
)
def test_what_a_name_means(program, wanted) -> None:
    before, _, after = program.partition("@")
    at = Module(Source((before + after).encode()), "p.py", Options())
    spot = len(before.encode())
    nodes = [n for n in at.all(ast.Name, ast.Attribute) if at.span(n).start == spot]
    node = max(nodes, key=lambda n: at.span(n).end, default=None)
    if node is None:  # in front of a call
        node = next(n for n in at.all(ast.Attribute) if isinstance(n.value, ast.Call))
    assert at.qualified(node) == wanted


def test_constants_of_other_files() -> None:
    project = index(
        {"pkg/config.py": b"DEVICE = 'cuda'\nN = 1\nN = 2\n", "pkg/a.py": b"", "broken.py": b"("}
    )
    for statement in ("from pkg.config import DEVICE", "from .config import DEVICE"):
        text = f"import torch\n{statement}\nprint(DEVICE)\n"
        at = Module(Source(text.encode()), "pkg/a.py", Options(), project)
        assert at.constant(at.all(ast.Call)[0].args[0]) == "cuda"
    assert project.constant("pkg/a.py", ".config.N") is None


def test_a_name_that_another_file_imports_stays() -> None:
    shared = b"import torch\nimport torch.cuda as c\nc.synchronize()\n"
    alone = convert_source(shared, "pkg/utils.py", Options(), index({"pkg/utils.py": shared}))
    assert b"as c" not in alone.after
    for statement in (b"from pkg.utils import c", b"from .utils import *"):
        project = index({"pkg/utils.py": shared, "pkg/a.py": statement})
        result = convert_source(shared, "pkg/utils.py", Options(), project)
        assert b"import torch.cuda as c\naccel.synchronize()" in result.after


def test_a_file_on_its_own_is_known_too() -> None:
    """A class with a method `cuda`: what is of unknown type may be of that class."""
    text = "import torch\nclass Batch:\n    def cuda(self): ...\ndef f(batch):\n    batch.cuda()\n"
    assert not convert(text.encode()).is_changed


# --- f-strings ---------------------------------------------------------------------------------

FSTRINGS = [
    "f'{torch.x}'",
    "f'a{{b}}{torch.x!r:>10}c'",
    'f"é{torch.x=}"',
    "f'{torch.x:{torch.y}.{torch.z}f}'",
    "f'''\n {torch.x}\n\t{torch.y:%H:%M}\n'''",
    "('a' f'{torch.x}'  # {torch.no}\n  rf'\\d{torch.y}' b'')".replace(" b''", ""),
    "f'{f\"{torch.x}\"}{torch.y}'",
    "f'{d[\"torch\"]}{(lambda: torch.x)()}'",
    "f'{torch.x != 1}{torch.y == 2!s}{torch.x >= 3}'",
    "f'{torch.x, torch.y}'",
    "f'{ {1: torch.x}[1] }'",
    "f'\\N{EM DASH}{torch.x}'",
    "f'{[torch.x for a in b if a]}'",
]


@pytest.mark.parametrize("literal", FSTRINGS)
def test_expressions_of_f_strings_are_where_they_say(literal) -> None:
    at = module(f"pass\nx = {literal}\n")
    chains = [node for node in at.all(ast.Attribute) if node.attr in "xyz"]
    assert len(chains) == literal.count("torch.") - literal.count("torch.no")
    for node in chains:
        assert at.text(node) == f"torch.{node.attr}"
        assert at.text(node.value) == "torch"


@pytest.mark.parametrize("target", ["torch", "npu", "accel"])
@pytest.mark.parametrize(
    "literal", ["f'{x.cuda()}'", 'f"{x.cuda()}"', "f'''{x.cuda()}'''", "f'a' f'{x.cuda()}'"]
)
def test_quotes_in_an_f_string_are_those_that_every_python_takes(literal, target) -> None:
    result = convert(f"import torch\nx = torch.ones(1)\nprint({literal})\n".encode(), target=target)
    assert result.error == ""
    line = result.after.decode().splitlines()[-1]
    if "'''" not in literal:
        assert line.count(literal[1]) == literal.count(literal[1])


# --- the whole ---------------------------------------------------------------------------------


def test_the_import_goes_where_a_reader_looks() -> None:
    head = (
        '#!/usr/bin/env python\n# coding: utf-8\n"""About."""\nfrom __future__ import annotations\n'
    )
    result = convert(
        (
            head + "import os\nimport torch  # why\nimport sys\n" + "torch.cuda.synchronize()\n"
        ).encode()
    )
    assert b"import torch  # why\nimport accel\nimport sys\n" in result.after
    lazy = head + "def f():\n    import torch\n    torch.cuda.synchronize()\n"
    assert convert(lazy.encode()).after.decode() == lazy.replace(
        "annotations\n", "annotations\nimport accel\n"
    ).replace("torch.cuda.", "accel.")


def test_a_name_of_the_file_is_not_taken() -> None:
    result = convert(b"import torch\naccel = 3\ntorch.cuda.synchronize()\n")
    assert b"import accel as accel_torch\n" in result.after
    assert b"accel_torch.synchronize()" in result.after


def test_rules_can_be_chosen() -> None:
    assert not convert(SYNC.encode(), ignore=("ACC02",)).is_changed
    assert not convert(SYNC.encode(), select=("ACC001",)).is_changed
    assert convert(SYNC.encode(), select=("ACC020",)).after.decode() == DONE


def test_what_two_rules_change_differently_is_for_a_human(monkeypatch) -> None:
    class Clash:
        RULES = ()

        @staticmethod
        def find(at):
            start = SYNC.index("torch.cuda")
            yield at.convert(Span(start - 1, start + 8), "ACC999", "clash", "x")

    monkeypatch.setattr(engine, "FAMILIES", (*engine.FAMILIES, Clash))
    result = convert(SYNC.encode())
    assert result.after.decode() == DONE
    assert [f.action for f in result.findings if f.rule == "ACC999"] == ["flag"]


def test_output_that_does_not_parse_is_never_given(monkeypatch) -> None:
    class Wrong:
        RULES = ()

        @staticmethod
        def find(at):
            yield at.convert(at.tree.body[1], "ACC999", "wrong", "(((")

    monkeypatch.setattr(engine, "FAMILIES", (Wrong,))
    result = convert(SYNC.encode())
    assert result.after == SYNC.encode()
    assert "would not parse" in result.error


# --- the ledger --------------------------------------------------------------------------------


def test_tokens_are_found_without_the_syntax_tree() -> None:
    text = "import torch.cuda\nx = 'CUDA' f'{cudnn}' # nccl\n'''\nnvcc'''\n"
    found = tokens.find(Source(text.encode()))
    assert [(t.text, t.kind, t.line) for t in found] == [
        ("cuda", "name", 1), ("CUDA", "string", 2), ("cudnn", "name", 2), ("nccl", "comment", 2),
        ("nvcc", "string", 4),
    ]  # fmt: skip


def test_a_token_that_no_rule_saw_is_missing() -> None:
    found = tokens.find(Source(b"a.cuda()\n"))
    assert [e.action for e in ledger.account(found, [], set())] == ["missing"]


def test_a_token_in_a_kept_piece_belongs_to_its_own_finding() -> None:
    found = tokens.find(Source(b"x.cuda(args.cuda)\n"))
    span = Span(0, 17)
    outer = Finding("A", "convert", span, 1, 1, "", edits=(Edit(span, ("y(", Span(7, 16), ")")),))
    inner = Finding("B", "keep", Span(7, 16), 1, 8, "")
    entries = ledger.account(found, [outer, inner], {span})
    assert [(e.action, e.rule) for e in entries] == [("convert", "A"), ("keep", "B")]


def test_random_programs_are_never_damaged() -> None:
    """Pieces in random order: output parses, a second run is still, no token is missing."""
    rng = random.Random(0)
    pieces = [
        "torch.cuda.synchronize()", "x = 'cuda'", "f(torch.cuda.is_available())", "pass",
        "y = f'{torch.cuda.synchronize()!r} cuda'", "def g(cuda=torch.cuda): return cuda",
        "class cuda: pass", "a.b['cuda'] = 1", "assert x, 'no cuda'", "z = [cuda for cuda in y]",
    ]  # fmt: skip
    for _ in range(60):
        text = "import torch\n" + "\n".join(rng.choices(pieces, k=6)) + "\n"
        once = convert(text.encode())
        assert once.error == ""
        assert convert(once.after).after == once.after
        assert "missing" not in {entry.action for entry in once.ledger}
