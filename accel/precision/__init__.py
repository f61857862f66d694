"""Mixed precision: one policy with the same meaning on every chip."""

from accel.precision.attachment import Attachment as Attachment
from accel.precision.attachment import attach as attach
from accel.precision.autocast import portable_autocast as portable_autocast
from accel.precision.controller import Controller as Controller
from accel.precision.controller import ControllerConfig as ControllerConfig
from accel.precision.controller import replay as replay
from accel.precision.fsdp import mixed_precision_policy as mixed_precision_policy
from accel.precision.loss_scale import DynamicLossScale as DynamicLossScale
from accel.precision.loss_scale import LossScale as LossScale
from accel.precision.loss_scale import NoLossScale as NoLossScale
from accel.precision.outcome import SkippedStep as SkippedStep
from accel.precision.outcome import StepOutcome as StepOutcome
from accel.precision.policy import PRESETS as PRESETS
from accel.precision.policy import Policy as Policy
from accel.precision.policy import Rule as Rule
from accel.precision.training import Precision as Precision

__all__ = [
    "PRESETS",
    "Attachment",
    "Controller",
    "ControllerConfig",
    "DynamicLossScale",
    "LossScale",
    "NoLossScale",
    "Policy",
    "Precision",
    "Rule",
    "SkippedStep",
    "StepOutcome",
    "attach",
    "mixed_precision_policy",
    "portable_autocast",
    "replay",
]
