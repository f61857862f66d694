"""What the findings of a tree come to: a verdict, blockers, work, and what nobody accounted for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from accel.convert.finding import Effort, Entry, Finding, TreeResult
from accel.convert.keeping import is_switched_off
from accel.convert.pages.callers import callers
from accel.convert.pages.verdict import Verdict, decide
from accel.convert.pages.words import EFFORTS, OPERATORS, PACKAGES, family_of, percent, title_of
from accel.convert.rules import other_vendors
from accel.convert.walking import PYTHON, Omitted

_TO_REVIEW = ("convert", "review")


class Place(NamedTuple):
    """A finding and its file."""

    path: str
    finding: Finding


class Group(NamedTuple):
    """Findings about one thing.

    Attributes:
        subject: What they are about: an operator, a package, a kernel, or what the rule is about.
        rules: Ids of the rules that said it.
        reasons: The different messages.
        advice: The different pieces of advice.
        places: In the order of files and lines.
        named_at: Lines of Python that name a file of these places, as `file:line`; of blockers.
    """

    subject: str
    rules: tuple[str, ...]
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    places: tuple[Place, ...]
    named_at: tuple[str, ...] = ()


class Work(NamedTuple):
    """An effort class.

    Attributes:
        effort: Who has work with it.
        sites: How many places.
        lines: On how many lines.
        files: In how many files.
    """

    effort: Effort
    sites: int
    lines: int
    files: int


class Unread(NamedTuple):
    """A file that could not be read or parsed."""

    path: str
    error: str


class Missing(NamedTuple):
    """A token that no rule accounts for: a bug of the converter."""

    path: str
    entry: Entry


@dataclass(frozen=True)
class Summary:
    """The whole tree in figures and groups.

    Attributes:
        actions: How many findings were converted, kept, flagged.
        switched_off: How many of those kept would be converted, were their rules not switched off.
        reviews: What is converted and needs a look all the same.
        vendors: Other vendors that some code is bound to, as `--from` calls them.
        work: Every effort class.
        blockers: What decides whether the program can be moved at all.
        human: What else is for a human in Python files: no operators or packages.
        operators: Operators and dtypes with limits on the chip; here as below without blockers.
        packages: Packages and compiled extensions, with what takes their place.
        elsewhere: What files that are not Python hold besides blockers, by their language.
        tokens: How many tokens of the ledger have each action.
        missing: Tokens without an action.
        unread: Files that are as they were, for they could not be read or parsed.
        conflicts: What stands against writing.
        omitted: What was left out of the run.
        files: How many files were read, by language.
        lines: How many lines they have.
        changed: How many files the conversion changes.
    """

    actions: Mapping[str, int]
    switched_off: int
    reviews: tuple[Place, ...]
    vendors: tuple[str, ...]
    work: tuple[Work, ...]
    blockers: tuple[Group, ...]
    human: tuple[Group, ...]
    operators: tuple[Group, ...]
    packages: tuple[Group, ...]
    elsewhere: Mapping[str, tuple[Group, ...]]
    tokens: Mapping[str, int]
    missing: tuple[Missing, ...]
    unread: tuple[Unread, ...]
    conflicts: tuple[str, ...]
    omitted: tuple[Omitted, ...]
    files: Mapping[str, int]
    lines: int
    changed: int

    @property
    def verdict(self) -> Verdict:
        """Whether the program can be moved."""
        return self._decided[0]

    @property
    def sentence(self) -> str:
        """Why, in one sentence."""
        return self._decided[1]

    @cached_property
    def _decided(self) -> tuple[Verdict, str]:
        return decide(self)

    @property
    def sites(self) -> int:
        """Places that tie the program to its device: converted, for a human, or switched off."""
        return self.actions["convert"] + self.actions["flag"] + self.switched_off

    @property
    def share(self) -> str:
        """The part of the sites that is converted."""
        return percent(self.actions["convert"], self.sites)


def summarize(tree: TreeResult, omitted: Sequence[Omitted] = ()) -> Summary:
    """Sum up a run.

    Args:
        tree: Its results.
        omitted: What the walk left out.
    """
    places = [Place(file.path, one) for file in tree.files for one in file.findings]
    actions = Counter(place.finding.action for place in places)
    counted = {action: actions[action] for action in ("convert", "flag", "keep")}
    entries = [(file.path, entry) for file in tree.files for entry in file.ledger]
    tokens = Counter(entry.action for _, entry in entries)
    missing = tuple(Missing(*one) for one in entries if one[1].action == "missing")
    unread = tuple(Unread(file.path, file.error) for file in tree.files if file.error)
    blockers = groups((place for place in places if place.finding.blocker), callers(tree))
    flagged = _flagged(tree, places)
    return Summary(
        actions=counted,
        switched_off=sum(is_switched_off(place.finding) for place in places),
        reviews=tuple(p for p in places if (p.finding.action, p.finding.effort) == _TO_REVIEW),
        vendors=tuple(dict.fromkeys(_vendors(places))),
        work=tuple(_work(effort, places) for effort in EFFORTS),
        blockers=blockers,
        human=flagged(""),
        operators=flagged(OPERATORS),
        packages=flagged(PACKAGES),
        elsewhere=_elsewhere(tree),
        tokens={action: tokens[action] for action in ("convert", "flag", "keep", "missing")},
        missing=missing,
        unread=unread,
        conflicts=tree.conflicts,
        omitted=tuple(omitted),
        files=dict(sorted(Counter(file.language for file in tree.files).items())),
        lines=sum(file.lines for file in tree.files),
        changed=sum(file.is_changed for file in tree.files),
    )


def groups(
    places: Iterable[Place], named_at: Mapping[str, tuple[str, ...]] | None = None
) -> tuple[Group, ...]:
    """Findings by what they are about; the largest group first.

    Args:
        places: The findings.
        named_at: Lines that name a file, by its path.
    """
    named = named_at or {}
    found: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        found[place.finding.subject or title_of(place.finding.rule)].append(place)
    ordered = sorted(found.items(), key=lambda one: (-len(one[1]), one[0]))
    return tuple(
        Group(
            subject,
            tuple(sorted({one.finding.rule for one in members})),
            tuple(dict.fromkeys(one.finding.message for one in members)),
            tuple(dict.fromkeys(one.finding.advice for one in members if one.finding.advice)),
            tuple(members),
            tuple(dict.fromkeys(line for path, _ in members for line in named.get(path, ()))),
        )
        for subject, members in ordered
    )


def _work(effort: Effort, places: Sequence[Place]) -> Work:
    chosen = [
        place
        for place in places
        if place.finding.effort == effort and place.finding.action != "keep"
    ]
    lines = {(place.path, place.finding.line) for place in chosen}
    return Work(effort, len(chosen), len(lines), len({path for path, _ in lines}))


def _flagged(tree: TreeResult, places: Sequence[Place]) -> Callable[[str], tuple[Group, ...]]:
    """A function from a family's name (or "" for the others) to its flagged groups in Python."""
    python = {file.path for file in tree.files if file.language == PYTHON}
    kinds: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        finding = place.finding
        # Blockers have been named.
        if finding.action == "flag" and not finding.blocker and place.path in python:
            family = family_of(finding.rule)
            kinds[family if family in (OPERATORS, PACKAGES) else ""].append(place)
    return lambda family: groups(kinds[family])


def _vendors(places: Sequence[Place]) -> Iterator[str]:
    for _, finding in places:
        if finding.rule == other_vendors.RULE and finding.action == "flag":
            yield finding.subject.removeprefix(other_vendors.SUBJECT)


def _elsewhere(tree: TreeResult) -> Mapping[str, tuple[Group, ...]]:
    found: dict[str, list[Place]] = defaultdict(list)
    for file in tree.files:
        if file.language != PYTHON:
            found[file.language] += (
                Place(file.path, one)
                for one in file.findings
                if one.action != "keep" and not one.blocker
            )
    return {language: groups(found[language]) for language in sorted(found) if found[language]}


def status(tree: TreeResult, *, check: bool) -> int:
    """The exit status that a tree deserves.

    Files that could not be read (4) come first, for nobody knows what is in them; then what the
    tool could do by itself (1, where `check` asks for it); then what only people can (3).
    """
    if any(file.error for file in tree.files):
        return 4
    if check and any(file.is_changed for file in tree.files):
        return 1
    human = any(one.action == "flag" for file in tree.files for one in file.findings)
    unknown = any(one.action == "missing" for file in tree.files for one in file.ledger)
    return 3 if human or unknown or tree.conflicts else 0
