"""Reports: self-contained HTML, SVG plots, text tables, progress bars, files written whole.

The standard library is all it needs: no torch, no network, no plotting package.
"""

from __future__ import annotations

from accel.report import explorer as explorer
from accel.report import html as html
from accel.report import svg as svg
from accel.report import text as text
from accel.report.files import check_writable as check_writable
from accel.report.files import write_atomically as write_atomically
from accel.report.markup import Markup as Markup
from accel.report.progress import Progress as Progress
