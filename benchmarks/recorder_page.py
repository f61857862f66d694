"""The tables of cost in docs/numerics.md, out of the results of two scripts.

    python benchmarks/recorder_page.py

writes them between their marks, from `results/recorder_cost.json` (recorder_cost.py) and
`results/recorder_msprobe.json` (recorder_msprobe.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "numerics.md"
BEGIN = "<!-- made by benchmarks/recorder_page.py: begin -->"
END = "<!-- made by benchmarks/recorder_page.py: end -->"
Document = dict[str, Any]
UNKNOWN = "not measured"


def load(name: str) -> Document:
    """A result file."""
    document: Document = json.loads((RESULTS / f"{name}.json").read_text())
    return document


def tables(cost: Document, msprobe: Document) -> str:
    """All that stands between the marks, in Markdown.

    Args:
        cost: What recorder_cost.py wrote.
        msprobe: What recorder_msprobe.py wrote.
    """
    return "\n\n".join(
        [
            f"Times of a plain step, at `sketch`, by processor time and (by the clock), on "
            f"{_machine(cost)}; idle is a step inside the block that is not recorded:",
            _cost(cost["rows"]),
            f"Beside msprobe {msprobe['msprobe']['mindstudio-probe']}, every step recorded, by the "
            f"clock, on {_machine(msprobe)}:",
            _beside(msprobe["rows"]),
            " ".join(_unfavourable(msprobe["rows"])),
        ]
    )


def written(text: str, cost: Document, msprobe: Document) -> str:
    """A page with the tables between its marks.

    Raises:
        ValueError: The page lacks the marks.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r} to put tables between")
    return f"{head}{BEGIN}\n\n{tables(cost, msprobe)}\n\n{END}{tail}"


def _machine(document: Document) -> str:
    environment = document["environment"]
    threads = document.get("threads", environment["threads"])
    return f"{environment['host']}, {threads} thread{'' if threads == 1 else 's'}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _cost(rows: Sequence[Document]) -> str:
    lines: list[tuple[str, list[str]]] = [
        ("plain step, ms", [_both(row, _milliseconds) for row in rows]),
        ("recorded step", [_both(row, _ratio("recorded")) for row in rows]),
        ("of which naming", [_both(row, _ratio("naming")) for row in rows]),
        ("idle step", [_both(row, _ratio("idle")) for row in rows]),
        ("hooks of an idle step, µs", [_hooks(row) for row in rows]),
        ("one step in 200, composed", [_both(row, _ratio("one_step_in_200")) for row in rows]),
        ("the same, idle steps by their hooks", [_both(row, _by_hooks) for row in rows]),
        ("200 steps with one recorded, measured", [_run(row) for row in rows]),
        ("plain steps after that run over those before", [_run(row, "plain_halves_ratio")
                                                          for row in rows]),
        ("operators", [str(row["operators"]) for row in rows]),
        ("bytes per operator", [f"{row['bytes_per_operator']:.0f}" for row in rows]),
    ]  # fmt: skip
    head = ["", *(f"{row['model']}, {row['parameters'] / 1e6:.1f} M" for row in rows)]
    return _table(head, [[name, *cells] for name, cells in lines])


def _both(row: Document, cell: Callable[[Document], str]) -> str:
    by_cpu = cell(row["cpu"])
    return by_cpu if by_cpu == UNKNOWN else f"{by_cpu} ({cell(row['wall'])})"


def _milliseconds(figures: Document) -> str:
    return f"{1e3 * figures['plain_seconds']:.0f}"


def _ratio(form: str) -> Callable[[Document], str]:
    def cell(figures: Document) -> str:
        text = f"{figures[f'{form}_ratio']:.3f}"
        quartiles = figures.get(f"{form}_quartiles")
        return text if quartiles is None else f"{text} [{quartiles[0]:.3f}, {quartiles[1]:.3f}]"

    return cell


def _by_hooks(figures: Document) -> str:
    found = figures.get("one_step_in_200_ratio_by_hooks")
    return UNKNOWN if found is None else f"{found:.4f}"


def _hooks(row: Document) -> str:
    found = row.get("hooks_microseconds")
    if found is None:
        return UNKNOWN
    quartiles = f"[{found['lower_quartile']:.1f}, {found['upper_quartile']:.1f}]"
    return f"{found['median']:.1f} {quartiles}"


def _run(row: Document, figure: str = "ratio") -> str:
    found = row.get("run_of_200")
    if found is None:
        return UNKNOWN
    return f"{found['cpu'][figure]:.3f} ({found['wall'][figure]:.3f})"


def _beside(rows: Sequence[Document]) -> str:
    return _table(
        ("model", "plain step, ms", "recorder", "times plain", "MB per step", "gradients changed"),
        [
            (
                row["model"],
                f"{1e3 * row['plain_seconds']:.1f}",
                _recorder(row),
                f"{row['ratio']:.1f}",
                f"{row['bytes_per_step'] / 1e6:.2f}",
                f"{row['gradients_changed']} of {row['gradients']}",
            )
            if "error" not in row
            else (row["model"], "-", _recorder(row), f"does not run: {row['error']}", "-", "-")
            for row in rows
        ],
    )


def _recorder(row: Document) -> str:
    return " ".join(part for part in (row["tool"], row["task"], row["level"]) if part)


def _unfavourable(rows: Sequence[Document]) -> Iterator[str]:
    """What speaks against recording, in sentences."""
    ran = [row for row in rows if "error" not in row]
    for model in dict.fromkeys(row["model"] for row in ran):
        here = [row for row in ran if row["model"] == model]
        sketch = next(row for row in here if (row["tool"], row["level"]) == ("accel", "sketch"))
        cheaper = [
            f"{_recorder(row)} ({row['ratio']:.1f} times, {row['bytes_per_step'] / 1e6:.2f} MB)"
            for row in here
            if row["tool"] == "msprobe" and row["ratio"] < sketch["ratio"]
        ]
        text = (
            f"A step of {model}, {1e3 * sketch['plain_seconds']:.1f} ms, takes "
            f"{sketch['ratio']:.1f} times as long at `sketch`"
        )
        yield f"{text}; cheaper is {', '.join(cheaper)}." if cheaper else f"{text}."


def main() -> None:
    text = PAGE.read_text()
    PAGE.write_text(written(text, load("recorder_cost"), load("recorder_msprobe")))


if __name__ == "__main__":
    main()
