"""Files that are not Python: scripts, containers, requirements, configurations, C++, notebooks."""

from accel.convert.sweep.files import sweep
from accel.convert.sweep.languages import language_of

__all__ = ["language_of", "sweep"]
