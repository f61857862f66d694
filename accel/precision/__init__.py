"""Mixed precision: one policy with the same meaning on every chip."""

from accel.precision.attach import Attachment as Attachment
from accel.precision.attach import attach as attach
from accel.precision.loss_scale import DynamicLossScale as DynamicLossScale
from accel.precision.loss_scale import LossScale as LossScale
from accel.precision.loss_scale import NoLossScale as NoLossScale
from accel.precision.outcome import SkippedStep as SkippedStep
from accel.precision.outcome import StepOutcome as StepOutcome
from accel.precision.policy import Policy as Policy
from accel.precision.training import Precision as Precision

__all__ = [
    "Attachment",
    "DynamicLossScale",
    "LossScale",
    "NoLossScale",
    "Policy",
    "Precision",
    "SkippedStep",
    "StepOutcome",
    "attach",
]
