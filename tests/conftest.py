"""What every test shares: clean switches, a clean registry, poisoned memory, the devices here."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from accel.simulate import active

ROOT = Path(__file__).parents[1]
# Tests that need the simulated Ascend in their own process: pytest --simulate-ascend CHIP.
collect_ignore = [] if active() else ["ascend"]
CHOICES = ("ACCEL_DEVICE", "ACCEL_BACKEND", "LOCAL_RANK", "RANK", "WORLD_SIZE")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the long forms too, as ci/full runs them")


def pytest_configure(config):
    line = "long: more of what a short form beside it proves; run by ci/full (pytest --long)"
    config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(config, items):
    """Leave out long forms, and on a simulated Ascend what supposes a machine without one."""
    names = [] if config.getoption("--long") else ["long"]
    names += ["without_npu"] if active() else []
    left_out = {item for item in items if any(map(item.get_closest_marker, names))}
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


def pytest_generate_tests(metafunc):
    """`device` runs a test on every device here: on a GPU machine on the GPUs too.

    On a simulated Ascend the CPU is left to the plain run. A kernel is the same on every chip, so
    there the others are long forms.
    """
    own = any("device" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if "device" in metafunc.fixturenames and not own:
        import accel

        def marks(device):
            kernels = ROOT / "tests" / "kernels" in metafunc.definition.path.parents
            other = device.family == "cpu" or (kernels and device.index)
            return [pytest.mark.long] * bool(active() and other)

        here = accel.available_devices()
        devices = [pytest.param(device, id=str(device), marks=marks(device)) for device in here]
        metafunc.parametrize("device", devices)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in CHOICES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def seeded(request):
    """The same numbers each time, others in each test."""
    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(autouse=True)
def clean_switches():
    """Puts back torch's switches and the families of devices."""
    if "torch" not in sys.modules:  # the doctor's tests need none
        yield
        return
    from accel.devices import float32, registry, setting

    state = vars(registry._registry)
    kept = {
        name: value.copy() if isinstance(value, dict) else value for name, value in state.items()
    }
    entries, before = float32.Float32State.capture(), setting.numerics_mode()
    yield
    entries.restore()
    setting._apply(before)
    state.update(kept)


@pytest.fixture(autouse=True)
def poisoned_memory(request, clean_switches):
    """Kernels get NaN from torch.empty, so that reading what was never written shows."""
    if (ROOT / "tests" / "kernels") not in request.path.parents:
        return
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture
def run_python(tmp_path):
    """Runs code in a process of its own, where global state is untouched; warnings are errors."""

    def run(code: str, *, path: Path | None = None, **environment: str) -> SimpleNamespace:
        paths = [str(p) for p in (path, ROOT, ROOT / "kernels") if p]
        inherited = {key: value for key, value in os.environ.items() if key not in CHOICES}
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
            env={**inherited, "PYTHONPATH": os.pathsep.join(paths), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
        )
        assert result.returncode == 0, result.stderr
        return SimpleNamespace(lines=result.stdout.splitlines(), errors=result.stderr)

    return run


@pytest.fixture
def make_family():
    """Makes and registers a chip family whose devices note what is asked of them."""
    import torch

    import accel
    from accel.devices import MemoryInfo

    def make(chip: str, count: int = 1, *, torch_type: str = "xpu"):
        class Fake(accel.Device):
            family = chip
            calls: list = []  # noqa: RUF012 - of the family on purpose

            @classmethod
            def count(cls):
                return count

            @property
            def name(self):
                return f"Fake {chip}"

            def note(self, *call):
                self.calls.append((self.index, *call))

            def synchronize(self):
                self.note("synchronize")

            def memory(self):
                return MemoryInfo(used=10, peak=20, free=30, total=40)

            def reset_peak_memory(self):
                self.note("reset_peak_memory")

            def empty_cache(self):
                self.note("empty_cache")

            def activate(self):
                self.note("activate")

            def activated(self):
                import contextlib

                @contextlib.contextmanager
                def block():
                    self.note("enter")
                    try:
                        yield
                    finally:
                        self.note("exit")

                return block()

            def own_rng_state(self):
                return torch.tensor([self.index], dtype=torch.uint8)

            def set_own_rng_state(self, state):
                self.note("set_rng_state", state.tolist())

            def seed_own_generator(self, seed):
                self.note("seed", seed)

        Fake.torch_type = torch_type
        return accel.register_device(Fake)

    return make
