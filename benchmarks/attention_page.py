"""The page of benchmarks/attention.py: plots of time over length, every case, memory."""

from __future__ import annotations

from typing import Any

from accel.report import Markup, html, svg

Row = dict[str, Any]


def page(result: dict[str, Any]) -> str:
    """A self-contained page.

    Args:
        result: What attention.py wrote.
    """
    made = result["environment"]
    facts = {
        "machine": f"{made['device']}, {made['threads']} threads",
        "software": f"torch {made['torch']}, Python {made['python']}",
        "commit": made["commit"],
        "command": made["command"],
        **{
            f"matrix product, {dtype}": f"{rate:.0f} GFLOP/s"
            for dtype, rate in result["matmul_gflops"].items()
        },
    }
    rows = result["rows"]
    return html.page(
        "Attention: time and memory",
        [
            html.section("What was measured", html.definitions(facts)),
            html.section("What was asked", _targets(result)),
            html.section("Speed relative to SDPA", _speeds(rows, result["matmul_gflops"])),
            html.section("Time over length", *_plots(rows)),
            html.section("Peak memory over inputs and gradients", _memory(result["memory"])),
        ],
    )


def _targets(result: dict[str, Any]) -> Markup:
    """The worst case of each demand; times as fast as SDPA."""
    cost = result["dispatch"]["dispatch_us"]
    rows = [
        [
            one["asked"],
            one["form"],
            one["least"],
            one["worst"],
            one["of"],
            one["worst"] >= one["least"],
        ]
        for one in result["targets"]
    ]
    if short := result["short"]:
        asked = f"below {short['below_keys']} tokens, microseconds more at most"
        most, worst = short["most_us"], short["worst_us"]
        rows.append([asked, "accel", most, worst, short["of"], worst <= most])
    rows.append(["dispatch, microseconds at most", "accel", 10.0, cost, "one token", cost <= 10.0])
    return html.table(
        ["asked", "form", "x SDPA at least, or as asked", "worst", "of", "met"],
        [[*row[:-1], "yes" if row[-1] else "no"] for row in rows],
        bad=lambda row: row[-1] == "no",
        caption="Demands and the worst that was measured",
    )


def _speeds(rows: list[Row], rates: dict[str, float]) -> Markup:
    """Each case by each form; above 1 is faster than SDPA."""
    return html.table(
        [
            "case", "form", "forward ms", "backward ms", "forward x SDPA", "backward x SDPA",
            "both x SDPA", "forward share of the matrix rate", "backward share",
        ],
        [
            [
                row["case"], row["form"], _milliseconds(row, "forward"),
                _milliseconds(row, "backward"), row["forward_sdpa_over_this"],
                row.get("backward_sdpa_over_this"), row.get("both_sdpa_over_this"),
                row["forward_gflops"] / _rate(row, rates),
                row["backward_gflops"] / _rate(row, rates) if "backward_gflops" in row else None,
            ]
            for row in rows
        ],
        sortable=True,
        caption="Every case by every form",
    )  # fmt: skip


def _milliseconds(row: Row, part: str) -> float | None:
    seconds = row.get(f"{part}_seconds")
    return None if seconds is None else 1e3 * seconds


def _rate(row: Row, rates: dict[str, float]) -> float:
    return next(rate for dtype, rate in rates.items() if f" {dtype}," in row["case"])


def _plots(rows: list[Row]) -> list[Markup]:
    """Four heads of 64: forward and backward together, by length, one plot per dtype and mask."""
    plots = []
    for dtype in ("float32", "bfloat16"):
        for mask in ("full", "causal"):
            ending = f" keys, 4 heads of 64, {dtype}, {mask}"
            some = [r for r in rows if r["case"].endswith(ending) and "backward_seconds" in r]
            lengths = sorted({int(r["case"].split()[0]) for r in some})
            times = {
                (r["form"], int(r["case"].split()[0])): r["forward_seconds"] + r["backward_seconds"]
                for r in some
            }
            names = list(dict.fromkeys(r["form"] for r in some))
            series = [
                svg.Series(name, [times.get((name, length)) for length in lengths], kind="line")
                for name in names
            ]
            if lengths:
                plots.append(html.paragraph(f"{dtype}, {mask}, 4 heads of 64"))
                plots.append(
                    svg.error_plot(
                        series, x_labels=[str(n) for n in lengths], x_title="keys",
                        y_title="seconds", description=f"seconds by length, {dtype}, {mask}",
                    )
                )  # fmt: skip
    return plots


def _memory(rows: list[Row]) -> Markup:
    return html.table(
        ["form", "tokens", "MB", "bytes a token"],
        [
            [r["form"], r["length"], r["extra_bytes"] / 1e6, r["extra_bytes"] / r["length"]]
            for r in rows
        ],
        caption="One causal head of 64 in float32, forward and backward",
    )
