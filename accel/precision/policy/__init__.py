"""Policies: which numbers each module and each operand of a model is computed in."""

from accel.precision.policy.explain import Explanation as Explanation
from accel.precision.policy.policy import Policy as Policy
from accel.precision.policy.presets import PRESETS as PRESETS
from accel.precision.policy.resolve import Resolution as Resolution
from accel.precision.policy.rule import Rule as Rule

__all__ = ["PRESETS", "Explanation", "Policy", "Resolution", "Rule"]
