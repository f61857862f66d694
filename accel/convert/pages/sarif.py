"""The report as SARIF 2.1.0 (OASIS standard, 27 March 2020), which code hosts and editors show.

Section numbers are the standard's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from urllib.parse import quote

from accel._version import __version__
from accel.convert.finding import FileResult, Finding, TreeResult
from accel.convert.keeping import is_commented
from accel.convert.pages.summary import Summary
from accel.convert.pages.words import document_of, family_of, rule_of
from accel.convert.walking import place_of

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_BOM = b"\xef\xbb\xbf"
_Object = dict[str, object]


def to_sarif(tree: TreeResult, summary: Summary) -> str:
    """The log, with one run.

    Conversions are notes, flags are warnings, blockers and bugs of the converter errors. What is
    kept is there too, suppressed, with the reason as its justification.
    """
    found = [(file, one) for file in tree.files for one in file.findings]
    identifiers = sorted({one.rule for _, one in found})
    numbers = {identifier: index for index, identifier in enumerate(identifiers)}
    run = {
        "tool": {
            "driver": {
                "name": "accel convert",
                "semanticVersion": __version__,
                "rules": [_rule(identifier) for identifier in identifiers],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(tree, summary)],
        "results": [result for file in tree.files for result in _results(tree, file, numbers)],
        "properties": {"verdict": f"{summary.verdict}: {summary.sentence}", "target": tree.target,
                       "chip": tree.chip},
    }  # fmt: skip
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _rule(identifier: str) -> _Object:
    """A reportingDescriptor (3.49)."""
    rule = rule_of(identifier)
    if rule is None:
        return {"id": identifier, "shortDescription": {"text": "A rule of your own."}}
    return {
        "id": rule.id,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        # No helpUri, which has to be absolute (3.49.12): the pages are part of the sources.
        "help": {"text": f"{rule.why}\n\nOn an Ascend: {rule.ascend}\n\n{document_of(rule.id)}"},
        "defaultConfiguration": {"level": "note" if rule.action == "convert" else "warning"},
        "properties": {"tags": [family_of(rule.id)]},
    }


def _invocation(tree: TreeResult, summary: Summary) -> _Object:
    """What became of the run itself (3.20): what was not read, and what the converter missed."""
    notes = [
        _notification(tree, one.path, None, f"Not read or parsed, and kept as it is: {one.error}")
        for one in summary.unread
    ]
    notes += [
        _notification(
            tree, path, entry.line,
            f"A bug of the converter: no rule accounts for {_text(entry.token)!r}",
        )
        for path, entry in summary.missing
    ]  # fmt: skip
    notes += [{"level": "error", "message": {"text": _text(one)}} for one in summary.conflicts]
    invocation: _Object = {"executionSuccessful": not notes}
    if notes:
        invocation["toolExecutionNotifications"] = notes
    return invocation


def _notification(tree: TreeResult, path: str, line: int | None, said: str) -> _Object:
    physical: _Object = {"artifactLocation": {"uri": _uri(tree, path)}}
    if line is not None:
        physical["region"] = {"startLine": line}
    return {
        "level": "error",
        "message": {"text": _text(said)},
        "locations": [{"physicalLocation": physical}],
    }


def _results(tree: TreeResult, file: FileResult, numbers: dict[str, int]) -> Iterator[_Object]:
    text = _Text(file)
    uri = _uri(tree, file.path)
    seen: dict[str, int] = {}
    for finding in file.findings:
        said = " ".join(part for part in (finding.message, finding.advice) if part)
        result: _Object = {
            "ruleId": finding.rule,
            "ruleIndex": numbers[finding.rule],
            "level": _level(finding),
            "message": {"text": _text(said)},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": uri},
                        "region": text.region(finding),
                    }
                }
            ],
            "partialFingerprints": {"accelFinding/v1": _fingerprint(file, finding, seen)},
            "properties": {"action": finding.action, "effort": finding.effort},
        }
        if finding.action == "keep":
            result["suppressions"] = [_suppression(finding)]
        yield result


def _level(finding: Finding) -> str:
    if finding.action == "flag":
        return "error" if finding.blocker else "warning"
    return "note"


def _fingerprint(file: FileResult, finding: Finding, seen: dict[str, int]) -> str:
    """The same for a finding whose file gained lines elsewhere (3.27.17)."""
    what = "\0".join((file.path, finding.rule, finding.action, finding.snippet))
    seen[what] = seen.get(what, 0) + 1
    data = f"{what}\0{seen[what]}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(data).hexdigest()[:32]


class _Text:
    """A file's text, for ends of regions."""

    def __init__(self, file: FileResult) -> None:
        self._utf8 = file.before.removeprefix(_BOM)

    def region(self, finding: Finding) -> _Object:
        """Where a finding is (3.30): columns from 1, the end exclusive."""
        covered = self._utf8[finding.span.start : finding.span.end].decode("utf-8", "replace")
        *above, last = re.split(r"\r\n|\r|\n", covered)
        region: _Object = {
            "startLine": finding.line,
            "startColumn": finding.column,
            "endLine": finding.line + len(above),
            "endColumn": len(last) + (1 if above else finding.column),
        }
        if finding.snippet:
            region["snippet"] = {"text": _text(finding.snippet)}
        return region


def _suppression(finding: Finding) -> _Object:
    """Why a place is kept (3.35)."""
    return {
        "kind": "inSource" if is_commented(finding) else "external",
        "status": "accepted",
        "justification": _text(finding.message),
    }


def _uri(tree: TreeResult, path: str) -> str:
    """A relative reference where the path is relative, so that it holds on another machine."""
    place = place_of(tree.roots, path)
    if not place.is_absolute():
        name = place.as_posix()
        # `a:b.py` would read as a scheme.
        return _quoted(f"./{name}" if ":" in name.split("/")[0] else name)
    return f"file://{_quoted(place.as_posix())}"


def _quoted(name: str) -> str:
    return quote(name.encode("utf-8", "surrogateescape"), safe="/")


def _text(text: str) -> str:
    """Text that can be encoded: a file's name may hold bytes that are no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")
