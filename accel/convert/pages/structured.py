"""The report as JSON, whose form docs/convert.md documents."""

from __future__ import annotations

import json
from collections.abc import Sequence

from accel._version import __version__
from accel.convert.finding import Entry, FileResult, Finding, TreeResult
from accel.convert.pages.runs import Trace
from accel.convert.pages.summary import Group, Summary
from accel.convert.pages.words import family_of

SCHEMA = "accel.convert"
SCHEMA_VERSION = 1  # rises when a key changes its meaning or goes away


def to_json(tree: TreeResult, summary: Summary, trace: Trace | None = None) -> str:
    """Everything: what a run found is the same text, whenever and with however many processes."""
    document = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "accel": __version__,
        "roots": list(tree.roots),
        "target": tree.target,
        "chip": tree.chip,
        "verdict": {"kind": summary.verdict, "sentence": summary.sentence},
        "summary": _summary(summary),
        "files": [_file(file) for file in tree.files],
        "trace": None if trace is None else _trace(trace),
    }
    return json.dumps(document, indent=1) + "\n"


def _summary(summary: Summary) -> dict[str, object]:
    return {
        "files": dict(summary.files),
        "lines": summary.lines,
        "changed_files": summary.changed,
        "sites": summary.sites,
        "findings": dict(summary.actions),
        "switched_off": summary.switched_off,
        "other_vendors": list(summary.vendors),
        "tokens": dict(summary.tokens),
        "work": [one._asdict() for one in summary.work],
        "blockers": _groups(summary.blockers),
        "for_a_human": _groups(summary.human),
        "operators": _groups(summary.operators),
        "packages": _groups(summary.packages),
        "other_files": {name: _groups(found) for name, found in summary.elsewhere.items()},
        "missing": [{"path": path, **_entry(entry)} for path, entry in summary.missing],
        "unread": [one._asdict() for one in summary.unread],
        "conflicts": list(summary.conflicts),
        "omitted": [one._asdict() for one in summary.omitted],
    }


def _groups(groups: Sequence[Group]) -> list[dict[str, object]]:
    return [
        {
            "subject": one.subject,
            "rules": list(one.rules),
            "reasons": list(one.reasons),
            "advice": list(one.advice),
            "places": [{"path": path, "line": finding.line} for path, finding in one.places],
            "named_at": list(one.named_at),
        }
        for one in groups
    ]


def _file(file: FileResult) -> dict[str, object]:
    return {
        "path": file.path,
        "language": file.language,
        "lines": file.lines,
        "changed": file.is_changed,
        "error": file.error or None,
        "findings": [finding_to_json(one) for one in file.findings],
        "ledger": [_entry(one) for one in file.ledger],
    }


def finding_to_json(finding: Finding) -> dict[str, object]:
    """One finding."""
    return {
        "rule": finding.rule,
        "family": family_of(finding.rule),
        "action": finding.action,
        "effort": finding.effort,
        "blocker": finding.blocker,
        "line": finding.line,
        "column": finding.column,
        "span": list(finding.span),
        "subject": finding.subject or None,
        "message": finding.message,
        "advice": finding.advice or None,
        "snippet": finding.snippet,
    }


def _entry(entry: Entry) -> dict[str, object]:
    return {
        "token": entry.token,
        "kind": entry.kind,
        "line": entry.line,
        "span": list(entry.span),
        "action": entry.action,
        "rule": entry.rule or None,
    }


def _trace(trace: Trace) -> dict[str, object]:
    return {
        "sentence": trace.sentence,
        "calls": trace.calls,
        "unseen": [one._asdict() for one in trace.unseen],
        "idle": [{"path": path, "line": finding.line, "rule": finding.rule}
                 for path, finding in trace.idle],
    }  # fmt: skip
