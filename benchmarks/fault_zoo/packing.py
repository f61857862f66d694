"""Scores as short texts, so that the results file stays readable: `first, 4 flags, 0 false`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Document = dict[str, Any]
_TEXT = re.compile(r"(first, )?(\d+) flags, (\d+) false")
OURS = "accel.numerics"


def packed(document: Document) -> Document:
    """Results with scores as texts, and what a fault is said once.

    Where right operators were accused is kept for the rules of `accel.numerics` only.
    """
    summaries = {case["fault"]: case["summary"] for case in document["faults"]}
    summaries |= {run["variant"]: run["summary"] for run in document["variants"]}
    return {"summaries": summaries, **_changed(document, _packed)}


def unpacked(document: Document) -> Document:
    """The reverse of `packed`.

    Raises:
        ValueError: A score is no such text.
    """
    summaries = document["summaries"]

    def change(item: Document) -> Document:
        rules = {rule: _score(text, "fault" in item) for rule, text in item["rules"].items()}
        return {**item, "rules": rules, "summary": summaries[item.get("fault") or item["variant"]]}

    return _changed(document, change)


def _changed(document: Document, change: Callable[[Document], Document]) -> Document:
    return {
        **document,
        "faults": [change({"rules": {}, **case}) for case in document["faults"]],
        "variants": [change(run) for run in document["variants"]],
    }


def _packed(item: Document) -> Document:
    kept = {key: value for key, value in item.items() if key not in ("summary", "rules")}
    scores = item["rules"]
    kept["rules"] = {rule: _text(score) for rule, score in scores.items()}
    accused = {rule: score["where"] for rule, score in scores.items()
               if rule.startswith(OURS) and "where" in score}  # fmt: skip
    return {**kept, "accused": accused} if accused else kept


def _text(score: Document) -> str:
    first = "first, " if score.get("first") else ""
    return f"{first}{score['flags']} flags, {score['false']} false"


def _score(text: str, of_fault: bool) -> Document:
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no score such as 'first, 4 flags, 0 false'")
    score: Document = {"flags": int(found[2]), "false": int(found[3])}
    return {**score, "first": found[1] is not None} if of_fault else score
