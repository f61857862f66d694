"""Which operators of a run are kept with all their elements."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from accel.numerics.storage.entries import Key


class Selection:
    """Patterns for operators.

    Args:
        patterns: Shell patterns. One with a colon is matched against the whole key
            (`forward:blocks.1.mlp/addmm#0`, `optimizer:*`), one without against the module's path,
            whatever the phase (`blocks.1`, `blocks.1.*`). None takes everything, an empty list
            nothing.

    Raises:
        TypeError: `patterns` is a text or holds something else than texts.
    """

    def __init__(self, patterns: Sequence[str] | None) -> None:
        self._all = patterns is None
        if isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns or ()):
            raise TypeError(f"only takes a list of patterns such as ['blocks.1.*'], got {patterns}")
        whole = [p for p in patterns or () if ":" in p]
        modules = [p for p in patterns or () if ":" not in p]
        self._keys, self._modules = _either(whole), _either(modules)

    def takes(self, key: Key) -> bool:
        """Whether an operator is kept."""
        if self._all:
            return True
        if self._modules is not None and self._modules.fullmatch(key.module):
            return True
        return self._keys is not None and self._keys.fullmatch(str(key)) is not None


def _either(patterns: Sequence[str]) -> re.Pattern[str] | None:
    if not patterns:
        return None
    return re.compile("|".join(f"(?:{fnmatch.translate(_literal(p))})" for p in patterns))


def _literal(pattern: str) -> str:
    # `[1]` in a key is the number of a call, not a set of characters.
    return pattern.replace("[", "[[]")
