"""The stand-in runtime: memory, streams, events, errors. Wrong calls are reported."""

import ctypes
import re
import subprocess
import time
from pathlib import Path

import pytest
import torch

from accel.simulate import build, library

NPU = torch.device("npu", 0)
ROOT = Path(__file__).parents[2]
SYMBOLS = Path(__file__).parent / "runtime_symbols.txt"
UNKNOWN_HANDLE, BAD_PARAMETER, REFUSED = 107017, 107000, 207000


@pytest.fixture
def runtime():
    torch.npu.init()
    torch.zeros(1, device=NPU)
    found = ctypes.CDLL(str(build.runtime_directory() / build.MAIN))
    found.aclGetRecentErrMsg.restype = ctypes.c_char_p
    found.aclrtSetDevice(0)
    return found


def message(runtime):
    return runtime.aclGetRecentErrMsg().decode()


def allocate(runtime, size):
    pointer = ctypes.c_void_p()
    assert runtime.aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(size), 0) == 0
    return pointer


# --- what there is -----------------------------------------------------------------------------


def test_every_exported_symbol_is_listed_as_ours_control_or_raising():
    """runtime_symbols.txt says what each entry point is; a new one is a decision."""
    listed = dict(line.split() for line in SYMBOLS.read_text().splitlines() if line)
    assert set(listed.values()) <= {"ours", "control", "raising"}
    exported = exported_symbols(build.runtime_directory() / build.MAIN)
    assert exported == set(listed)
    refused = set(re.findall(r"^REFUSE\((\w+)\)", (build.SOURCES / "refusals.c").read_text(), re.M))
    assert refused == {name for name, kind in listed.items() if kind == "raising"}


def test_no_compute_entry_point_is_exported():
    """torch_npu then names the operator that is missing, instead of reading unwritten results."""
    assert not [name for name in exported_symbols(build.runtime_directory() / build.MAIN)
                if name.startswith("aclnn")]  # fmt: skip


def exported_symbols(path):
    table = subprocess.run(["nm", "-D", "--defined-only", path], capture_output=True, text=True)
    assert table.returncode == 0, table.stderr
    return {line.split()[2] for line in table.stdout.splitlines() if line.split()[1] == "T"}


def test_what_is_not_simulated_fails_and_names_itself(runtime):
    listed = [line.split() for line in SYMBOLS.read_text().splitlines()]
    for name in (name for name, kind in listed if kind == "raising"):
        assert getattr(runtime, name)() == REFUSED
        assert name in message(runtime)


def test_an_operator_of_c_plus_plus_without_a_handler_fails_by_name(runtime):
    assert runtime.aclopCompileAndExecute(
        b"Nonesuch", 0, None, None, 0, None, None, None, 0, 0, None, None
    )
    assert "Nonesuch" in message(runtime)


# --- memory ------------------------------------------------------------------------------------


def test_freeing_what_is_not_allocated(runtime):
    assert runtime.aclrtFree(ctypes.c_void_p(0x1234)) == BAD_PARAMETER
    assert "not the start of a live allocation" in message(runtime)
    pointer = allocate(runtime, 100)
    inside = ctypes.c_void_p(pointer.value + 8)
    assert runtime.aclrtFree(inside) == BAD_PARAMETER
    assert runtime.aclrtFree(pointer) == 0
    assert runtime.aclrtFree(pointer) == BAD_PARAMETER, "twice"


@pytest.mark.parametrize("offset", [0, 90])
def test_copies_past_an_allocation(runtime, offset):
    pointer = allocate(runtime, 100)
    source = ctypes.create_string_buffer(200)
    target = ctypes.c_void_p(pointer.value + offset)
    size = ctypes.c_size_t(101 - offset)
    assert runtime.aclrtMemcpy(target, size, source, size, 1) == BAD_PARAMETER
    assert "reach past its end" in message(runtime)
    less = ctypes.c_size_t(100 - offset)
    assert runtime.aclrtMemcpy(target, less, source, less, 1) == 0
    assert runtime.aclrtMemcpy(target, ctypes.c_size_t(5), source, ctypes.c_size_t(6), 1) == 100000
    runtime.aclrtFree(pointer)
    assert runtime.aclrtMemcpy(target, less, source, less, 1) == BAD_PARAMETER, "freed"


def test_copies_in_a_direction_that_the_addresses_do_not_have(runtime):
    pointer = allocate(runtime, 16)
    source = ctypes.create_string_buffer(16)
    size = ctypes.c_size_t(16)
    for kind in (0, 2, 3):
        assert runtime.aclrtMemcpy(pointer, size, source, size, kind) == BAD_PARAMETER
        assert "asked to copy" in message(runtime)
    runtime.aclrtFree(pointer)


def test_bytes_survive_a_round_trip_and_a_copy_on_the_device(runtime):
    first, second = allocate(runtime, 64), allocate(runtime, 64)
    source = ctypes.create_string_buffer(bytes(range(64)), 64)
    back = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(64)
    assert runtime.aclrtMemcpy(first, size, source, size, 1) == 0
    assert runtime.aclrtMemcpy(second, size, first, size, 3) == 0
    assert runtime.aclrtMemcpy(back, size, second, size, 2) == 0
    assert back.raw == bytes(range(64))
    for pointer in (first, second):
        runtime.aclrtFree(pointer)


def test_more_than_the_device_has_is_torch_npus_own_error(run_simulated):
    result = run_simulated(
        """
        import torch
        x = torch.empty(40 << 20, dtype=torch.uint8, device="npu")
        assert torch.npu.mem_get_info()[1] == 64 << 20
        try:
            torch.empty(40 << 20, dtype=torch.uint8, device="npu")
        except torch.OutOfMemoryError as error:
            assert "NPU out of memory" in str(error), error
            print("caught")
        del x
        torch.empty(40 << 20, dtype=torch.uint8, device="npu")
        print("again")
        """,
        memory="64M",
    )
    assert result.stdout.split() == ["caught", "again"], result.stderr


def test_the_host_cannot_touch_device_memory(run_simulated):
    result = run_simulated(
        """
        import ctypes, torch
        x = torch.ones(4, device="npu")
        print(x.sum().item())
        ctypes.string_at(x.data_ptr(), 4)
        """
    )
    assert result.stdout.split() == ["4.0"]
    assert result.returncode < 0, "a segmentation fault, as on a machine with a chip"
    assert "the host touched device memory directly" in result.stderr


def test_a_fork_cannot_use_the_devices_of_its_parent(run_simulated):
    result = run_simulated(
        """
        import os, torch
        x = torch.ones(1000, device="npu")
        big = torch.ones(4 << 20, device="npu")
        child = os.fork()
        if child == 0:
            refused = 0
            for use in (lambda: x.add_(41), lambda: x.cpu(), lambda: torch.npu.mem_get_info(),
                        lambda: torch.full((8 << 20,), 1.0, device="npu")):
                try:
                    use()
                except RuntimeError as error:
                    refused += "fork" in str(error).lower()
            del big
            try:
                torch.npu.empty_cache()
            except RuntimeError:
                pass
            os._exit(10 + refused)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, x.sum().item(), big.sum().item())
        """
    )
    assert result.stdout.split() == ["14", "1000.0", str(float(4 << 20))], result.stderr


def test_a_fork_before_the_first_use_has_the_devices(run_simulated):
    result = run_simulated(
        """
        import os, torch
        child = os.fork()
        x = torch.ones(3, device="npu").sum().item()
        if child == 0:
            os._exit(int(x))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), x)
        """
    )
    assert result.stdout.split() == ["3", "3.0"], result.stderr


def test_memory_goes_back_to_the_host():
    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096

    torch.npu.empty_cache()
    before = resident()
    big = torch.ones(64 << 20, dtype=torch.uint8, device=NPU)
    assert resident() - before > 60 << 20
    del big
    torch.npu.empty_cache()
    assert resident() - before < 16 << 20


def test_statistics_are_those_of_the_real_allocator():
    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()
    before = torch.npu.memory_allocated()
    x = torch.empty(1 << 20, dtype=torch.uint8, device=NPU)
    assert torch.npu.memory_allocated() - before >= 1 << 20
    del x
    assert torch.npu.memory_allocated() == before
    assert torch.npu.max_memory_allocated() - before >= 1 << 20
    assert torch.npu.memory_reserved() >= torch.npu.memory_allocated()


def test_pinned_memory(runtime):
    x = torch.arange(10.0).pin_memory()
    assert x.is_pinned()
    assert not torch.arange(10.0).is_pinned()
    assert (x.to(NPU, non_blocking=True).cpu() == x).all()
    pageable = ctypes.create_string_buffer(8)
    assert runtime.aclrtFreeHost(pageable) == BAD_PARAMETER
    assert "pinned" in message(runtime)


# --- streams and events ------------------------------------------------------------------------


def test_handles_that_are_destroyed_or_made_up(runtime):
    stream, event = ctypes.c_void_p(), ctypes.c_void_p()
    assert runtime.aclrtCreateStream(ctypes.byref(stream)) == 0
    assert runtime.aclrtCreateEventExWithFlag(ctypes.byref(event), 0) == 0
    assert runtime.aclrtRecordEvent(event, stream) == 0
    assert runtime.aclrtRecordEvent(stream, event) == UNKNOWN_HANDLE, "the one for the other"
    assert runtime.aclrtDestroyStream(stream) == 0
    assert runtime.aclrtSynchronizeStream(stream) == UNKNOWN_HANDLE
    assert runtime.aclrtDestroyStream(stream) == UNKNOWN_HANDLE
    assert runtime.aclrtDestroyEvent(ctypes.c_void_p(0x99)) == UNKNOWN_HANDLE
    assert runtime.aclrtDestroyEvent(event) == 0
    reused = ctypes.c_void_p()
    assert runtime.aclrtCreateStream(ctypes.byref(reused)) == 0
    assert reused.value != stream.value
    assert runtime.aclrtDestroyStream(reused) == 0


def test_elapsed_time_is_real():
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    start.record()
    time.sleep(0.03)
    end.record()
    end.synchronize()
    assert 25 < start.elapsed_time(end) < 5000
    assert end.query()
    with pytest.raises(RuntimeError):
        start.elapsed_time(torch.npu.Event(enable_timing=True))


def test_streams():
    stream = torch.npu.Stream()
    with torch.npu.stream(stream):
        assert torch.npu.current_stream() == stream
        x = torch.ones(4, device=NPU) * 2
    stream.synchronize()
    torch.npu.current_stream().wait_stream(stream)
    x.record_stream(torch.npu.current_stream())
    assert (x.cpu() == 2).all()
    assert stream.query()


def test_two_devices():
    one, other = torch.ones(3, device="npu:0"), torch.ones(3, device="npu:1")
    assert (other.to("npu:0") == one).all()
    with pytest.raises(RuntimeError, match="npu:0 and npu:1"):
        one + other
    with torch.npu.device(1):
        assert torch.ones(1, device="npu").device.index == 1
    with pytest.raises(RuntimeError, match="2"):
        torch.ones(1, device="npu:2")


def test_counters(runtime):
    counted = library.current_runtime()
    before = counted.counters()
    x = torch.arange(100.0).to(NPU)
    x.cpu()
    x.sum().item()
    torch.npu.synchronize()
    after = counted.counters()
    assert after.copied_bytes["host to device"] - before.copied_bytes["host to device"] == 400
    assert after.copies["device to host"] - before.copies["device to host"] == 2
    assert after.synchronizations > before.synchronizations
    assert counted.peak_bytes(0) > 0
    assert counted.peak_bytes(99) == 0


# --- wrong devices -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: a + b,
        lambda a, b: torch.nn.functional.linear(a, b),
        lambda a, b: torch.cat([a, b]),
        lambda a, b: torch.nn.functional.cross_entropy(a, b.argmax(1)),
        lambda a, b: a.copy_(b) + b,
        lambda a, b: torch.mm(a, b, out=torch.empty(4, 4)),
        lambda a, b: torch._foreach_add([a], [b]),
        lambda a, b: a.__setitem__(a > 0, b[b > 0]),
        lambda a, b: a.index_put_((torch.tensor([0]),), b[:1]),
        lambda a, b: b[torch.tensor([0], device=NPU)],
        lambda a, b: torch.sum(a, 0, out=torch.empty(())),
        lambda a, b: torch.add(a, a, out=torch.empty(0)),
        lambda a, b: torch.tensor(1.0).add_(a.sum()),
        lambda a, b: torch.stack([a.sum(), b.sum()]),
        lambda a, b: torch.nn.functional.embedding(torch.tensor(1), a),
        lambda a, b: torch.ones(3, device=NPU) + torch.tensor(1.0, device="npu:1"),
    ],
)
def test_operands_on_the_host_are_refused(call):
    a, b = torch.randn(4, 4, device=NPU), torch.randn(4, 4)
    with pytest.raises(RuntimeError, match=r"same device|cpu"):
        call(a, b)


def test_what_is_legal_across_devices():
    a = torch.arange(12.0, device=NPU).reshape(3, 4)
    assert (a + torch.tensor(1.0)).cpu()[0, 0] == 1, "a scalar on the host"
    assert (a[torch.tensor([2, 0])].cpu()[0, 0]) == 8, "an index on the host"
    a[torch.tensor([0])] = torch.zeros(4, device=NPU)
    assert a.cpu()[0].sum() == 0
    a[a == 6] = torch.tensor(-1.0)
    assert a.cpu()[1, 2] == -1, "a number on the host"
    number = torch.tensor(2.0)
    assert (a.clamp(max=number).cpu().max()) == 2
    assert torch.where(a > 0, a, number).min().item() > 0
    assert (torch._foreach_mul([a], number)[0].cpu() == a.cpu() * 2).all()
    assert a.masked_fill(a > 0, number).device == NPU
