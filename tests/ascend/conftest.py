"""What the tests on the simulated chip share."""

import os
import subprocess
import sys
import textwrap

import pytest

from accel.simulate.machine import VARIABLE, Machine, current_machine, parse_bytes


@pytest.fixture
def run_simulated(tmp_path):
    """Runs code in a process of its own on a simulated machine that may differ from this one's."""

    def run(code, *, memory="0", timeout=120, **machine):
        text = Machine(memory=parse_bytes(memory), **machine).to_text()
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, VARIABLE: text},
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
        )

    return run


@pytest.fixture
def machine():
    """What this process simulates."""
    return current_machine()
