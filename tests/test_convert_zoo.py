"""The pattern zoo: programs in the manner of public repositories, each line labelled.

A comment `# convert`, `# keep` or `# flag` at a line's end says what must become of every site on
it. Lines without a label must have none.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from accel.convert.engine import convert_source
from accel.convert.options import Options

ZOO = sorted((Path(__file__).parent / "convert/zoo").glob("*.py"))
_LABEL = re.compile(r"#\s*((?:(?:convert|keep|flag)\b\s*)+)$")


def labels(text: str) -> dict[int, set[str]]:
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LABEL.search(line)
        if match:
            found[number] = set(match.group(1).split())
    return found


def actions(result) -> dict[int, set[str]]:
    """What happens to the code of each line: of findings, and of tokens of longer findings."""
    found: dict[int, set[str]] = {}
    for item in (*result.findings, *(e for e in result.ledger if e.kind != "comment")):
        found.setdefault(item.line, set()).add(item.action)
    return found


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_every_line_is_treated_as_its_label_says(path) -> None:
    data = path.read_bytes()
    result = convert_source(data, path.name, Options())
    assert result.error == ""
    wanted, found = labels(data.decode()), actions(result)
    wrong = {
        number: (sorted(wanted.get(number, ())), sorted(found.get(number, ())))
        for number in {*wanted, *found}
        if wanted.get(number, set()) != found.get(number, set())
    }
    lines = data.decode().splitlines()
    assert wrong == {}, "\n".join(f"{n}: {lines[n - 1]} -> {w}" for n, w in sorted(wrong.items()))


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_the_output_parses_and_a_second_run_changes_nothing(path) -> None:
    once = convert_source(path.read_bytes(), path.name, Options())
    ast.parse(once.after)
    twice = convert_source(once.after, path.name, Options())
    assert twice.after == once.after
    assert [e for e in (*once.ledger, *twice.ledger) if e.action == "missing"] == []


def test_the_zoo_is_large() -> None:
    count = Counter(
        label for path in ZOO for each in labels(path.read_text()).values() for label in each
    )
    assert count["convert"] >= 200
    assert count["keep"] >= 60
    assert count["flag"] >= 40
