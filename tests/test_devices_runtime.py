"""What the choice asks of a vendor's runtime: nothing that starts it early, and where threads are.

`torch.cuda` is a stand-in here that keeps torch's rules: a queue of calls for the start, visible
devices that are fixed by the start, one current device per thread, no start in a forked process.
"""

from __future__ import annotations

import contextlib
import os
import threading
from types import SimpleNamespace

import pytest
import torch

import accel
from accel.devices import CpuDevice, choice, cuda, find_device, functions, registry
from accel.devices.npu import NpuDevice


class FakeCuda:
    """A CUDA that notes what is asked of it; nothing is computed on it."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.started = self.starting = self.bad_fork = False
        self.fixed = 0  # how many devices it saw when it started
        self.queue, self.seeds, self.notes = [], [], []
        self.thread = threading.local()

    def visible(self) -> int:
        if self.started:
            return self.fixed
        listed = os.environ.get("CUDA_VISIBLE_DEVICES")
        return self.devices if listed is None else len([part for part in listed.split(",") if part])

    def start(self) -> None:
        if self.started or self.starting:
            return
        if self.bad_fork:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")
        self.notes.append("start")
        self.fixed, self.starting = self.visible(), True
        for call in [*self.queue, *self.seeds]:
            call()
        self.started, self.starting = True, False

    def later(self, call, seed: bool = False) -> None:
        if self.started:
            call()
        else:
            (self.seeds if seed else self.queue).append(call)

    def index(self) -> int:
        self.start()
        return getattr(self.thread, "index", 0)

    def go(self, device) -> None:
        self.start()
        index = device if isinstance(device, int) else torch.device(device).index
        self.notes.append(("set", index))
        self.thread.index = index

    @contextlib.contextmanager
    def block(self, index):
        before = self.index()
        self.thread.index = index
        try:
            yield
        finally:
            self.thread.index = before

    def available(self) -> bool:
        self.notes.append("cuInit")
        return self.visible() > 0

    def seed(self, seed: int) -> None:
        self.later(lambda: self.notes.append(("seed", self.index(), seed)), seed=True)

    def seed_all(self, seed: int) -> None:
        self.later(lambda: self.notes.append(("seed all", seed)), seed=True)

    def current_accelerator(self, check_available: bool = False):
        there = self.available() if check_available else True
        return torch.device("cuda") if there else None


@pytest.fixture
def fake(monkeypatch):
    """Makes a machine with so many GPUs, in a process that has chosen nothing yet."""

    def make(devices: int = 4) -> FakeCuda:
        made = FakeCuda(devices)
        own = registry._registry
        own.plugins_loaded = True
        monkeypatch.setattr(own, "local", threading.local())
        own.families = {"cpu": CpuDevice, "cuda": cuda.CudaDevice}
        own.selected, own.queued, own.failures, own.follows_rank = {}, {}, {}, True
        registry._log_once.cache_clear()
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        for name, value in {
            "is_available": made.available,
            "device_count": made.visible,
            "_device_count_nvml": lambda: made.devices,
            "is_initialized": lambda: made.started and not made.bad_fork,
            "_is_in_bad_fork": lambda: made.bad_fork,
            "_lazy_call": made.later,
            "init": made.start,
            "manual_seed": made.seed,
            "manual_seed_all": made.seed_all,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        for name, value in {
            "current_accelerator": made.current_accelerator,
            "is_available": made.available,
            "device_count": made.visible,
            "current_device_index": made.index,
            "set_device_index": made.go,
            "device_index": made.block,
        }.items():
            monkeypatch.setattr(torch.accelerator, name, value)
        return made

    return make


def in_thread(work):
    """What `work` returns in a thread of its own."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    thread.join()
    return answers[0]


class TestAskingStartsNothing:
    QUESTIONS = (
        functions.is_available,
        functions.device_count,
        functions.default_device_type,
        functions.is_initialized,
        functions.tensor_type_name,
        lambda: functions.is_accelerator("cuda:1"),
        lambda: functions.is_accelerator_backend("nccl"),
        lambda: functions.device("cuda:1"),
        functions.device_str,
        lambda: functions.manual_seed(1),
        lambda: functions.manual_seed_all(1),
        accel.available_devices,
        accel.current_device,
    )

    @pytest.mark.parametrize("rank", [None, "1", "7"])
    @pytest.mark.parametrize("question", range(len(QUESTIONS)))
    def test_the_runtime_and_the_driver_are_left_alone(self, fake, monkeypatch, question, rank):
        gpus = fake(4)
        if rank is not None:
            monkeypatch.setenv("LOCAL_RANK", rank)
        if rank == "7" and self.QUESTIONS[question] is accel.current_device:
            with pytest.raises(accel.DeviceError, match="LOCAL_RANK=7"):
                accel.current_device()
        else:
            self.QUESTIONS[question]()
        assert gpus.notes == []

    def test_visible_devices_set_afterwards_are_in_force(self, fake, monkeypatch):
        gpus = fake(4)
        assert functions.default_device_type() == "cuda"
        assert functions.is_available()
        assert functions.device_count() == 4
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
        assert functions.device_count() == 1
        functions.init()
        assert gpus.fixed == 1

    def test_an_answer_does_not_go_stale(self, fake, monkeypatch):
        fake(2)
        assert functions.default_device_type() == "cuda"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert functions.default_device_type() == "cpu"
        assert functions.device() == torch.device("cpu")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert functions.default_device_type() == "cuda"

    def test_the_first_device_before_the_start_is_torchs(self, fake):
        gpus = fake(4)
        assert functions.device() == torch.device("cuda", 0)
        gpus.go(2)
        assert functions.device() == torch.device("cuda", 2)


class TestForkedWorkers:
    def test_they_answer_and_queue_their_seeds(self, fake):
        gpus = fake(4)
        accel.set_device(2)
        gpus.started, gpus.bad_fork = False, True
        gpus.notes.clear()
        functions.manual_seed(1)
        functions.manual_seed_all(2)
        assert functions.is_available()
        assert functions.device_count() == 4
        assert functions.default_device_type() == "cuda"
        assert functions.device() == torch.device("cuda", 2)
        assert (gpus.notes, len(gpus.seeds)) == ([], 2)

    def test_one_that_asks_first_counts_without_the_runtime(self, fake, monkeypatch):
        gpus = fake(4)
        gpus.bad_fork = True
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # what CUDA says there
        assert functions.device_count() == 4
        assert functions.default_device_type() == "cuda"
        monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: -1)
        assert functions.device_count() == 0

    def test_a_launcher_is_no_matter(self, fake, monkeypatch):
        gpus = fake(4)
        monkeypatch.setenv("LOCAL_RANK", "1")
        gpus.bad_fork = True
        functions.manual_seed(1)
        assert functions.device() == torch.device("cuda", 1)
        assert (gpus.notes, gpus.queue) == ([], [])


class TestSetDevice:
    def test_is_of_the_thread(self, fake):
        fake(4)
        both, seen = threading.Barrier(2), {}

        def work(index):
            accel.set_device(index)
            both.wait(timeout=10)
            seen[index] = functions.device(), functions.current_device_index()

        threads = [threading.Thread(target=work, args=(index,)) for index in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == {index: (torch.device("cuda", index), index) for index in (1, 2)}
        assert functions.current_device_index() == 0

    def test_another_thread_begins_where_torchs_does(self, fake, monkeypatch):
        fake(4)
        monkeypatch.setenv("LOCAL_RANK", "1")
        accel.set_device(3)
        assert functions.current_device_index() == 3
        assert in_thread(functions.current_device_index) == 0

    def test_torchs_own_calls_and_blocks_are_followed(self, fake):
        gpus = fake(4)
        accel.set_device(1)
        with torch.accelerator.device_index(3):
            assert functions.device() == torch.device("cuda", 3)
            assert accel.current_device().index == 3
            with functions.device_index(2):
                assert functions.current_device_index() == 2
                with torch.accelerator.device_index(0):
                    assert accel.current_device().index == 0
                assert functions.current_device_index() == 2
        gpus.go(2)
        assert functions.device_str() == "cuda:2"

    def test_it_overrules_the_environment_before_anything_is_made_current(self, fake, monkeypatch):
        gpus = fake(4)
        monkeypatch.setenv("LOCAL_RANK", "1")
        functions.device()
        accel.set_device(2)
        assert gpus.notes == ["start", ("set", 2)]
        monkeypatch.setenv("ACCEL_DEVICE", "cuda:3")
        assert functions.current_device_index() == 3
        accel.set_device(0)
        assert functions.current_device_index() == 0
        assert in_thread(functions.current_device_index) == 3


class TestLocalRank:
    def test_is_made_current_when_the_runtime_starts(self, fake, monkeypatch):
        gpus = fake(4)
        monkeypatch.setenv("LOCAL_RANK", "2")
        for _ in range(3):
            assert functions.device() == torch.device("cuda", 2)
        functions.manual_seed(5)
        assert len(gpus.queue) == 1
        gpus.start()
        assert gpus.notes == ["start", ("set", 2), ("seed", 2, 5)]
        assert functions.current_device_index() == 2
        with torch.accelerator.device_index(0):
            assert functions.current_device_index() == 0

    def test_in_a_thread_it_is_the_beginning_unless_torch_was_told(self, fake, monkeypatch):
        gpus = fake(4)
        monkeypatch.setenv("LOCAL_RANK", "2")
        gpus.start()
        assert in_thread(functions.current_device_index) == 2
        assert gpus.notes[-1] == ("set", 2)

        def told():
            with torch.accelerator.device_index(1):  # as autograd's threads are
                return functions.current_device_index()

        assert in_thread(told) == 1

    def test_what_is_visible_at_the_start_counts(self, fake, monkeypatch):
        gpus = fake(4)
        monkeypatch.setenv("LOCAL_RANK", "2")
        functions.device()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        gpus.start()
        assert gpus.notes == ["start"]

    def test_one_visible_device_is_taken(self, fake, monkeypatch, caplog):
        fake(1)
        monkeypatch.setenv("LOCAL_RANK", "3")
        for _ in range(3):
            assert accel.current_device().index == functions.current_device_index() == 0
            assert find_device("cuda").index == 0
        assert functions.device_count() == 1
        assert [record.getMessage() for record in caplog.records] == [
            "LOCAL_RANK=3, but this process sees 1 cuda device(s), which is used"
        ]

    @pytest.mark.parametrize("rank", ["2", "-1", "x"])
    def test_beyond_several_the_flat_functions_act_where_torch_is(
        self, fake, monkeypatch, caplog, rank
    ):
        gpus = fake(2)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert functions.device() == torch.device("cuda", 0)
        gpus.go(1)
        assert functions.device("cuda") == torch.device("cuda", 1)
        assert functions.ddp_device_ids() == [1]
        assert len(caplog.records) == 1
        assert "torch's current device is used" in caplog.text
        assert f"LOCAL_RANK={rank}, but this process sees 2" in caplog.text
        for call in (accel.current_device, lambda: find_device("cuda")):
            with pytest.raises(accel.DeviceError, match="at most 2"):
                call()
        accel.set_device(0)
        assert accel.current_device().index == find_device("cuda").index == 0


class TestSeeds:
    def test_all_are_seeded_without_making_any_current(self, fake):
        gpus = fake(4)
        functions.manual_seed_all(7)
        gpus.start()
        functions.manual_seed_all(8)
        assert gpus.notes == ["start", ("seed all", 7), ("seed all", 8)]

    def test_the_current_one_is_torchs_when_it_starts(self, fake):
        gpus = fake(4)
        functions.manual_seed(3)
        assert gpus.notes == []
        accel.set_device(2)
        functions.manual_seed(4)
        with functions.device_index(1):
            functions.manual_seed(5)
        # Torch starts, with its queue, before it goes to the device that set_device names.
        assert gpus.notes == ["start", ("seed", 0, 3), ("set", 2), ("seed", 2, 4), ("seed", 1, 5)]


def test_a_named_index_is_the_beginning_of_every_thread(fake, monkeypatch):
    gpus = fake(4)
    monkeypatch.setenv("ACCEL_DEVICE", "cuda:3")
    assert functions.device() == torch.device("cuda", 3)
    assert gpus.notes == []
    gpus.start()
    assert gpus.notes == ["start", ("set", 3)]
    assert in_thread(functions.current_device_index) == 3
    assert choice.acting_device() == accel.current_device() == cuda.CudaDevice(3)


def test_npus_are_counted_by_their_driver(monkeypatch):
    count, available = [3], []
    npu = SimpleNamespace(
        is_initialized=lambda: False,
        _device_count_ascend_hal=lambda: count[0],
        is_available=lambda: available.append(1) or True,
        device_count=lambda: 2,
    )
    with monkeypatch.context() as patched:
        patched.setattr(torch, "npu", npu, raising=False)
        patched.setattr(torch, "get_device_module", lambda name: npu)
        assert NpuDevice.count() == 3
        assert available == []
        count[0] = -1  # where the driver's library does not tell
        assert NpuDevice.count() == 2
        assert available == [1]


FIRST_CALL = """
import torch, accel

def step(x):
    y = x.to(accel.device()) if ASKED == "device" else x
    if ASKED == "name":
        return y + (1 if not accel.is_accelerator(x.device) else 2)
    return y + (1 if accel.default_device_type() == "cpu" and not accel.is_available() else 2)

for _ in range(2):
    print(torch.compile(step, backend="eager", fullgraph=True)(torch.zeros(1)).tolist())
"""


@pytest.mark.parametrize("asked", ["device", "name"])
def test_the_first_call_of_a_process_is_traced(run_python, asked):
    code = FIRST_CALL.replace("ASKED", repr(asked))
    assert run_python(code, ACCEL_DEVICE="cpu").lines == ["[1.0]", "[1.0]"]
