"""What can be said of a Python file that does not parse: its words, and what to do first."""

from __future__ import annotations

import re

from accel.convert.options import SourceName
from accel.convert.tokens import pattern

# What Python 2 has and Python 3 has not, at the beginning of a line: a file that does not parse may
# be of any kind, so that only statements count.
_PYTHON_2 = re.compile(
    r"^\s*(?:print\s+[\"'\w%]|print\s*$|print\s*>>|exec\s+[\"'\w]|raise\s+\w+\s*,|"
    r"except[ \t]+[\w.(), \t]{1,200},[ \t]*\w+[ \t]*:)",
    re.MULTILINE,
)


def next_step(data: bytes, source: SourceName) -> str:
    """How many words of the platform nobody looked at, and what to do.

    Args:
        data: The file.
        source: The platform that is converted from.
    """
    text = data.replace(b"\0", b"").decode("utf-8", "replace")  # in UTF-16 as well
    found = sum(1 for _ in pattern(source).finditer(text))
    platform = "CUDA" if source == "cuda" else source
    words = f"{found:,} {'word' if found == 1 else 'words'} of {platform}"
    if _PYTHON_2.search(text):
        return f"{words} in it; it is Python 2: run 2to3 on it first"
    return f"{words} in it; mend the file, or exclude it if it is no program"
