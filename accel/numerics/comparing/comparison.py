"""What `compare` found, as plain values that the page, the text and the JSON are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from accel.numerics.storage.entries import Key, Phase, Place

Kind = Literal[
    "same",
    "rounding only",
    "different switch",
    "faulty operator",
    "different weight/input",
    "different program",
    "cannot decide",
]
KINDS: tuple[Kind, ...] = (
    "same",
    "rounding only",
    "different switch",
    "faulty operator",
    "different weight/input",
    "different program",
    "cannot decide",
)
Run = Literal["reference", "candidate"]

Status = Literal["equal", "rounding", "carried", "diverges", "unknown"]
STATUSES: tuple[Status, ...] = ("equal", "rounding", "carried", "diverges", "unknown")


@dataclass(frozen=True)
class Verdict:
    """One finding in words.

    Attributes:
        kind: Which of the seven kinds it is.
        sentence: It, in one sentence.
        evidence: Facts with numbers that it rests on, one sentence each.
        operator: The operator that it is about, or None.
        place: The line of the program that asked for that operator, where it is known.
        run: Which of the two runs is at fault or is special, where that is known.
    """

    kind: Kind
    sentence: str
    evidence: tuple[str, ...] = ()
    operator: Key | None = None
    place: Place | None = None
    run: Run | None = None


@dataclass(frozen=True)
class Precondition:
    """Something that the two runs begin with and that differs.

    Attributes:
        subject: `parameter`, `buffer`, `input`, `state`, `other` (a tensor made before the step),
            `random` (a generator's state, an operator's random numbers), `mode` (training,
            autocast, gradients), `argument` (of a call of the model), `ranks` (inputs that another
            rank has in the other run).
        name: Which one: `blocks.0.weight`, `0`, `call 0: training`.
        reference: What the reference has, in a few words.
        candidate: What the candidate has.
        relation: How the candidate's follows from the reference's, if it was found: `transposed`,
            `same elements in another order`, `scaled by 1.001`, `rounded to bfloat16`,
            `few elements differ`, `differs by rounding`; else empty.
        distance: L2 norm of the difference over the reference's; None for what is no tensor.
        decisive: Whether it explains a difference, and is not merely to be known.
    """

    subject: Literal[
        "parameter", "buffer", "input", "state", "other", "random", "mode", "argument", "ranks"
    ]
    name: str
    reference: str
    candidate: str
    relation: str = ""
    distance: float | None = None
    decisive: bool = True

    def __str__(self) -> str:
        how = f": {self.relation}" if self.relation else ""
        far = "" if self.distance is None else f" (relative distance {self.distance:.3g})"
        values = f" is {self.candidate}, in the reference {self.reference}"
        kind = "" if self.subject in ("mode", "argument") else f"{self.subject} "
        return f"{kind}{self.name}{values}{how}{far}"


@dataclass(frozen=True)
class Accuracy:
    """How right one operator of one run is, by float64 replay from its own recorded inputs.

    Attributes:
        verdict: `right`, `faulty`, `unchecked` (`reason` tells why), or `known inaccurate`: a
            kernel on the list of inaccurate ones, within the error that was measured of it (its
            limits). That is no fault, and not right either.
        reason: What is wrong or known, or why it was not checked; empty if right.
        rms: R, the error's root mean square over that of the yardstick; None if unchecked.
        worst: M, the largest elementwise ratio of error to yardstick.
        misrounding: Share of elements that are not the float64 result rounded (16-bit outputs);
            None for other dtypes.
        limit_rms: The limit above which R is a fault; of a known kernel its bound.
        limit_worst: The same for M.
        limit_misrounding: The same for the misrounding rate; None where it does not apply.
        error: L2 norm of output - float64(inputs) over that of the float64 result.
        accumulated: Distance from the chained float64 truth, in units of the unit roundoff of the
            output's dtype; None where there is none.
        instance: The operator that was replayed in its place (level `check` replays one instance
            of each signature); None if it was itself.
    """

    verdict: Literal["right", "faulty", "unchecked", "known inaccurate"]
    reason: str = ""
    rms: float | None = None
    worst: float | None = None
    misrounding: float | None = None
    limit_rms: float | None = None
    limit_worst: float | None = None
    limit_misrounding: float | None = None
    error: float | None = None
    accumulated: float | None = None
    instance: Key | None = None

    @property
    def is_own_fault(self) -> bool:
        """Whether it is faulty and was itself replayed."""
        return self.verdict == "faulty" and self.instance is None


@dataclass(frozen=True)
class Element:
    """One element of an output in which the runs, or a run and float64, are furthest apart.

    Attributes:
        index: Its place in the tensor.
        reference: Its value in the reference, None if that was not kept.
        candidate: Its value in the candidate, None if that was not kept.
        exact: What float64 makes of the candidate's inputs, or of the reference's where only that
            could be replayed; None if neither could.
        ulps: Distance of the candidate from `exact` (from the reference where there is none; of
            the reference where only the candidate could be replayed) in units in the last place of
            the output's dtype.
    """

    index: tuple[int, ...]
    reference: float | None
    candidate: float | None
    exact: float | None
    ulps: float


@dataclass(frozen=True)
class Decomposition:
    """Where the difference of an operator's output comes from, as L2 norms over the reference's.

    out_B - out_A = [out_B - f64(in_B)] + [f64(in_B) - f64(in_A)] + [f64(in_A) - out_A].

    Attributes:
        candidate: The candidate's own error, the first bracket.
        inputs: What came with the inputs, the second.
        reference: The reference's own error, the third.
    """

    candidate: float
    inputs: float
    reference: float


@dataclass(frozen=True)
class Row:
    """One value that both runs have: an output of an operator, a boundary of a module, a gradient.

    Attributes:
        order: Its place in the reference's execution order; rows are sorted by it.
        name: What it is, unique among rows: `forward:blocks.0.mlp/addmm#0` and, for an operator
            with several outputs, ` output 1`; `output 0 of blocks.0.mlp`; `gradient of weight`.
        key: The operator (the reference's name for it); None for what no operator is aligned to.
        phase: Of the operator; for boundaries that of the module call.
        module: The module path.
        module_class: The module's class, empty if unknown.
        op: The operator's name, `module` for a boundary, `gradient`, `parameter` or `state`.
        aligned: How the two were found to be the same thing: `name`, `order` (the same operators
            in the same module, counted otherwise), `module`, `content`.
        place: The program line in the candidate, or the reference.
        dtypes: As (reference, candidate).
        shape: Of the value in the candidate.
        distance: L2 norm of the difference over the reference's norm, from sketches or, where both
            are kept, from the elements; None if one of them has neither. `inf` where one of them
            has non-finite elements that the other lacks.
        input_distance: The largest such distance among its inputs; None if there are none known.
        expected: Up to which distance its inputs and rounding explain it; None if not estimated.
        status: `equal` (as far as sketches tell: all 72 numbers are), `rounding` (explained by the
            dtype's rounding), `carried` (explained by its inputs), `diverges` (neither), `unknown`.
        masks: Non-finite elements as (reference, candidate) texts where they differ; else None.
        reference: How right the reference's operator is; None if it was not replayed.
        candidate: How right the candidate's is.
        contribution: What this operator adds to the loss difference, in units of the loss; None
            where there is no gradient or no replay.
        decomposition: Where its difference comes from; None without replay of both.
        elements: The worst elements; empty unless kept.
        histogram: Of the candidate's errors in units in the last place: (lower edge, count) of
            bins that double: 0, 0.5, 1, 2, 4, …; empty unless replayed.
        arguments: What its operators were given, as (name, reference, candidate) texts: `1e-05`,
            `float32 [4, 48]`, `(not given)`; empty for what no two operators made.
    """

    order: int
    name: str
    key: Key | None
    phase: Phase
    module: str
    module_class: str
    op: str
    aligned: Literal["name", "order", "module", "content"]
    place: Place | None
    dtypes: tuple[str, str]
    shape: tuple[int, ...]
    distance: float | None
    input_distance: float | None
    expected: float | None
    status: Status
    masks: tuple[str, str] | None = None
    reference: Accuracy | None = None
    candidate: Accuracy | None = None
    contribution: float | None = None
    decomposition: Decomposition | None = None
    elements: tuple[Element, ...] = ()
    histogram: tuple[tuple[float, int], ...] = ()
    arguments: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Unmatched:
    """An operator that only one run has.

    Attributes:
        run: Which run has it.
        key: Its name there.
        place: The program line, where known.
        dtypes: Of its outputs.
    """

    run: Run
    key: Key
    place: Place | None
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class ModuleRow:
    """One module, all its calls together.

    Attributes:
        module: Its path.
        module_class: Its class, empty if unknown.
        operators: How many operators of the reference ran in it.
        unmatched: How many operators of either run have no counterpart.
        forward: Largest distance among the outputs of its calls; None if unknown.
        backward: Largest distance among gradients in it.
        status: The worst status of its rows (`diverges` before `carried`, …).
        faulty: How many of its operators replay as faulty, in either run.
    """

    module: str
    module_class: str
    operators: int
    unmatched: int
    forward: float | None
    backward: float | None
    status: Status
    faulty: int


@dataclass(frozen=True)
class Coverage:
    """How much of one run was checked by replay, by kind of operator.

    Attributes:
        run: Which run.
        checked: Operators replayed in float64, by operator name.
        unchecked: Operators that were judged in neither way, by operator name.
        reasons: Why, by operator name.
        unneeded: Operators with nothing to check: views, allocations, random numbers.
        by_signature: Operators that were not replayed, but another of the same signature was
            (level `check`), by operator name.
        nothing: Why there is nothing to check, with how many operators.
    """

    run: Run
    checked: dict[str, int]
    unchecked: dict[str, int]
    reasons: dict[str, str]
    unneeded: int
    by_signature: dict[str, int] = field(default_factory=dict)
    nothing: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Attribution:
    """The loss difference, predicted from local errors and recorded gradients.

    Attributes:
        of: `candidate - reference`, or `candidate - float64` where only one run was kept in full.
        actual: The difference that was recorded (or replayed), None if unknown.
        predicted: The sum of all contributions: <dL/d(out), local error>.
        loss: The reference's loss.
        linear: Whether predicted and actual agree within a factor of 2 (or the rounding of the
            loss); where not, the contributions are no attribution, and the page has to say so.
            None where the actual difference is unknown.
        contributions: (operator's name, contribution), largest first.
    """

    of: str
    actual: float | None
    predicted: float
    loss: float
    linear: bool | None
    contributions: tuple[tuple[Key, float], ...]


@dataclass(frozen=True)
class RankCell:
    """One rank of the reference against one rank of the candidate.

    Attributes:
        reference: The reference's rank.
        candidate: The candidate's rank.
        inputs: Largest distance between the inputs of their calls; None if unknown or of
            other shapes.
        values: Largest distance over all aligned values; only for equal ranks, else None.
        status: Of those values; `unknown` for other ranks.
        first: Where they diverge first; None if nowhere.
    """

    reference: int
    candidate: int
    inputs: float | None
    values: float | None
    status: Status
    first: str | None


@dataclass(frozen=True)
class StepSummary:
    """The finding of one recorded step."""

    step: int
    kind: Kind
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        verdict: The finding.
        findings: Everything that was found, in the order of what explains what; the first is the
            verdict.
        reference: Path of the recording that is believed.
        candidate: Path of the recording that is checked.
        levels: Their levels: `sketch`, `check` or `full`.
        step: The step that the verdict and the rows are of.
        steps: Every step that was compared, in order.
        environment: Versions, chip, switches, seed and revision where they differ, as
            (reference, candidate).
        preconditions: What the runs begin with and that differs.
        rows: Every aligned value, in execution order.
        unmatched: Operators without a counterpart.
        modules: The modules, in execution order.
        coverage: How much of each run was checked by replay; empty without replay.
        attribution: The loss difference by operators; None without replay.
        ranks: Every pair of ranks; empty if both have one.
        divergence: Name of the first row that diverges, None if none does.
        zoom: The command that records the flagged window of the candidate in full, and the same
            for the reference; empty where nothing is flagged or all is there.
        notes: What else should be known: incomplete recordings, tensors not kept, factors used.
    """

    verdict: Verdict
    findings: tuple[Verdict, ...]
    reference: str
    candidate: str
    levels: tuple[str, str]
    step: int
    steps: tuple[StepSummary, ...]
    environment: dict[str, tuple[str, str]]
    preconditions: tuple[Precondition, ...]
    rows: tuple[Row, ...]
    unmatched: tuple[Unmatched, ...]
    modules: tuple[ModuleRow, ...]
    coverage: tuple[Coverage, ...]
    attribution: Attribution | None
    ranks: tuple[RankCell, ...]
    divergence: str | None
    zoom: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the runs agree: `same` or `rounding only`."""
        return self.verdict.kind in ("same", "rounding only")

    @property
    def exit_status(self) -> int:
        """For a command: 0 they agree, 1 they do not, 3 it cannot be decided."""
        if self.ok:
            return 0
        return 3 if self.verdict.kind == "cannot decide" else 1

    def count(self, status: Status) -> int:
        """How many rows have a status."""
        return sum(row.status == status for row in self.rows)

    def row(self, name: str) -> Row:
        """The row of a name.

        Raises:
            KeyError: There is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_text(self, worst: int = 10) -> str:
        """The comparison for a terminal.

        Args:
            worst: How many of the rows furthest apart to list.
        """
        from accel.numerics.comparing.presentation import as_text

        return as_text(self, worst)

    def to_json(self) -> str:
        """The comparison as a JSON document; infinity and NaN become strings."""
        from accel.numerics.comparing.presentation import as_json

        return as_json(self)

    def to_html(self) -> str:
        """The comparison as one self-contained page."""
        from accel.numerics.pages.page import to_html

        return to_html(self)
