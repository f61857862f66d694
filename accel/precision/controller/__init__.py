"""The precision controller: formats that follow what is measured, with a log."""

from accel.precision.controller.config import ControllerConfig as ControllerConfig
from accel.precision.controller.control import Controller as Controller
from accel.precision.controller.decision import Decision as Decision
from accel.precision.controller.decision import Operand as Operand
from accel.precision.controller.log_reader import Replay as Replay
from accel.precision.controller.log_reader import replay as replay
from accel.precision.controller.statistics import OperandStatistics as OperandStatistics

__all__ = [
    "Controller",
    "ControllerConfig",
    "Decision",
    "Operand",
    "OperandStatistics",
    "Replay",
    "replay",
]
