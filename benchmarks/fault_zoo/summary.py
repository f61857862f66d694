"""Counting: which rule found what, from the results of all cases and variants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.fault_zoo.recorded import FULL, SKETCH
from benchmarks.fault_zoo.rules import RULES

Document = dict[str, Any]
GROUPS = {"float32": ("float32",), "bf16": ("autocast", "bfloat16")}
RULE_NAMES = (FULL, *(rule.name for rule in RULES), SKETCH)


class Tally(NamedTuple):
    """What one rule did in one group of precisions.

    Attributes:
        named: Effective cases (fault, strength, precision) whose operator it names first.
        cases: How many such cases there are.
        faults: Faults with at least one case named.
        all_faults: Faults with at least one effective case.
        wrong: Flags of operators whose kernel was right, in all cases together.
        alarms: Flags in benign runs, all together.
        alarmed: Benign runs with at least one.
        runs: Benign runs.
    """

    named: int
    cases: int
    faults: int
    all_faults: int
    wrong: int
    alarms: int
    alarmed: int
    runs: int

    @property
    def share(self) -> float:
        """Named cases of all effective ones."""
        return self.named / self.cases if self.cases else 0.0


def tally(document: Document, rule: str, group: str) -> Tally:
    """What a rule did in `float32` or `bf16`."""
    cases = [case for case in _of(document["faults"], group) if case["effective"]]
    runs = list(_of(document["variants"], group))
    named = [case for case in cases if case["rules"][rule]["first"]]
    alarms = [run["rules"][rule]["false"] for run in runs]
    return Tally(
        named=len(named),
        cases=len(cases),
        faults=len({case["fault"] for case in named}),
        all_faults=len({case["fault"] for case in cases}),
        wrong=sum(case["rules"][rule]["false"] for case in cases),
        alarms=sum(alarms),
        alarmed=sum(1 for count in alarms if count),
        runs=len(runs),
    )


def _of(items: Iterable[Document], group: str) -> Iterator[Document]:
    return (item for item in items if item["precision"] in GROUPS[group])


def weakest(cases: Sequence[Document], rule: str) -> str:
    """The smallest strength at which a rule names the operator; `none` or `ineffective`."""
    effective = [case for case in sorted(cases, key=lambda c: c["rank"]) if case["effective"]]
    if not effective:
        return "ineffective"
    found = next((case for case in effective if case["rules"][rule]["first"]), None)
    return "none" if found is None else str(found["strength"])


def missed(document: Document, rule: str = FULL) -> list[Document]:
    """Effective cases whose operator a rule does not name first."""
    effective = [case for case in document["faults"] if case["effective"]]
    return [case for case in effective if not case["rules"][rule]["first"]]


def ineffective(document: Document) -> list[Document]:
    """Cases that change no bit."""
    return [case for case in document["faults"] if not case["effective"]]


def known(document: Document) -> dict[tuple[str, str], tuple[float, int]]:
    """Kernels on the list of inaccurate ones: their largest R and in how many benign runs."""
    found: dict[tuple[str, str], tuple[float, int]] = {}
    for run in document["variants"]:
        seen: dict[tuple[str, str], float] = {}
        for one in run.get("known", []):
            name = one["operator"], one["dtype"]
            seen[name] = max(seen.get(name, 0.0), one["rms"])
        for name, rms in seen.items():
            most, runs = found.get(name, (0.0, 0))
            found[name] = max(most, rms), runs + 1
    return found
