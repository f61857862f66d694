"""Which dtype a model computes in, as an immutable, printable, parseable value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_COMPUTE = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Policy:
    """Parameters stay as they are; the operators that autocast lists compute in `compute`.

    Attributes:
        compute: float32 (no autocast), bfloat16 or float16 (with a dynamic loss scale).
    """

    compute: torch.dtype

    def __post_init__(self) -> None:
        if self.compute not in _COMPUTE.values():
            raise ValueError(
                f"a policy computes in one of {', '.join(_COMPUTE)}, not in {self.compute}"
            )

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read `"compute=bfloat16"` (the notation of google-deepmind/jmp).

        Raises:
            ValueError: The text is not of that form; says what is.
        """
        key, _, name = (part.strip() for part in text.partition("="))
        if key != "compute" or name not in _COMPUTE:
            raise ValueError(
                f"the policy {text!r} is not understood: write compute=NAME, where NAME is one of "
                f"{', '.join(_COMPUTE)}"
            )
        return cls(_COMPUTE[name])

    def __str__(self) -> str:
        return f"compute={str(self.compute).removeprefix('torch.')}"
