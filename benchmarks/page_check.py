"""The pages of `accel compare --html` and `accel replay --html` in a real headless browser.

Two runs of a small model, one with a planted fault, are recorded, compared and replayed; the pages
are opened in Chromium with the network cut off, at two widths. Checked are what no parser of HTML
can tell: that nothing is loaded, no script fails, no text leaves its place, a table of thousands
of rows sorts, filters and opens, and hostile names stay text. Pictures go to --pictures.
"""

import argparse
import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import environment
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from accel.numerics import Comparison, compare, record, replay
from accel.numerics.pages.replayed import replay_to_html
from accel.numerics.recorder import Level

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (360, 1600)
ROWS = 5000
HOSTILE = "<script>hacked=1</script><img src=x onerror=hacked=1>\"'&\u202e"
FRAME = """<!doctype html>
<iframe src="{page}" width="{width}" height="1200" frameborder="0"></iframe>
<pre id="probe"></pre><script>
onmessage = event => {{ document.getElementById("probe").textContent = event.data }}
</script>"""
PROBE = Path(__file__).with_name("page_probe.js")


class Block(nn.Module):
    """A feed-forward layer on a normalised residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Both `[B, width]`."""
        hidden: Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + hidden


class WrongGelu(TorchDispatchMode):
    """A kernel of the second gelu that computes its tanh approximation."""

    count = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if op is torch.ops.aten.gelu.default:
            self.count += 1
            if self.count == 2:
                return op(*args, approximate="tanh")
        return op(*args, **(kwargs or {}))


def run(path: str, level: Level, *, wrong: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(64) for _ in range(3)), nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    inputs, targets = torch.randn(32, 64), torch.randint(8, (32,))
    fault = WrongGelu() if wrong else contextlib.nullcontext()
    with fault, record(model, path, level=level, arguments=["train.py"]):
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def pages() -> Iterator[tuple[str, str]]:
    """Name and text of each page, from recordings in the working directory."""
    for level in ("full", "sketch"):
        run(f"{level}-a", level, wrong=False)
        run(f"{level}-b", level, wrong=True)
    full = compare("full-a", "full-b")
    yield "full", full.to_html()
    yield "sketch", compare("sketch-a", "sketch-b").to_html()
    yield "replay", replay_to_html(replay("full-b", chained=True))
    yield "large", enlarged(full).to_html()


@contextlib.contextmanager
def working_in(folder: str) -> Iterator[None]:
    """There recordings have short names."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def enlarged(found: Comparison) -> Comparison:
    """The comparison with thousands of rows and hostile names."""
    rows = tuple(
        replace(
            row, order=i, name=f"{row.name} copy {i} {HOSTILE}", module=f"{row.module}{HOSTILE}"
        )
        for i in range(ROWS)
        for row in (found.rows[i % len(found.rows)],)
    )
    verdict = replace(found.verdict, sentence=HOSTILE, evidence=(HOSTILE,))
    return replace(
        found, rows=rows, verdict=verdict, reference=HOSTILE, notes=(HOSTILE,),
        environment={HOSTILE: (HOSTILE, HOSTILE)}, zoom=(HOSTILE,),
    )  # fmt: skip


def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise SystemExit(
            f"no browser: one of {', '.join(BROWSERS)} is needed (apt install chromium)"
        )
    return found


def opened(program: str, path: Path, width: int, *arguments: str) -> str:
    """What the browser prints of a page; it reaches no network and keeps nothing."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--no-first-run", f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--window-size={width},1200", *arguments, path.as_uri(),
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout


def probed(program: str, folder: Path, name: str, page: str, width: int) -> dict[str, Any]:
    """What the probe found in a page."""
    begin, end = page.split("</title>", 1)
    watch = "<script>failures=[];onerror=text=>{failures.push(text)}</script>"
    probe = f"<script>{PROBE.read_text()}</script>"
    inner = folder / f"{name}-probed.html"
    inner.write_text(f"{begin}</title>{watch}{end.replace('</body>', probe + '</body>')}")
    # A window cannot be as narrow as a telephone, a frame can.
    outer = folder / f"{name}-frame.html"
    outer.write_text(FRAME.format(width=width, page=inner.name))
    began = time.perf_counter()
    said = opened(program, outer, 1700, "--dump-dom", "--virtual-time-budget=20000")
    found = re.search(r'<pre id="probe">(.*?)</pre>', said, re.DOTALL)
    if found is None or not found[1]:
        raise SystemExit(f"{name} at {width} px: the probe did not end; see {inner}")
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return {"page": name, "width": width, "bytes": len(page.encode()),
            "seconds": time.perf_counter() - began, **result}  # fmt: skip


def wrong_with(found: dict[str, Any]) -> list[str]:
    """What is not as it must be."""
    expected = {
        "failures": [], "resources": 0, "hacked": False, "overflowing": [], "sorted": True,
        "filtered": True, "opened": True, "linked": True, "detail_fits": True, "grew": True,
        "page_overflows": False,
        "inner_width": found["width"], "unlabelled": [],
    }  # fmt: skip
    return [
        f"{found['page']} at {found['width']} px: {name} is {found.get(name)!r}, not {value!r}"
        for name, value in expected.items()
        if found.get(name) != value
    ]


def take_pictures(program: str, folder: Path, pictures: Path, name: str, page: str) -> None:
    path = folder / f"{name}-plain.html"
    path.write_text(page)
    for width in (400, 1600):
        for theme, setting in (("light", 1), ("dark", 0)):
            picture = pictures / f"{name}-{width}-{theme}.png"
            opened(
                program, path, width, f"--screenshot={picture}", f"--window-size={width},2600",
                f"--blink-settings=preferredColorScheme={setting}",
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="take screenshots into this folder")
    options = parser.parse_args()
    program = browser()
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    if options.pictures:
        options.pictures = options.pictures.resolve()
        options.pictures.mkdir(parents=True, exist_ok=True)
    checks = []
    with tempfile.TemporaryDirectory() as folder:
        with working_in(folder):
            made = list(pages())
        for name, page in made:
            checks += [probed(program, Path(folder), name, page, width) for width in WIDTHS]
            if options.pictures:
                take_pictures(program, Path(folder), options.pictures, name, page)
    wrong = [text for found in checks for text in wrong_with(found)]
    print("\n".join(wrong) or f"{len(checks)} pages are as they must be")
    result = {"browser": version.stdout.strip(), "checks": checks, "wrong": wrong}
    print(f"written: {environment.write('page_check', result)}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
