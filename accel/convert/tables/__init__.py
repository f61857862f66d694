"""What is published about Ascend: operators by chip, third-party packages, environment variables.

Facts only, each with where it is from. `ci/support_tables` makes `operators.json`; the other two
are kept by hand.
"""

from accel.convert.tables.environment import Variable, variable
from accel.convert.tables.operators import Row, Support, support
from accel.convert.tables.packages import (
    Package,
    Replacement,
    distribution,
    imported,
    known_packages,
)

__all__ = [
    "Package",
    "Replacement",
    "Row",
    "Support",
    "Variable",
    "distribution",
    "imported",
    "known_packages",
    "support",
    "variable",
]
