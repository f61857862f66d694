"""What is on this machine, what is wrong with it, and the command that mends it.

Standard library only: it has to work where `import torch` does not. torch, plugins and vendors'
tools are tried in processes of their own.
"""

from __future__ import annotations

from accel.doctor.finding import Finding as Finding
from accel.doctor.finding import Mend as Mend
from accel.doctor.machine import LocalMachine as LocalMachine
from accel.doctor.machine import Machine as Machine
from accel.doctor.probe import Progress
from accel.doctor.report import Report as Report
from accel.doctor.report import draw_findings
from accel.doctor.survey import take_survey
from accel.doctor.text import render as render

DEFAULT_TIMEOUT = 60.0  # seconds for one probe; a cold `import torch` from a slow disk takes 30

__all__ = [
    "DEFAULT_TIMEOUT",
    "Finding",
    "LocalMachine",
    "Machine",
    "Mend",
    "Report",
    "diagnose",
    "render",
]


def diagnose(
    machine: Machine | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    progress: Progress = lambda name: None,
) -> Report:
    """Look at a machine and say what is wrong with it.

    Args:
        machine: Where to look; this machine if None.
        timeout: Seconds for each probe.
        progress: Called with the name of each probe as it starts, from several threads.

    Returns:
        The report. A broken machine is its content and never an exception.
    """
    survey = take_survey(machine if machine is not None else LocalMachine(), timeout, progress)
    return Report(survey, draw_findings(survey))
