"""Mixed precision: one policy with the same meaning on every chip."""

from accel.precision.loss_scale import DynamicLossScale as DynamicLossScale
from accel.precision.loss_scale import LossScale as LossScale
from accel.precision.loss_scale import NoLossScale as NoLossScale
from accel.precision.policy import Policy as Policy
from accel.precision.training import Precision as Precision
from accel.precision.training import SkippedStep as SkippedStep

__all__ = ["DynamicLossScale", "LossScale", "NoLossScale", "Policy", "Precision", "SkippedStep"]
