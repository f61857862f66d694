"""A comparison as one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Sequence

from accel.numerics.comparing.comparison import Comparison
from accel.numerics.pages import summary, surroundings
from accel.numerics.pages.depth import depth
from accel.numerics.pages.flagged import flagged
from accel.numerics.pages.losses import losses
from accel.numerics.pages.strip import strip
from accel.numerics.pages.values import modules, values
from accel.report import Markup, explorer, html

STYLE = """
main{max-width:1280px}
h3{font-size:.98rem;margin:18px 0 4px}h4{font-size:.88rem;margin:12px 0 4px}
.note{color:var(--muted);font-size:.88rem}
.bars{max-width:560px;margin:12px 0}
.share{display:flex;height:12px;border-radius:6px;overflow:hidden;background:var(--grid);
margin:8px 0}
.share .checked{background:var(--good)}.share .unchecked{background:var(--warn)}
.share .unneeded{background:var(--line)}
.headline dl{margin:10px 0 4px}
"""


def to_html(comparison: Comparison) -> str:
    """The page: verdict, evidence, errors against depth, every value, and what lies around.

    It loads nothing: style, script and data are inside. Text from the recordings is escaped.

    Args:
        comparison: What `compare` found.

    Returns:
        The HTML document.
    """
    sections = [
        *summary.zoom(comparison),
        *flagged(comparison),
        depth(comparison),
        strip(comparison),
        losses(comparison),
        values(comparison),
        *modules(comparison),
        *summary.other_findings(comparison),
        surroundings.environment(comparison),
        surroundings.coverage(comparison),
        *surroundings.ranks(comparison),
        *surroundings.steps(comparison),
        *surroundings.notes(comparison),
    ]
    top = [summary.headline(comparison), summary.figures(comparison)]
    return assembled("Comparison of two recordings", _subtitle(comparison), top, sections)


def assembled(title: str, subtitle: str, top: Sequence[Markup], sections: Sequence[Markup]) -> str:
    """A whole page: links to the sections, what stands at the top, the sections.

    Args:
        title: The page's.
        subtitle: What it is about.
        top: The verdict and figures.
        sections: Each made by `html.section` with an anchor.
    """
    return html.page(
        title,
        [html.contents(headings(sections)), *top, *sections],
        subtitle=subtitle,
        style=explorer.STYLE + STYLE,
        script=explorer.SCRIPT,
    )


def _subtitle(comparison: Comparison) -> str:
    left, right = comparison.levels
    return (
        f"reference {comparison.reference} ({left}), candidate {comparison.candidate} ({right}), "
        f"step {comparison.step}"
    )


_HEADED = re.compile(r'<section id="([a-z]+)"><h2>([^<]*)</h2>')


def headings(sections: Sequence[Markup]) -> dict[str, Markup]:
    """The headings of sections by their anchors."""
    found = (_HEADED.match(section) for section in sections)
    return {one[1]: Markup(one[2]) for one in found if one is not None}
