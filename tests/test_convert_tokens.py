"""The pass that counts words: strings, comments and code told apart as Python's tokenizer does."""

import ast
import io
import tokenize
from pathlib import Path

import pytest
import torch

from accel.convert import tokens
from accel.convert.finding import Span
from accel.convert.ledger import Enclosing
from accel.convert.source import Source

TORCH = sorted(Path(torch.__file__).parent.rglob("*.py"))


def by_tokenize(source: Source) -> list[tuple[int, int, str]]:
    """Start, end and kind of strings (f-strings whole) and comments."""
    found, depth, start = [], 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source.utf8.decode(), newline="").readline):
        name = tokenize.tok_name[token.type]
        begin, end = (
            source.starts[line - 1] + len(source.line_text(line)[:column].encode())
            for line, column in (token.start, token.end)
        )
        if name == "FSTRING_START":
            start = begin if depth == 0 else start
            depth += 1
        elif name == "FSTRING_END":
            depth -= 1
            if depth == 0:
                found.append((start, end, "string"))
        elif depth == 0 and name in ("STRING", "COMMENT"):
            found.append((begin, end, name.lower()))
    return found


def disagreements(source: Source) -> list[object]:
    """Where the two differ; of an f-string only the outline is compared."""
    wanted = by_tokenize(source)
    found = tokens.not_code(source.utf8)
    exact = {(s.span.start, s.span.end, s.kind) for s in found}
    starts, ends = {s.span.start for s in found}, {s.span.end for s in found}
    wrong: list[object] = []
    for start, end, kind in wanted:
        prefix = source.utf8[start : start + 3].lower().partition(b'"')[0].partition(b"'")[0]
        formatted = prefix in (b"f", b"fr", b"rf", b"t", b"tr", b"rt")
        if (start, end, kind) not in exact and not (formatted and start in starts and end in ends):
            wrong.append((start, end, kind))
    around = Enclosing((Span(start, end), kind) for start, end, kind in wanted)
    wrong += [s for s in found if not around.around(s.span)]
    return wrong


@pytest.mark.parametrize("part", range(4))
def test_it_agrees_with_the_tokenizer_over_torch(part) -> None:
    files = TORCH[part::60]
    assert len(files) > 30
    for path in files:
        source = Source(path.read_bytes())
        assert disagreements(source) == [], path


@pytest.mark.parametrize(
    "program",
    [
        "x = 'a' \"b\" '''c\n'd' ''' \"\"\"e\"f\"\"\"\n",
        "x = r'\\'' + 'b'  # '\n",
        "x = 'a\\\nb' # c\n",
        "x = b'\\'' + rb'\"' + Rb'x' + U'y'\n",
        "x = f'{a}{b!r:>{c}} {{d}} {e[\"f\"]}'\n",
        "x = f'''{\na  }{b:\n}'''\n",
        "x = rf'\\{a}\\N{b}' + f'\\N{DIGIT ONE}{c}'\n",
        "x = f'{a != b}{c == d}{(lambda e: f)(1)}{g[1:2]}{ {1: 2}[1] }'\n",
        "x = f'{a=}{b = !r}{c:%Y-%m}' 'plain' f'{d}'\n",
        "if'a'in b:pass\n",
        "x = 'é' + f'é{é}é'  # é\n",
        "# only\r\nx = 1 # two\rx = 2\n",
    ],
)
def test_odd_literals(program) -> None:
    ast.parse(program)
    assert disagreements(Source(program.encode())) == []


def test_words_in_the_fields_of_an_f_string_are_names() -> None:
    text = "x = f'cuda {cuda + d[\"nccl\"]:>{apex}} nvcc'  # cudnn\n"
    found = [(t.text, t.kind) for t in tokens.find(Source(text.encode()))]
    assert found == [
        ("cuda", "string"), ("cuda", "name"), ("nccl", "string"), ("apex", "name"),
        ("nvcc", "string"), ("cudnn", "comment"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("has_apex", "apex"),
        ("apexcharts", ""),
        ("amp_Config", "amp_C"),
        ("ramp_C", ""),
        ("cupyx", "cupy"),
        ("use_flash_attn_2", "flash_attn"),
        ("is_xformers_available", "xformers"),
        ("bitsandbytes", "bitsandbytes"),
        ("TensorRTModule", "TensorRT"),
        ("transformer_engine", "transformer_engine"),
        ("torch.cuda.nvtx", "cuda"),
        ("CUTLASS", "CUTLASS"),
        ("triton", ""),
        ("warp", ""),
    ],
)
def test_names_of_packages_that_count_and_within_what(text, word) -> None:
    found = tokens.PATTERN.search(text)
    assert (found.group() if found else "") == word
    assert tokens.speaks(text, "cuda") == bool(word)
    assert not tokens.speaks(text, "npu")


def test_the_whole_token_around_a_word() -> None:
    text = "use_cuda_now = é_cuda = 'on cuda'\n"
    source = Source(text.encode())
    wholes = [source.text(token.whole) for token in tokens.find(source)]
    assert wholes == ["use_cuda_now", "é_cuda", "'on cuda'"]


@pytest.mark.parametrize("text", ["x = 'cuda", "x = f'{cuda", "x = f'{a:cuda", "x = '''cuda"])
def test_what_does_not_end_is_no_python(text) -> None:
    with pytest.raises(SyntaxError):
        tokens.find(Source(text.encode()))


def test_what_lies_around_a_place_innermost_first() -> None:
    spans = [Span(0, 10), Span(2, 8), Span(2, 5), Span(6, 8), Span(20, 30)]
    around = Enclosing((span, span) for span in spans)
    assert [s for s, _ in around.around(Span(3, 4))] == [Span(2, 5), Span(2, 8), Span(0, 10)]
    assert [s for s, _ in around.around(Span(6, 7))] == [Span(6, 8), Span(2, 8), Span(0, 10)]
    assert around.around(Span(9, 12)) == []
    assert [s for s, _ in around.around(Span(20, 30))] == [Span(20, 30)]
