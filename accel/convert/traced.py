"""Reading the log of `accel convert trace`: what a run of the program asked CUDA for, and where.

A call in it that no finding has is one that the source does not show, such as by `getattr` or in a
package; a finding that no call has is a line that did not run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# As accel.tracing.parts writes them; a test compares.
SCHEMA = "accel.trace"
SCHEMA_VERSION = 1
# A log has a few hundred bytes per line of the program that asked for CUDA.
_MOST_BYTES = 256 * 2**20
_TEXTS = ("path", "api", "given", "redirected_to", "package", "note")
_LEAST = {"line": 0, "end_line": 0, "count": 1}


@dataclass(frozen=True)
class TracedCall:
    """Calls of one kind from one place.

    Attributes:
        path: Relative to where the program was started if it is below, absolute otherwise; a name
            such as `<string>` where Python has no file; "" where no line is known.
        line: From 1; 0 where no line is known.
        api: What was called, such as `torch.Tensor.cuda`.
        count: How often.
        redirected_to: A device or a function of accel; "" where there is no equivalent.
        package: Of third parties, the name under site-packages; "" for the program's own files.
        note: What else is to know.
        given: The device that was asked for, as text; "" where none was named.
        end_line: The last line of the call.
    """

    path: str
    line: int
    api: str
    count: int
    redirected_to: str
    package: str = ""
    note: str = ""
    given: str = ""
    end_line: int = 0


def read_log(path: str | os.PathLike[str]) -> tuple[TracedCall, ...]:
    """Read what `accel convert trace --log FILE` wrote.

    Args:
        path: The file.

    Returns:
        The calls, in its order.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no such log, or not a whole one; the message says what is wrong.
    """
    return tuple(_call(path, entry) for entry in _calls(path, _document(path)))


def _document(path: str | os.PathLike[str]) -> Any:
    if os.path.getsize(path) > _MOST_BYTES:
        raise _refused(path, f"it has more than {_MOST_BYTES} bytes")
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except RecursionError:
        raise _refused(path, "it is nested too deeply") from None
    except ValueError as error:  # JSON and UTF-8 alike
        raise _refused(path, str(error)) from error


def _calls(path: str | os.PathLike[str], document: Any) -> Sequence[Any]:
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise _refused(path, f'its "schema" is not "{SCHEMA}"')
    version = document.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise _refused(path, f"its version is {version!r}; this accel reads {SCHEMA_VERSION}")
    calls = document.get("calls")
    if not isinstance(calls, list):
        raise _refused(path, 'it has no list "calls"')
    return calls


def _call(path: str | os.PathLike[str], entry: Any) -> TracedCall:
    if not isinstance(entry, Mapping):
        raise _refused(path, f"a call is {_shown(entry)} and no object")
    texts = {name: entry.get(name) for name in _TEXTS}
    numbers = {name: entry.get(name) for name in _LEAST}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise _refused(path, f'"{name}" of a call is {_shown(text)} and no text')
    for name, number in numbers.items():
        if type(number) is not int or number < _LEAST[name]:
            raise _refused(path, f'"{name}" of a call is {_shown(number)} and no count')
    return TracedCall(**texts, **numbers)  # type: ignore[arg-type]  # checked above


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _refused(path: str | os.PathLike[str], reason: str) -> ValueError:
    return ValueError(
        f"{os.fspath(path)} is not a log of `accel convert trace`: {reason}; write it anew with "
        "`accel convert trace --log FILE -- python train.py`"
    )
