"""What a traced process is told, as one value of the variable `ACCEL_TRACE`. No torch."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass

VARIABLE = "ACCEL_TRACE"


@dataclass(frozen=True)
class Settings:
    """What travels to every process of a traced program.

    Attributes:
        stem: Start of the name of each process's part of the log.
        directory: Where the program was started; paths below it are shown relative to it.
        claim_cuda: On a CPU, answer `torch.cuda.is_available()` with True.
    """

    stem: str
    directory: str
    claim_cuda: bool = True

    def to_text(self) -> str:
        """As the environment variable holds it."""
        return json.dumps(dataclasses.asdict(self))


def parse_settings(text: str) -> Settings:
    """Read what `Settings.to_text` wrote.

    Raises:
        ValueError: Something else wrote it.
    """
    try:
        values = json.loads(text)
        settings = Settings(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(_not_ours(text)) from error
    texts = (settings.stem, settings.directory)
    if not all(isinstance(one, str) for one in texts) or type(settings.claim_cuda) is not bool:
        raise ValueError(_not_ours(text))
    return settings


def current_settings() -> Settings | None:
    """The settings of this process; None where it is not traced."""
    text = os.environ.get(VARIABLE)
    return parse_settings(text) if text else None


def _not_ours(text: str) -> str:
    return f"{VARIABLE}={text!r} is not readable; `accel convert trace` sets it: unset it"
