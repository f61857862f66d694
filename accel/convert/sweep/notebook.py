"""Notebooks: code cells are Python, their commands are shell, and the rest is kept."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace

from accel.convert.finding import Entry, FileResult, Finding, Span
from accel.convert.sweep import shell
from accel.convert.sweep.notebook_cells import Code, code_of, joined, parted, takes_python, unmasked
from accel.convert.sweep.notebook_json import Cell, cells_of, offsets, rewritten
from accel.convert.sweep.text import Text, ledger_of

_BOM = b"\xef\xbb\xbf"
_OUTSIDE = "not code: a document, an output or metadata of the notebook; none is ever changed"


def sweep(text: Text) -> FileResult:
    """Convert a notebook; what is not a changed source string stays byte for byte."""
    kept = FileResult(text.path, "notebook", text.data, text.data, lines=text.count)
    if b"torch" not in text.data and next(text.hits(), None) is None:
        return kept
    try:
        book = _Book(text)
    except (ValueError, RecursionError) as error:
        return replace(kept, error=f"not a notebook that can be read: {error}")
    return book.result()


class _Book:
    """A notebook with its code cells."""

    def __init__(self, text: Text) -> None:
        self.text = text
        bom = len(_BOM) if text.data.startswith(_BOM) else 0
        self.chars = text.data[bom:].decode("utf-8")
        self.cells, language = cells_of(self.chars)
        self.is_python = language in ("", "python", "python3", "ipython")
        self.cursor = _Cursor(self.chars, bom)
        self.codes = [
            code_of(number, cell.text)
            for number, cell in enumerate(self.cells, 1)
            if cell.kind == "code" and self.is_python
        ]
        self.places = {code.number: self._place(code.number) for code in self.codes}

    def _place(self, number: int) -> list[int]:
        """The byte of each character of a cell, and of its end."""
        found: list[int] = []
        end = 0
        for literal in self.cells[number - 1].sources:
            *characters, end = offsets(self.chars, literal)
            found += [self.cursor.byte_of(at) for at in characters]
        return [*found, self.cursor.byte_of(end)] if found else [0]

    def result(self) -> FileResult:
        """Convert the code and account for everything."""
        # The engine's rules know the sweep's, so that it cannot be imported at the top.
        from accel.convert.engine import convert_source

        python = [code for code in self.codes if code.kind == "python" and not code.error]
        document, starts = joined(python)
        done = convert_source(document.encode("utf-8"), self.text.path, self.text.options)
        kept = FileResult(
            self.text.path, "notebook", self.text.data, self.text.data, lines=self.text.count
        )
        if done.error:
            return replace(kept, error=f"its code: {done.error}")
        findings, entries = self._mapped(done, python, starts, document)
        other = [finding for code in self.codes for finding in self._other(code)]
        findings += other
        entries += self._rest(other, entries)
        after = self._written(done.after.decode("utf-8"), python)
        return replace(
            kept,
            after=after,
            findings=tuple(sorted(findings, key=lambda finding: (finding.span, finding.rule))),
            ledger=tuple(sorted(entries, key=lambda entry: entry.span)),
        )

    # --- from the Python text back to the file -------------------------------------------------

    def _mapped(
        self, done: FileResult, python: list[Code], starts: dict[int, int], document: str
    ) -> tuple[list[Finding], list[Entry]]:
        characters = _character_table(document)
        shifts = [_Shift(code) for code in python]
        begins = [starts[code.number] for code in python]

        def place(span: Span) -> tuple[Span, int] | None:
            first, last = characters[span.start], characters[span.end]
            index = bisect_right(begins, first) - 1
            if index < 0:
                return None
            number, begin = python[index].number, begins[index]
            table, shift = self.places[number], shifts[index]
            low, high = shift.to_text(first - begin), shift.to_text(last - begin)
            if low >= len(table):
                return None
            return Span(table[low], table[min(high, len(table) - 1)]), number

        findings, entries = [], []
        for finding in done.findings:
            found = place(finding.span)
            if found:
                span, number = found
                findings.append(self._moved(finding, span, number))
        for entry in done.ledger:
            found = place(entry.span)
            if found:
                line = self.text.line_of(found[0].start)
                entries.append(entry._replace(span=found[0], line=line))
        return findings, entries

    def _moved(self, finding: Finding, span: Span, number: int) -> Finding:
        line = self.text.line_of(span.start)
        column = span.start - self.text.line_span(line).start + 1
        code = next(code for code in self.codes if code.number == number)
        snippet = f"cell {number}: {unmasked(code, finding.snippet)}"
        return replace(finding, span=span, line=line, column=column, snippet=snippet, edits=())

    # --- what is not Python --------------------------------------------------------------------

    def _other(self, code: Code) -> Iterator[Finding]:
        table = self.places[code.number]
        if code.kind == "shell":
            yield from self._shell(code, Span(0, len(code.text)), skip_first=True)
        elif code.kind == "other" or code.error:
            yield from self._foreign(code, table)
        for span in code.commands if not code.error and code.kind == "python" else ():
            takes = takes_python(code.text[span.start : span.end])
            yield from self._magic(code, span) if takes else self._shell(code, span)

    def _shell(self, code: Code, span: Span, *, skip_first: bool = False) -> Iterator[Finding]:
        """Look at commands as a script of their own, and move the findings into the file."""
        table = self.places[code.number]
        body = code.text[span.start : span.end]
        lead = len(body) - len(body.lstrip().lstrip("!%"))
        if skip_first:
            lead = body.find("\n") + 1 or len(body)
        # One byte a character, whatever it is: the places are those of the source.
        script = Text(body.encode("ascii", "replace"), self.text.path, self.text.options)
        inner = shell.find_in(script, Span(lead, len(body)), converts=False)
        for finding in inner:
            low, high = (table[span.start + offset] for offset in finding.span)
            yield self._moved(finding, Span(low, high), code.number)

    def _magic(self, code: Code, span: Span) -> Iterator[Finding]:
        """A magic with Python code that is not converted where it stands."""
        table = self.places[code.number]
        place = Span(table[span.start], table[span.end])
        if next(self.text.hits(place), None) is None:
            return
        line = code.text[span.start : span.end].strip()
        found = self.text.flag(
            place, "ACC128", f"cell {code.number} has Python code in a magic's arguments: {line}",
            "Write the code on a line of its own and convert again, or convert it by hand.",
            subject=f"cell {code.number}",
        )  # fmt: skip
        yield replace(found, snippet=f"cell {code.number}: {line}")

    def _foreign(self, code: Code, table: list[int]) -> Iterator[Finding]:
        span = Span(table[0], table[-1])
        if next(self.text.hits(span), None) is None:
            return
        line = code.text.strip().partition("\n")[0]
        reason = (
            f"does not parse: {code.error}" if code.error else f"is in another language: {line}"
        )
        finding = self.text.flag(
            span, "ACC128", f"cell {code.number} {reason}", "Read this cell and decide.",
            effort="review", subject=f"cell {code.number}",
        )  # fmt: skip
        yield replace(finding, snippet=f"cell {code.number}: {line}")

    def _rest(self, findings: list[Finding], entries: list[Entry]) -> list[Entry]:
        """Words that are in no Python code: in commands, or in no code at all."""
        out = []
        code = sorted(Span(place[0], place[-1]) for place in self.places.values())
        begins = [span.start for span in code]
        known = {entry.span for entry in entries}
        for entry in ledger_of(self.text, findings):
            around = code[bisect_right(begins, entry.span.start) - 1] if code else Span(0, 0)
            if entry.action != "missing":
                out.append(entry)
            elif not around.contains(entry.span):
                out.append(entry._replace(action="keep", rule="ACC139", reason=_OUTSIDE))
            elif entry.span not in known:
                out.append(entry)
        return out

    # --- writing -------------------------------------------------------------------------------

    def _written(self, converted: str, python: list[Code]) -> bytes:
        if not python:
            return self.text.data
        changes: list[tuple[int, int, str]] = []
        sources = parted(converted, python)
        for code in python:
            if sources[code.number] != code.text:
                cell: Cell = self.cells[code.number - 1]
                changes += rewritten(self.chars, cell, sources[code.number])
        chars = _replaced(self.chars, changes)
        written = cells_of(chars)[0] if changes else []
        for code in python if changes else ():
            if written[code.number - 1].text != sources[code.number]:
                raise RuntimeError(f"cell {code.number} would not come out as converted")
        bom = _BOM if self.text.data.startswith(_BOM) else b""
        return bom + chars.encode("utf-8")


def _replaced(chars: str, changes: list[tuple[int, int, str]]) -> str:
    """A text with some stretches replaced; of two at one place the first comes first."""
    pieces, at = [], 0
    for start, end, new in sorted(changes, key=lambda change: change[:2]):
        pieces += [chars[at:start], new]
        at = end
    return "".join([*pieces, chars[at:]])


class _Shift:
    """Places of a masked cell in its own text: a placeholder is not as long as what it is for."""

    def __init__(self, code: Code) -> None:
        self.old = [0]
        self.new = [0]
        for line in code.text.splitlines(keepends=True):
            self.old.append(self.old[-1] + len(line))
        for line in code.masked.splitlines(keepends=True):
            self.new.append(self.new[-1] + len(line))

    def to_text(self, offset: int) -> int:
        """The place in the text; only what is behind a placeholder is asked for."""
        line = bisect_right(self.new, offset) - 1
        if line + 1 == len(self.new):
            return self.old[-1]
        # Counted from the line's end, since placeholders come first.
        return max(self.old[line], self.old[line + 1] - (self.new[line + 1] - offset))


class _Cursor:
    """Bytes of characters, asked for in order: a table of a whole notebook would be large."""

    def __init__(self, chars: str, first: int) -> None:
        self.chars = chars
        self.first = first
        self.at, self.byte = 0, first

    def byte_of(self, at: int) -> int:
        """The byte at which a character begins."""
        if at < self.at:
            self.at, self.byte = 0, self.first
        self.byte += len(self.chars[self.at : at].encode("utf-8"))
        self.at = at
        return self.byte


def _character_table(chars: str) -> list[int]:
    """The character that each byte belongs to, and the end."""
    table: list[int] = []
    for index, char in enumerate(chars):
        table += [index] * (1 if char < "\x80" else len(char.encode("utf-8")))
    return [*table, len(chars)]
