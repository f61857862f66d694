"""The flat functions on a CPU: torch.cuda's answers where it gives any, neutral ones elsewhere."""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import accel
from accel.devices import functions

PAGE = Path(__file__).parents[1] / "docs/functions.md"
BYTES = torch.zeros(16, dtype=torch.uint8)
RAISES = object()  # torch.cuda raises there; the answer beside it is ours

# Name, arguments, answer on a CPU; and whether torch.cuda raises in a build without CUDA.
CALLS = [
    ("is_available", (), False),
    ("device_count", (), 0),
    ("set_device", (0,), None, RAISES),
    ("set_device", (-1,), None),
    ("set_device", ("cuda:1",), None, RAISES),
    ("synchronize", (), None, RAISES),
    ("synchronize", (0,), None, RAISES),
    ("init", (), None, RAISES),
    ("is_initialized", (), False),
    ("is_bf16_supported", (), False),
    ("is_bf16_supported", (False,), False),
    ("get_device_capability", (), (0, 0), RAISES),
    ("get_device_capability", (0,), (0, 0), RAISES),
    ("can_device_access_peer", (0, 1), False, RAISES),
    ("utilization", (), 0, RAISES),
    ("get_sync_debug_mode", (), 0, RAISES),
    ("set_sync_debug_mode", ("warn",), None, RAISES),
    ("ipc_collect", (), None, RAISES),
    ("empty_cache", (), None),
    ("memory_allocated", (), 0),
    ("memory_allocated", (0,), 0),
    ("memory_allocated", (-1,), 0),
    ("memory_allocated", ("cpu",), 0),
    ("memory_allocated", ("cuda:7",), 0),
    ("memory_allocated", (torch.device("cuda", 1),), 0),
    ("max_memory_allocated", (), 0),
    ("max_memory_allocated", (3,), 0),
    ("memory_reserved", (), 0),
    ("memory_reserved", (0,), 0),
    ("max_memory_reserved", (), 0),
    ("memory_stats", (), OrderedDict()),
    ("memory_stats", (0,), OrderedDict()),
    ("memory_stats_as_nested_dict", (), {}),
    ("memory_summary", (), "", RAISES),
    ("memory_summary", (0, True), "", RAISES),
    ("memory_snapshot", (), [], RAISES),
    ("mem_get_info", (), (0, 0), RAISES),
    ("reset_peak_memory_stats", (), None, RAISES),
    ("reset_accumulated_memory_stats", (0,), None, RAISES),
    ("set_per_process_memory_fraction", (0.5,), None, RAISES),
    ("get_per_process_memory_fraction", (), 1.0, RAISES),
    ("manual_seed", (1,), None),
    ("manual_seed_all", (1,), None),
    ("seed", (), None),
    ("seed_all", (), None),
    ("initial_seed", (), 0, RAISES),
    ("get_rng_state_all", (), []),
    ("set_rng_state", (BYTES,), None),
    ("set_rng_state", (BYTES, 0), None),
    ("set_rng_state_all", ([],), None),
    ("set_rng_state_all", ([BYTES],), None),
    ("set_stream", (None,), None),
    ("is_current_stream_capturing", (), False, RAISES),
]

NVTX = [
    ("range_push", ("step",), 0),
    ("range_pop", (), 0),
    ("range_start", ("step",), 0),
    ("range_end", (0,), None),
    ("mark", ("here",), None),
]


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setenv("ACCEL_DEVICE", "cpu")


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]}-{call[1]}")
def test_as_torch_cuda_where_it_is_silent(call):
    name, arguments, answer, *raises = call
    result = getattr(functions, name)(*arguments)
    assert result == answer
    assert type(result) is type(answer)
    if torch.cuda.is_available():  # then torch.cuda's answers on a CPU are not to be had
        return
    try:
        theirs = getattr(torch.cuda, name)(*arguments)
    # What torch.cuda raises without a device, by function.
    except (AssertionError, AttributeError, ImportError, KeyError, RuntimeError):
        theirs = RAISES
    if raises:
        assert theirs is RAISES
    else:
        assert theirs == answer
        assert type(theirs) is type(answer)


@pytest.mark.parametrize("call", NVTX, ids=lambda call: call[0])
def test_marks_are_taken_and_do_nothing(call):
    name, arguments, answer = call
    assert getattr(functions, name)(*arguments) == answer
    if not torch.cuda.is_available():
        with pytest.raises((AttributeError, RuntimeError)):
            getattr(torch.cuda.nvtx, name)(*arguments)


def test_what_returns_objects():
    assert functions.get_rng_state().shape == (0,)
    assert functions.get_rng_state("cuda:0").dtype == torch.uint8
    assert functions.default_generators() == ()
    assert functions.generator().device == torch.device("cpu")
    assert functions.current_device_index() == 0
    assert functions.get_device_name() == accel.current_device().name
    properties = functions.get_device_properties(0)
    assert properties.name == functions.get_device_name(0)
    assert properties.total_memory > 1e8
    assert properties.multi_processor_count == torch.get_num_threads()
    assert (properties.major, properties.minor) == (0, 0)


def parameters(function):
    return list(inspect.signature(function).parameters.values())


# torch.cuda.device is the block, which is device_index here.
NAMESAKES = {
    f"{module.__name__}.{name}": (getattr(module, name), getattr(functions, name))
    for module in (torch.cuda, torch.cuda.amp, torch.cuda.nvtx)
    for name in sorted(set(functions.__all__) - {"device"})
    if callable(getattr(module, name, None))
} | {
    "torch.cuda.device": (torch.cuda.device, functions.device_index),
    "torch.cuda.nvtx.range": (torch.cuda.nvtx.range, functions.annotate),
    "torch.cuda.current_device": (torch.cuda.current_device, functions.current_device_index),
    "torch.Tensor.cuda": (
        lambda self, device=None, non_blocking=False, memory_format=torch.preserve_format: None,
        functions.to_accelerator,
    ),
}


@pytest.mark.parametrize(("theirs", "ours"), NAMESAKES.values(), ids=NAMESAKES.keys())
def test_parameters_are_those_of_torch_cuda(theirs, ours):
    """The same, in the same order, with the same defaults; there may be more."""
    here = parameters(ours)
    for position, parameter in enumerate(parameters(theirs)):
        mine = here[position]
        assert mine.kind == parameter.kind
        if position or theirs is not NAMESAKES["torch.Tensor.cuda"][0]:
            assert mine.name == parameter.name
        assert (mine.default is mine.empty) == (parameter.default is mine.empty)
        # The device's kind and its dtypes are what varies here.
        if parameter.name not in ("device", "dtype", "cache_enabled"):
            assert mine.default == parameter.default
    assert all(
        extra.default is not extra.empty or extra.kind is extra.VAR_KEYWORD
        for extra in here[len(parameters(theirs)) :]
    )


def test_namesakes_are_most_of_torch_cudas_functions():
    assert len(NAMESAKES) >= 50


def test_the_page_has_every_function_and_no_other():
    rows = re.findall(r"^\| `(?:accel\.)?(\w+)", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == functions.__all__
    assert sorted(set(functions.__all__)) == functions.__all__


def test_every_function_says_what_happens_on_a_cpu():
    silent = [
        name for name in functions.__all__ if "cpu" not in getattr(functions, name).__doc__.lower()
    ]
    assert silent == ["getenv", "setenv"]  # for all vendors at once


def test_streams_and_events_wait_for_nothing():
    stream = functions.Stream(priority=-1)
    assert isinstance(stream, functions.Stream)
    assert not isinstance("stream", functions.Stream)
    stream.synchronize()
    stream.wait_stream(functions.current_stream("cpu"))
    stream.wait_stream(functions.default_stream())
    with functions.stream(stream), functions.stream(None):
        value = torch.ones(2) + 1
    functions.record_stream(value, stream)
    functions.set_stream(stream)
    assert stream.query() is True
    start, end = (functions.Event(enable_timing=True, blocking=True) for _ in range(2))
    assert isinstance(start, functions.Event)
    assert not isinstance(stream, functions.Event)
    start.record(stream)
    end.record()
    functions.synchronize()
    assert start.elapsed_time(end) >= 0


def test_seeding_leaves_the_cpus_generator_alone_as_torch_cuda_does():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    functions.manual_seed(5)
    functions.manual_seed_all(5)
    functions.seed()
    functions.seed_all()
    functions.set_rng_state(functions.get_rng_state())
    functions.set_rng_state_all(functions.get_rng_state_all())
    assert torch.equal(torch.rand(2), expected)


def test_forked_states_are_restored():
    before = torch.get_rng_state()
    with functions.fork_rng(devices=[0]):
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)

    @functions.fork_rng()
    def fail():
        torch.rand(3)
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)
    with functions.fork_rng(enabled=False):
        torch.rand(3)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("argument", [None, 0, 3, "cpu", "cuda", "cuda:3", "npu:1", "xpu"])
def test_devices_are_the_cpu(argument):
    assert functions.device(argument) == torch.device("cpu")
    assert functions.device_str(argument) == "cpu"
    assert functions.map_location(argument) == torch.device("cpu")


def test_devices_by_name_and_index():
    assert functions.device("cuda", 1) == functions.device(torch.device("cuda", 1))
    assert functions.device(accel.current_device()) == torch.device("cpu")
    assert functions.device("meta") == torch.device("meta")
    assert functions.default_device_type() == "cpu"
    for wrong in [(-1,), (3, 1), ("cuda:1", 1)]:
        with pytest.raises(ValueError, match=r"index"):
            functions.device(*wrong)
    with pytest.raises(accel.DeviceError, match="unknown"):
        functions.device("disk/cuda:0")
    with pytest.raises(TypeError, match="named by"):
        functions.device(1.5)


def test_another_device_than_asked_for_is_said_once(caplog):
    from accel.devices import resolution

    resolution.say_once.cache_clear()
    for _ in range(3):
        functions.device("cuda:5")
        functions.device(5)  # a number names no vendor
    assert [record.getMessage() for record in caplog.records] == [
        "cuda:5 was asked for and cpu is used, which is what is here"
    ]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda", True), ("cuda:0", True), ("npu:3", True), ("xpu", True), ("rocm", True),
        (torch.device("cuda", 1), True), (torch.device("mps"), True),
        ("cpu", False), ("meta", False), (torch.device("meta"), False), (0, False), ("", False),
        ("cuda_runs/best.pt", False), ("cuda:", False), ("cuda:x", False), ("mycuda", False),
        ("auto", False), ("cuda:0,1", True), ("npu:0,1,2", True), ("cuda:0,", False),
        ("cpu:0,1", False), ("cuda:,1", False),
    ],
)  # fmt: skip
def test_which_names_are_accelerators(device, expected):
    assert functions.is_accelerator(device) is expected


def test_what_is_no_device_is_no_accelerator():
    for other in (None, 1.5, Path("cuda"), ["cuda"], torch.float32):
        assert functions.is_accelerator(other) is False


def test_where_tensors_are():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2)])
    for value in (torch.ones(2), torch.ones(2, device="meta"), packed, torch.UntypedStorage(3)):
        assert functions.on_accelerator(value) is False
    assert functions.is_accelerator(accel.current_device()) is False


def test_moving_leaves_what_is_on_a_cpu():
    tensor, module = torch.ones(2, 3, 4, 4), torch.nn.Linear(2, 2)
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2)])
    for value in (tensor, module, packed):
        assert functions.to_accelerator(value) is value
        assert functions.to_accelerator(value, 1, non_blocking=True) is value
    last = functions.to_accelerator(tensor, memory_format=torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, tensor)
    assert functions.pin_memory(tensor) is tensor
    with pytest.raises(TypeError, match=r"what has \.to\(device\), not list"):
        functions.to_accelerator([tensor])


def test_blocks_change_nothing_and_may_be_kept():
    for block in (
        functions.device_index(1),
        functions.device_index(-1),
        functions.device_index(None),
        functions.device_of(torch.ones(1)),
        functions.stream(functions.Stream()),
    ):
        for _ in range(2):
            with block, block:
                assert accel.current_device().family == "cpu"
    assert functions.device_index(0)(lambda: 3)() == 3


def test_tensor_classes_are_torchs():
    assert functions.tensor_type() is torch.FloatTensor
    made = functions.tensor_type(torch.int64)([1, 2])
    assert made.dtype == torch.int64
    assert made.type() == functions.tensor_type_name(torch.int64) == "torch.LongTensor"
    assert functions.tensor_type(torch.float16)(2, 3).shape == (2, 3)
    with pytest.raises(ValueError, match=r"no tensor class for torch\.complex64"):
        functions.tensor_type(torch.complex64)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, "gloo"), ("", "gloo"), ("nccl", "gloo"), ("NCCL", "gloo"), ("hccl", "gloo"),
        ("gloo", "gloo"), ("mpi", "mpi"), ("cuda:nccl,cpu:gloo", "cpu:gloo"),
        ("cpu:gloo, npu:hccl", "cpu:gloo"), ("cuda:nccl", "gloo"),
    ],
)  # fmt: skip
def test_collectives(spec, expected):
    assert functions.dist_backend(spec) == expected


def test_collectives_are_compared_by_name():
    for backend in ("nccl", "hccl", "cpu:gloo,cuda:nccl", torch.distributed.Backend("nccl")):
        assert functions.is_accelerator_backend(backend)
    for backend in ("gloo", "mpi", "cpu:gloo", "nccl_tests"):
        assert not functions.is_accelerator_backend(backend)
    assert functions.is_accelerator_backend_available() is False
    assert functions.ddp_device_ids(3) is None
    assert functions.ddp_output_device(3) is None


def test_ranges_are_formatted_and_the_profiler_has_the_cpu():
    with functions.annotate("step {} of {n}", 1, n=2):
        pass
    with pytest.raises(IndexError), functions.annotate("step {}"):
        pass
    cpu = torch.profiler.ProfilerActivity.CPU
    assert functions.profiler_activities() == [cpu]
    assert functions.profiler_activities(cpu=False) == []


def test_on_an_accelerator_they_act_on_it(make_family, monkeypatch):
    toy = make_family("toy", 2)
    monkeypatch.setenv("ACCEL_DEVICE", "toy")
    assert accel.is_available()
    assert accel.device_count() == 2
    assert (accel.memory_allocated(), accel.max_memory_allocated(1)) == (10, 20)
    assert (accel.memory_allocated("cpu"), accel.memory_allocated(toy(1))) == (0, 10)
    accel.set_device(1)
    accel.synchronize()
    accel.synchronize(0)
    accel.synchronize("cpu")
    accel.empty_cache()
    accel.reset_peak_memory_stats(torch.device("xpu:0"))
    accel.manual_seed(3)
    accel.manual_seed_all(4)
    assert toy.calls == [
        (1, "activate"),
        (1, "synchronize"),
        (0, "synchronize"),
        (1, "empty_cache"),
        (0, "reset_peak_memory"),
        (1, "seed", 3),
        (0, "seed", 4),
        (1, "seed", 4),
    ]
    for call in (accel.synchronize, accel.memory_allocated, accel.set_device):
        with pytest.raises(accel.DeviceError, match="toy:2"):
            call(2)


def test_names_of_other_accelerators_mean_the_one_that_is_here(make_family, monkeypatch):
    make_family("toy", 2)
    monkeypatch.setenv("ACCEL_DEVICE", "toy:1")
    assert functions.device() == functions.device(1) == torch.device("xpu", 1)
    assert functions.device("mtia:0") == torch.device("xpu", 0)
    assert functions.device("mtia") == torch.device("xpu", 1)
    assert functions.device("cpu") == torch.device("cpu")
    assert functions.device_str("mtia", 0) == "xpu:0"
    assert functions.default_device_type() == "xpu"
    assert functions.current_device_index() == 1
    assert functions.mem_get_info("mtia:0") == (30, 40)
    assert functions.ddp_device_ids(0) == [0]
    assert functions.is_accelerator(0) is True
    with pytest.raises(accel.DeviceError, match="toy:2"):
        functions.device("mtia:2")


def test_a_question_that_a_chip_cannot_answer_is_refused(make_family, monkeypatch):
    make_family("toy", 2, torch_type="mtia")
    monkeypatch.setenv("ACCEL_DEVICE", "toy")
    with pytest.raises(accel.DeviceError, match=r"torch\.mtia has no utilization\(\)"):
        functions.utilization()


def test_states_of_all_devices(make_family, monkeypatch):
    toy = make_family("toy", 2)
    monkeypatch.setenv("ACCEL_DEVICE", "toy")
    states = functions.get_rng_state_all()
    assert [state.tolist() for state in states] == [[0], [1]]
    functions.set_rng_state_all(states)
    with functions.fork_rng():
        toy.calls.clear()
    assert toy.calls == [(0, "set_rng_state", [0]), (1, "set_rng_state", [1])]
    with pytest.raises(accel.DeviceError, match="toy:2"):
        functions.set_rng_state_all([*states, states[0]])
    with functions.fork_rng(["toy:1"]):
        toy.calls.clear()
    assert toy.calls == [(1, "set_rng_state", [1])]
