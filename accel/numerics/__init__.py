"""Proof that two machines compute the same: recordings, their replay in float64, comparison.

Names are loaded when they are first used, so that arrays of another framework can be recorded where
there is no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accel.numerics.comparing.compare_runs import compare as compare
    from accel.numerics.comparing.comparison import Comparison as Comparison
    from accel.numerics.portable_rng import PortableDropout as PortableDropout
    from accel.numerics.portable_rng import PortableRng as PortableRng
    from accel.numerics.recorder import Recorder as Recorder
    from accel.numerics.recorder import record as record
    from accel.numerics.replaying.judged import Judged as Judged
    from accel.numerics.replaying.references import register_reference as register_reference
    from accel.numerics.replaying.walk import Replay as Replay
    from accel.numerics.replaying.walk import replay as replay
    from accel.numerics.storage.arrays import ArrayRecorder as ArrayRecorder
    from accel.numerics.storage.reader import Recording as Recording
    from accel.numerics.storage.reader import load_recording as load_recording

_HOMES = {
    "ArrayRecorder": "storage.arrays",
    "Comparison": "comparing.comparison",
    "Judged": "replaying.judged",
    "PortableDropout": "portable_rng",
    "PortableRng": "portable_rng",
    "Recorder": "recorder",
    "Recording": "storage.reader",
    "Replay": "replaying.walk",
    "compare": "comparing.compare_runs",
    "load_recording": "storage.reader",
    "record": "recorder",
    "register_reference": "replaying.references",
    "replay": "replaying.walk",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
