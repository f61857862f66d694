"""The flat functions on whatever device is here: its own answers, and a CPU's neutral ones."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import accel
from accel.devices import functions

MIB = 2**20


@pytest.fixture
def current(device):
    """The device, made current; `on_cpu` in its family tells the neutral answers."""
    with accel.use_device(device):
        yield device


@pytest.fixture
def accelerator(current):
    if current.family == "cpu":
        pytest.skip("a CPU's answers are in test_devices_functions.py")
    return current


def vendor(device):
    return torch.get_device_module(device.torch_type)


# --- devices -----------------------------------------------------------------------------------


def test_the_device_and_its_names(current):
    place = current.torch_device
    assert functions.device() == functions.device(current.index) == place
    assert functions.device("cuda", current.index) == place
    assert functions.device(f"npu:{current.index}") == place
    assert functions.device(torch.device("cuda", current.index)) == place
    assert functions.device_str(current.index) == str(place)
    assert functions.default_device_type() == place.type
    assert functions.current_device_index() == current.index
    assert functions.is_available() == functions.is_accelerator(place) == (place.type != "cpu")
    assert torch.ones(1, device=functions.device("cuda")).device == place
    functions.synchronize("cuda")


def test_a_name_without_index_is_the_current_device(current, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # which is what it means outside of blocks
    for name in (current.family, current.torch_type, "cuda", torch.device(current.torch_type)):
        assert functions.device(name) == current.torch_device
    assert functions.ddp_device_ids(current.torch_type) == functions.ddp_device_ids()


def test_what_the_driver_tells(accelerator):
    module, index = vendor(accelerator), accelerator.index
    assert functions.get_device_name(index) == module.get_device_name(index)
    properties = functions.get_device_properties()
    assert properties.name == accelerator.name
    assert properties.total_memory == module.get_device_properties(index).total_memory
    assert functions.is_initialized()
    functions.init()
    assert functions.is_bf16_supported() == (torch.bfloat16 in accelerator.dtypes.compute)
    assert functions.is_bf16_supported(including_emulation=False) is True
    capability = functions.get_device_capability()
    assert (capability > (0, 0)) == (accelerator.torch_type == "cuda")
    before = functions.get_sync_debug_mode()
    functions.set_sync_debug_mode(1)
    assert functions.get_sync_debug_mode() == module.get_sync_debug_mode() == 1
    functions.set_sync_debug_mode(before)


def test_another_device_in_a_block(accelerator):
    if accelerator.count() < 2:
        pytest.skip("needs two devices")
    other = type(accelerator)(1 - accelerator.index)
    block = functions.device_index(other.index)
    for _ in range(2):
        with block:
            assert functions.current_device_index() == other.index
            assert torch.accelerator.current_device_index() == other.index
            assert torch.ones(1, device=functions.default_device_type()).device.index == other.index
            with functions.device_index(-1), functions.device_of(torch.ones(1)):
                assert functions.current_device_index() == other.index
            with functions.device_of(torch.ones(1, device=accelerator.torch_device)):
                assert functions.current_device_index() == accelerator.index
    assert functions.current_device_index() == accelerator.index
    assert functions.can_device_access_peer(0, 1) == vendor(other).can_device_access_peer(0, 1)
    with pytest.raises(accel.DeviceError, match="is not here"):
        functions.device(accelerator.count())


def test_questions_start_no_runtime_and_the_rank_waits_for_its_start(accelerator):
    code = """
        import torch
        from accel.devices import functions as accel
        print(accel.default_device_type(), accel.device_count(), accel.is_available())
        accel.manual_seed(3)
        print(accel.device(), accel.is_initialized())
        place = torch.ones(1, device=accel.default_device_type()).device
        print(place == accel.device(), place, accel.is_initialized(), accel.initial_seed())
        with torch.accelerator.device_index(0):
            print(accel.current_device_index())
    """
    if not hasattr(vendor(accelerator), "_lazy_call"):
        pytest.skip("its runtime has no queue for its start")
    last, kind = accelerator.count() - 1, accelerator.torch_type
    result = subprocess.run(  # with this process's own path: it may be that of a simulated chip
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "ACCEL_DEVICE": accelerator.family, "LOCAL_RANK": str(last)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{kind} {last + 1} True",
        f"{kind}:{last} False",
        f"True {kind}:{last} True 3",
        "0",
    ]


def test_forked_processes_may_ask_and_seed(accelerator):
    """What a worker of a DataLoader does after the parent has used the device."""
    torch.ones(1, device=accelerator.torch_device)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            functions.manual_seed(1)
            functions.manual_seed_all(1)
            answers = functions.is_available(), functions.device_count(), functions.device()
            os.write(writer, repr(answers).encode())
        except BaseException as error:  # into the answer, for the parent to show
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    answer = os.read(reader, 4096).decode()
    os.close(reader)
    os.waitpid(child, 0)
    assert answer == repr((True, accelerator.count(), accelerator.torch_device))


# --- memory ------------------------------------------------------------------------------------


def test_memory_is_counted(accelerator):
    module, index = vendor(accelerator), accelerator.index
    functions.synchronize()
    functions.empty_cache()
    functions.reset_peak_memory_stats()
    before = functions.memory_allocated()
    tensor = torch.empty(4 * MIB, dtype=torch.uint8, device=accelerator.torch_device)
    assert functions.memory_allocated() - before >= 4 * MIB
    assert functions.memory_allocated(index) == module.memory_allocated(index)
    assert functions.memory_reserved() == module.memory_reserved(index) >= 4 * MIB
    allocated = functions.memory_allocated()
    del tensor
    assert functions.memory_allocated() < allocated == functions.max_memory_allocated(index)
    assert functions.max_memory_reserved() == module.max_memory_reserved(index) >= 4 * MIB
    stats = functions.memory_stats(index)
    assert stats["allocated_bytes.all.peak"] == allocated
    nested = functions.memory_stats_as_nested_dict()
    assert nested["allocated_bytes"]["all"]["peak"] == allocated
    functions.reset_accumulated_memory_stats()
    assert functions.memory_stats()["allocated_bytes.all.allocated"] == 0
    free, total = functions.mem_get_info(index)
    assert 0 < free <= total == accelerator.total_memory
    assert "Allocated memory" in functions.memory_summary(abbreviated=True)
    assert isinstance(functions.memory_snapshot(), list)
    functions.ipc_collect()


def test_a_share_of_the_memory(accelerator):
    before = functions.get_per_process_memory_fraction()
    functions.set_per_process_memory_fraction(0.5)
    assert functions.get_per_process_memory_fraction(accelerator.index) == 0.5
    functions.set_per_process_memory_fraction(before)


# --- random states -----------------------------------------------------------------------------


def draw(device):
    return torch.rand(5, device=device.torch_device).cpu()


def test_random_states_are_restored(accelerator):
    functions.manual_seed(11)
    assert functions.initial_seed() == 11
    state, everything = functions.get_rng_state(), functions.get_rng_state_all()
    assert len(everything) == accelerator.count() == functions.device_count()
    first = draw(accelerator)
    with functions.fork_rng():
        assert not torch.equal(draw(accelerator), first)
        second = draw(accelerator)
    functions.set_rng_state(state)
    assert torch.equal(draw(accelerator), first)
    functions.set_rng_state_all(everything)
    assert torch.equal(draw(accelerator), first)
    assert not torch.equal(draw(accelerator), second)
    functions.manual_seed_all(11)
    assert torch.equal(draw(accelerator), first)
    everything = functions.get_rng_state_all()
    with functions.fork_rng():
        functions.seed()
        assert functions.initial_seed() != 11
        functions.seed_all()
        assert not any(map(torch.equal, functions.get_rng_state_all(), everything))
    assert functions.initial_seed() == 11
    assert all(map(torch.equal, functions.get_rng_state_all(), everything))


def test_generators(current):
    generator = functions.generator("cuda").manual_seed(3)
    assert generator.device.type == current.torch_type
    first = torch.rand(4, generator=generator, device=current.torch_device)
    again = functions.generator(current.index).manual_seed(3)
    assert torch.equal(first, torch.rand(4, generator=again, device=current.torch_device))
    defaults = functions.default_generators()
    assert len(defaults) == functions.device_count()
    functions.manual_seed(17)
    if current.family != "cpu":
        assert defaults[current.index].initial_seed() == 17


# --- streams -----------------------------------------------------------------------------------


def test_work_in_a_stream(current):
    stream, before = functions.Stream(priority=-1), functions.current_stream()
    source = torch.arange(1000.0, device=current.torch_device)
    stream.wait_stream(before)
    block = functions.stream(stream)
    for _ in range(2):
        with block:
            doubled = source * 2
            functions.record_stream(doubled, stream)
            done = stream.record_event()
            if current.family != "cpu":
                assert functions.current_stream() == stream != before
                assert torch.accelerator.current_stream() == stream
    functions.current_stream().wait_event(done)
    assert torch.equal(doubled.cpu(), torch.arange(1000.0) * 2)
    assert isinstance(stream, functions.Stream)
    assert isinstance(before, functions.Stream)
    assert isinstance(done, functions.Event)
    assert stream.device.type == current.torch_type
    assert not functions.is_current_stream_capturing()
    if current.family != "cpu":
        assert functions.current_stream() == before == functions.default_stream()
        functions.set_stream(stream)
        assert torch.accelerator.current_stream() == stream
        functions.set_stream(functions.default_stream())
        assert torch.accelerator.current_stream() == before


def test_a_stream_of_another_device(accelerator):
    if accelerator.count() < 2:
        pytest.skip("needs two devices")
    stream = functions.Stream(1 - accelerator.index)
    other = functions.current_stream(stream.device)

    @functions.stream(stream)
    def fail():
        assert torch.accelerator.current_device_index() == stream.device.index
        assert torch.accelerator.current_stream() == stream
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.accelerator.current_device_index() == accelerator.index
    assert functions.current_stream(stream.device) == other != stream


def test_events_time_work(current):
    start, end = (functions.Event(True, blocking=True) for _ in range(2))
    matrix = torch.randn(128, 128, device=current.torch_device)
    start.record()
    for _ in range(10):
        matrix = matrix @ matrix / 12
    end.record(functions.current_stream())
    end.synchronize()
    assert start.query()
    assert start.elapsed_time(end) > 0
    if current.family == "npu":
        with pytest.raises(TypeError, match="external"):
            functions.Event(external=True)


# --- tensors -----------------------------------------------------------------------------------


def test_moving_as_cuda_did(current):
    place, on = current.torch_device, current.family != "cpu"
    tensor, module = torch.randn(2, 3, 4, 4), nn.Linear(3, 3)
    moved = functions.to_accelerator(tensor, non_blocking=True)
    functions.synchronize()
    assert moved.device == place
    assert functions.to_accelerator(moved) is moved
    assert functions.on_accelerator(moved) is on
    assert functions.on_accelerator(moved.untyped_storage()) is on
    assert (moved is tensor) != on
    assert torch.equal(moved.cpu(), tensor)
    assert functions.to_accelerator(module, current.index) is module
    assert module.weight.device == place
    pinned = functions.pin_memory(tensor)
    assert pinned.is_pinned() is on
    assert torch.equal(pinned, tensor)
    packed = functions.to_accelerator(nn.utils.rnn.pack_sequence([torch.ones(2)]))
    assert functions.on_accelerator(packed) is on


def test_checkpoints_come_to_this_device(current):
    file = io.BytesIO()
    saved = torch.arange(3.0, device=current.torch_device)
    torch.save({"weight": saved}, file)
    file.seek(0)
    loaded = torch.load(file, map_location=functions.map_location(current.index))
    assert loaded["weight"].device == saved.device
    assert torch.equal(loaded["weight"], saved)


@pytest.mark.filterwarnings("ignore:.*Tensor constructors are no longer recommended:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool], ids=str)
def test_tensor_classes(current, dtype):
    """The idiom `Tensor = torch.cuda.FloatTensor if cuda else torch.FloatTensor`."""
    tensor_class = functions.tensor_type(dtype)
    sized, filled = tensor_class(2, 3).fill_(1), tensor_class([[1, 0], [0, 1]])
    for made, shape in ((sized, (2, 3)), (filled, (2, 2)), (tensor_class(), (0,))):
        assert made.device == current.torch_device
        assert made.dtype == dtype
        assert made.shape == shape
        assert isinstance(made, tensor_class)
        assert made.type() == functions.tensor_type_name(dtype)
    assert filled.tolist() == torch.tensor([[1, 0], [0, 1]], dtype=dtype).tolist()
    other = torch.ones(2, dtype=torch.int32, device=current.torch_device)
    assert other.type(tensor_class).dtype == dtype
    assert other.type(functions.tensor_type_name(dtype)).dtype == dtype


# --- collectives -------------------------------------------------------------------------------


def test_a_process_group_and_ddp(current):
    own = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
    backend = functions.dist_backend()
    assert backend == own.get(current.family, backend)
    on = current.family != "cpu"
    assert functions.is_accelerator_backend(backend) is on
    assert functions.is_accelerator_backend_available() is on
    expected = f"{current.torch_type}:{backend},cpu:gloo" if on else "cpu:gloo"
    assert functions.dist_backend("cuda:nccl,cpu:gloo") == expected
    assert functions.ddp_device_ids() == ([current.index] if on else None)
    assert functions.ddp_output_device("cuda") == (current.index if on else None)


@pytest.mark.without_npu  # whose processes are started by torchrun: tests/simulate has them
def test_a_model_trains_in_ddp(current, run_python):
    """In a process of its own, which torch's collectives leave with threads running."""
    code = """
        import os, sys
        import torch
        from accel.devices import functions
        torch.distributed.init_process_group(
            functions.dist_backend("nccl"), store=torch.distributed.HashStore(), rank=0,
            world_size=1,
        )
        model = torch.nn.parallel.DistributedDataParallel(
            torch.nn.Linear(3, 2).to(functions.device(INDEX)),
            device_ids=functions.ddp_device_ids(INDEX),
            output_device=functions.ddp_output_device(INDEX),
        )
        result = model(torch.ones(4, 3, device=functions.device()))
        result.sum().backward()
        print(torch.distributed.get_backend(), result.device, model.module.bias.grad.tolist())
        sys.stdout.flush()
        os._exit(0)
    """.replace("INDEX", repr(current.index))
    own = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
    backend = own.get(current.family, functions.dist_backend())
    found = run_python(code, ACCEL_DEVICE=str(current)).lines
    assert found[-1] == f"{backend} {current.torch_device} [4.0, 4.0]"


# --- the vendor's profiler and switches --------------------------------------------------------


def test_marks_reach_the_vendors_tool(accelerator, monkeypatch):
    if accelerator.family != "npu":
        with functions.annotate("step {}", 1):
            assert isinstance(functions.range_push("inner"), int)  # negative without a tool
            assert isinstance(functions.range_pop(), int)
        functions.range_end(functions.range_start("on its own"))
        functions.mark("here")
        return
    import torch_npu

    calls = []

    def note(name, answer):
        replaced = f"_{name}" if name in ("range_pop", "range_end") else f"_{name}_on_host"
        take = lambda *arguments: calls.append((name, *arguments)) or answer  # noqa: E731
        monkeypatch.setattr(torch_npu._C._mstx, replaced, take)

    for name, answer in [
        ("range_push", 1), ("range_pop", 1), ("range_start", 42), ("range_end", None),
        ("mark", None),
    ]:  # fmt: skip
        note(name, answer)
    with functions.annotate("step {}", 1):
        functions.mark("here")
    assert functions.range_push("x") == functions.range_pop() == 1
    functions.range_end(functions.range_start("on its own"))
    assert calls == [
        ("range_push", "step 1", "default"),
        ("mark", "here", "default"),
        ("range_pop", "default"),
        ("range_push", "x", "default"),
        ("range_pop", "default"),
        ("range_start", "on its own", "default"),
        ("range_end", 42, "default"),
    ]


def test_the_profiler_records_what_is_here(current):
    activities = functions.profiler_activities()
    names = {"cpu": ["CPU"], "cuda": ["CPU", "CUDA"], "npu": ["CPU", "NPU"]}
    if current.family in names:
        assert [activity.name for activity in activities] == names[current.family]
    assert functions.profiler_activities(cpu=False) == activities[1:]


def test_reduced_float32_products(current):
    functions.allow_tf32()
    assert torch.backends.cuda.matmul.allow_tf32 is True
    assert torch.backends.cudnn.allow_tf32 is True
    if current.family == "npu":
        assert torch.npu.matmul.allow_hf32
        assert torch.npu.conv.allow_hf32
    functions.allow_tf32(False, conv=False)
    assert torch.backends.cuda.matmul.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is True
    if current.family == "npu":
        assert not torch.npu.matmul.allow_hf32
        assert torch.npu.conv.allow_hf32
    functions.allow_tf32(False)
    assert torch.backends.cudnn.allow_tf32 is False
    if current.family == "npu":
        assert not torch.npu.conv.allow_hf32


# --- environment variables ---------------------------------------------------------------------

NAMES = (
    "CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING",
    "ASCEND_LAUNCH_BLOCKING", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NPU_ALLOC_CONF",
)  # fmt: skip


@pytest.fixture
def variables(monkeypatch):
    """A copy of the environment in which none of them is set."""
    copy = {name: value for name, value in os.environ.items() if name not in NAMES}
    monkeypatch.setattr(os, "environ", copy)
    return lambda: {name: copy[name] for name in NAMES if name in copy}


class TestEnvironment:
    @pytest.mark.parametrize(
        "name", ["VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES"]
    )
    def test_both_vendors_names_are_set_and_read(self, variables, name):
        functions.setenv(name, "0,1")
        assert variables() == {
            "CUDA_VISIBLE_DEVICES": "0,1",
            "ASCEND_RT_VISIBLE_DEVICES": "0,1",
        }
        assert functions.getenv(name) == "0,1"
        functions.setenv(name, 3, overwrite=False)
        assert functions.getenv("VISIBLE_DEVICES") == "0,1"
        functions.setenv(name, None)
        assert variables() == {}
        assert functions.getenv(name) is None
        assert functions.getenv(name, "7") == "7"
        functions.setenv(name, 3, overwrite=False)
        assert functions.getenv(name) == "3"

    def test_the_name_that_is_asked_for_comes_first(self, variables):
        os.environ["CUDA_LAUNCH_BLOCKING"], os.environ["ASCEND_LAUNCH_BLOCKING"] = "1", "0"
        assert functions.getenv("ASCEND_LAUNCH_BLOCKING") == "0"
        assert functions.getenv("CUDA_LAUNCH_BLOCKING") == "1"
        del os.environ["CUDA_LAUNCH_BLOCKING"]
        assert functions.getenv("CUDA_LAUNCH_BLOCKING") == "0"

    def test_what_ascend_cannot_read_is_left_out_and_said(self, variables, caplog):
        caplog.set_level(logging.WARNING, "accel")
        functions.setenv("ALLOC_CONF", "backend:cudaMallocAsync,max_split_size_mb:64")
        assert variables() == {
            "PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync,max_split_size_mb:64",
            "PYTORCH_NPU_ALLOC_CONF": "max_split_size_mb:64",
        }
        functions.setenv("ALLOC_CONF", "backend:cudaMallocAsync")
        assert "PYTORCH_NPU_ALLOC_CONF" not in variables()
        os.environ["ASCEND_RT_VISIBLE_DEVICES"] = "4"
        functions.setenv("CUDA_VISIBLE_DEVICES", "GPU-0a1b")
        assert "ASCEND_RT_VISIBLE_DEVICES" not in variables()
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 3
        assert "PYTORCH_NPU_ALLOC_CONF cannot take 'backend:cudaMallocAsync'" in said[0]
        assert "ASCEND_RT_VISIBLE_DEVICES cannot take 'GPU-0a1b'" in said[2]

    @pytest.mark.parametrize("value", ["", "-1", "0, 2"])
    def test_lists_of_numbers_pass(self, variables, value):
        functions.setenv("VISIBLE_DEVICES", value)
        assert set(variables().values()) == {value}

    def test_another_name_is_refused(self, variables):
        for call in (functions.getenv, lambda name: functions.setenv(name, "1")):
            with pytest.raises(ValueError, match="VISIBLE_DEVICES, LAUNCH_BLOCKING, ALLOC_CONF"):
                call("NCCL_DEBUG")


@pytest.mark.without_npu  # where torch is there from the start
def test_variables_are_set_before_torch(run_python):
    code = """
        import sys
        from accel.devices.environment import setenv
        setenv("ALLOC_CONF", "expandable_segments:True")
        print("torch" in sys.modules)
    """
    assert run_python(code).lines == ["False"]


# --- a program -----------------------------------------------------------------------------------


def adversarial_losses(place, tensor_class, put, stream, wait):
    """Six steps of two nets against each other, in the idiom of a public collection of GANs."""
    torch.manual_seed(5)
    generator = put(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    critic = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid()).to(place)
    loss_of = put(nn.BCELoss())
    optimizers = [torch.optim.Adam(net.parameters(), 1e-2) for net in (generator, critic)]
    losses = []
    for _ in range(6):
        noise, batch = torch.randn(6, 8).type(tensor_class), torch.randn(6, 4)
        with stream():
            real = put(batch)
        wait()
        valid, fake = tensor_class(6, 1).fill_(1.0), tensor_class(6, 1).fill_(0.0)
        made = generator(noise)
        first = loss_of(critic(made), valid)
        second = (loss_of(critic(real), valid) + loss_of(critic(made.detach()), fake)) / 2
        for loss, optimizer in zip((first, second), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward(retain_graph=True, inputs=optimizer.param_groups[0]["params"])
        for optimizer in optimizers:
            optimizer.step()
        losses += [first.item(), second.item()]
    return torch.tensor(losses)


@pytest.mark.filterwarnings("ignore:.*Tensor constructors are no longer recommended:UserWarning")
def test_a_program_computes_what_it_computed_before(current):
    before = adversarial_losses(
        "cpu", torch.FloatTensor, lambda value: value, contextlib.nullcontext, lambda: None
    )
    side = functions.Stream()
    after = adversarial_losses(
        functions.device(current.index),
        functions.tensor_type(torch.float32),
        lambda value: functions.to_accelerator(value, non_blocking=True),
        lambda: functions.stream(side),
        lambda: functions.current_stream().wait_stream(side),
    )
    if current.family == "cpu":
        assert torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert after[-2:].tolist() != after[:2].tolist()
