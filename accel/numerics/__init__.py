"""Proof that two machines compute the same: recordings of a run, and their comparison."""

from accel.numerics.comparison import Comparison as Comparison
from accel.numerics.comparison import compare as compare
from accel.numerics.judgement import Judged as Judged
from accel.numerics.naming import Divergence as Divergence
from accel.numerics.reader import Recording as Recording
from accel.numerics.reader import load_recording as load_recording
from accel.numerics.recorder import Recorder as Recorder
from accel.numerics.recorder import record as record

__all__ = [
    "Comparison",
    "Divergence",
    "Judged",
    "Recorder",
    "Recording",
    "compare",
    "load_recording",
    "record",
]
