"""What a rank of the stand-in HCCL checks; run as a program this is one rank.

It reads commands as lines of JSON, `[check, arguments]`, calls the function of that name below and
answers with one line: the error or null.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest

from tests.simulate.hccl_ranks import (
    CONFIG,
    REDUCED,
    REDUCTIONS,
    TYPES,
    HcclError,
    Rank,
    root_info,
    u32,
)

# --- values and expected results --------------------------------------------------------------


def widened(dtype, array):
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if dtype == "float16" else array


def narrowed(dtype, array):
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return array.astype(np.float16)
    if dtype == "bfloat16":
        bits = array.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return array


def values(dtype, count, rank, seed=0):
    """Numbers that every rank can make for every other, over the type's whole range."""
    generator = np.random.default_rng([seed, rank, count])
    kind = TYPES[dtype][1]
    if dtype in ("float16", "bfloat16", "float32", "float64"):
        numbers = generator.standard_normal(count) * 3
        if dtype == "float64":
            return numbers
        return narrowed(dtype, numbers.astype(np.float32))
    if dtype == "int128":
        return generator.standard_normal(count) + 1j * generator.standard_normal(count)
    limits = np.iinfo(kind)
    return generator.integers(limits.min, limits.max, count, dtype=kind, endpoint=True)


def reduced(dtype, reduction, inputs):
    operation = {
        "sum": np.add,
        "prod": np.multiply,
        "max": np.maximum,
        "min": np.minimum,
    }[reduction]
    result = widened(dtype, inputs[0])
    for one in inputs[1:]:
        result = operation(result, widened(dtype, one))
    return narrowed(dtype, result)


def same(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes(), (actual, expected)


def filled(dtype, count):
    """Memory that shows what was not written."""
    return np.full(count * np.dtype(TYPES[dtype][1]).itemsize, 0x7F, np.uint8).view(TYPES[dtype][1])


# --- checks -----------------------------------------------------------------------------------


def reductions(comm, dtype, counts):
    ranks = range(comm.size)
    for reduction in REDUCTIONS:
        for count in counts:
            inputs = [values(dtype, count, rank) for rank in ranks]
            expected, own = reduced(dtype, reduction, inputs), inputs[comm.rank]
            result = filled(dtype, count)
            comm.run("HcclAllReduce", own, result, count, dtype, reduction)
            same(result, expected)
            comm.run("HcclAllReduce", own, own, count, dtype, reduction)  # in place
            same(own, expected)
            root = count % comm.size
            own, result = values(dtype, count, comm.rank), filled(dtype, count)
            comm.run("HcclReduce", own, result, count, dtype, reduction, u32(root))
            same(result, expected if comm.rank == root else filled(dtype, count))
            inputs = [values(dtype, count * comm.size, rank) for rank in ranks]
            expected = reduced(dtype, reduction, inputs)
            result = filled(dtype, count)
            comm.run("HcclReduceScatter", inputs[comm.rank], result, count, dtype, reduction)
            same(result, expected[comm.rank * count : (comm.rank + 1) * count])


def movements(comm, dtype, counts):
    for count in counts:
        whole = [values(dtype, count, rank) for rank in range(comm.size)]
        own = whole[comm.rank]
        gathered = filled(dtype, count * comm.size)
        comm.run("HcclAllGather", own, gathered, count, dtype)
        same(gathered, np.concatenate(whole))
        part = gathered[comm.rank * count : (comm.rank + 1) * count]
        comm.run("HcclAllGather", part, gathered, count, dtype)  # in place
        same(gathered, np.concatenate(whole))
        for root in range(comm.size):
            buffer = own.copy() if comm.rank == root else filled(dtype, count)
            comm.run("HcclBroadcast", buffer, count, dtype, u32(root))
            same(buffer, whole[root])
            pieces = values(dtype, count * comm.size, root)
            result = filled(dtype, count)
            given = pieces if comm.rank == root else None
            comm.run("HcclScatter", given, result, count, dtype, u32(root))
            same(result, pieces[comm.rank * count : (comm.rank + 1) * count])
        rows = [values(dtype, count * comm.size, rank) for rank in range(comm.size)]
        result = filled(dtype, count * comm.size)
        own = rows[comm.rank]
        comm.run("HcclAlltoAll", own, count, dtype, result, count, dtype)
        mine = slice(comm.rank * count, (comm.rank + 1) * count)
        same(result, np.concatenate([row[mine] for row in rows]))


def uneven(comm, dtype, scale):
    """Counts from 0 upwards that differ by pair, with gaps between the pieces."""
    size, rank = comm.size, comm.rank
    matrix = np.array(
        [[(i * size + 2 * j) % (size + 2) * scale for j in range(size)] for i in range(size)],
        np.uint64,
    )
    sends, takes = matrix[rank].copy(), matrix[:, rank].copy()

    def offsets(counts, gap):
        return (np.concatenate([[0], np.cumsum(counts + np.uint64(gap))[:-1]])).astype(np.uint64)

    def piece(source, target):
        return values(dtype, int(matrix[source, target]), source, seed=target)

    for gap in (0, 3):
        send_at, take_at = offsets(sends, gap), offsets(takes, gap)
        given = filled(dtype, int(send_at[-1] + sends[-1]))
        expected = filled(dtype, int(take_at[-1] + takes[-1]))
        result = expected.copy()
        for other in range(size):
            given[int(send_at[other]) :][: int(sends[other])] = piece(rank, other)
            expected[int(take_at[other]) :][: int(takes[other])] = piece(other, rank)
        comm.run("HcclAlltoAllV", given, sends, send_at, dtype, result, takes, take_at, dtype)
        same(result, expected)
        if gap == 0:
            result = filled(dtype, result.size)
            comm.run("HcclAlltoAllVC", given, matrix, dtype, result, dtype)
            same(result, expected)
        counts = matrix[0].copy()
        at = offsets(counts, gap)
        wholes = [values(dtype, int(at[-1] + counts[-1]), r, seed=9) for r in range(size)]
        mine = int(counts[rank])
        result = filled(dtype, int(at[-1] + counts[-1]))
        expected = result.copy()
        for other in range(size):
            expected[int(at[other]) :][: int(counts[other])] = wholes[other][: int(counts[other])]
        comm.run("HcclAllGatherV", wholes[rank], mine, result, counts, at, dtype)
        same(result, expected)
        if dtype in REDUCED:
            result = filled(dtype, mine)
            comm.run("HcclReduceScatterV", wholes[rank], counts, at, result, mine, dtype, "sum")
            same(result, reduced(dtype, "sum", wholes)[int(at[rank]) :][:mine])


def special_values(comm):
    """NaN wins in max and min, infinities and signed zeros keep their meaning."""
    numbers = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0]
    left = np.repeat(numbers, len(numbers))
    right = np.tile(numbers, len(numbers))
    own = left if comm.rank == 0 else right
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        kind = np.float64 if dtype == "float64" else np.float32
        given = narrowed(dtype, own.astype(kind))
        for reduction, operation in {
            "sum": np.add,
            "prod": np.multiply,
            "max": np.maximum,
            "min": np.minimum,
        }.items():
            result = filled(dtype, own.size)
            comm.run("HcclAllReduce", given, result, own.size, dtype, reduction)
            with np.errstate(invalid="ignore"):
                expected = left.astype(kind)
                for _ in range(comm.size - 1):
                    expected = operation(expected, right.astype(kind))
            np.testing.assert_array_equal(widened(dtype, result).astype(kind), expected)


def every_float16(comm):
    """All 65,536 patterns: unchanged by max with themselves, rounded as numpy does in sums."""
    patterns = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16)
    result = filled("float16", 65536)
    comm.run("HcclAllReduce", patterns, result, 65536, "float16", "max")
    finite = ~np.isnan(patterns)
    same(result[finite], patterns[finite])
    assert np.isnan(result[~finite]).all()
    shuffled = [np.random.default_rng(rank).permutation(patterns) for rank in range(comm.size)]
    with np.errstate(invalid="ignore", over="ignore"):
        expected = reduced("float16", "sum", shuffled)
    comm.run("HcclAllReduce", shuffled[comm.rank], result, 65536, "float16", "sum")
    np.testing.assert_array_equal(result, expected)


def tied_bfloat16(comm):
    """Sums that lie half way between two bfloat16 go to the even one."""
    ones = np.arange(1 << 15, dtype=np.uint16)  # every pattern up to NaN
    halves = narrowed("bfloat16", widened("bfloat16", ones) * np.float32(2**-8))
    own = ones if comm.rank == 0 else halves
    inputs = [ones] + [halves] * (comm.size - 1)
    result = filled("bfloat16", own.size)
    comm.run("HcclAllReduce", own, result, own.size, "bfloat16", "sum")
    with np.errstate(invalid="ignore", over="ignore"):
        expected = reduced("bfloat16", "sum", inputs)
    numbers = ~np.isnan(widened("bfloat16", expected))
    same(result[numbers], expected[numbers])
    assert np.isnan(widened("bfloat16", result[~numbers])).all()


def messages(comm, dtype, counts):
    """Both ranks of each pair send first, then both receive; two messages keep their order."""
    for count in counts:
        for other in range(comm.size):
            if other == comm.rank:
                continue
            for seed in (1, 2):
                comm.run(
                    "HcclSend", values(dtype, count, comm.rank, seed), count, dtype, u32(other)
                )
        for other in range(comm.size):
            if other == comm.rank:
                continue
            for seed in (1, 2):
                result = filled(dtype, count)
                comm.run("HcclRecv", result, count, dtype, u32(other))
                same(result, values(dtype, count, other, seed))


def passed_on(comm, dtype, count):
    """Longer than the ring: rank 0 sends to 1, which receives and sends to 2, and back to 0."""
    first, last = comm.rank == 0, (comm.rank - 1) % comm.size
    expected, result = values(dtype, count, 0), filled(dtype, count)
    if first:
        comm.run("HcclSend", expected, count, dtype, u32(1))
    comm.run("HcclRecv", result, count, dtype, u32(last))
    same(result, expected)
    if not first:
        comm.run("HcclSend", result, count, dtype, u32((comm.rank + 1) % comm.size))


def batches(comm, dtype, count):
    """Every pair in both directions, itself included, in one batch, of any size and order."""
    items, results = [], {}
    for other in range(comm.size):
        results[other] = filled(dtype, count + other)
        items.append(("send", values(dtype, count + comm.rank, comm.rank, other), dtype, other))
        items.append(("receive", results[other], dtype, other))
    if comm.rank % 2:
        items.reverse()
    comm.batch(*items)
    for other, result in results.items():
        same(result, values(dtype, count + other, other, comm.rank))


def ordered_batches(comm, dtype, counts):
    """Messages of one pair in one batch arrive in the order in which they were given."""
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    results = [filled(dtype, count) for count in counts]
    comm.batch(
        *(("send", values(dtype, count, comm.rank), dtype, after) for count in counts),
        *(("receive", result, dtype, before) for result in results),
    )
    for result in results:
        same(result, values(dtype, result.size, before))


def groups(comm, dtype, count):
    """Sends and receives between group start and end progress together; groups nest."""
    results = {}
    comm.call("HcclGroupStart")
    for other in range(comm.size):
        results[other] = filled(dtype, count)
        comm.call("HcclGroupStart")
        own = results.setdefault(("own", other), values(dtype, count, comm.rank, other))
        comm.run("HcclSend", own, count, dtype, u32(other))
        comm.call("HcclGroupEnd")
        comm.run("HcclRecv", results[other], count, dtype, u32(other))
    same(results[0], filled(dtype, count))
    comm.call("HcclGroupEnd")
    for other in range(comm.size):
        same(results[other], values(dtype, count, other, comm.rank))


def many_calls(comm, count):
    """Small calls in a row, so that slow and fast ranks drift as far apart as they can."""
    generator = np.random.default_rng(comm.rank)
    for call in range(count):
        if generator.random() < 0.02:
            time.sleep(0.002)
        own = np.array([comm.rank + call], np.int32)
        result = np.zeros(1, np.int32)
        comm.run("HcclAllReduce", own, result, 1, "int32", "sum")
        assert result[0] == sum(range(comm.size)) + comm.size * call


def config(name=b"", timeout=-1):
    """`HcclCommConfig` as HcclCommConfigInit fills it: size, magic, version, the used fields."""
    made = bytearray(CONFIG)
    made[0:8] = CONFIG.to_bytes(8, "little")
    made[8:12] = (0xF0F0F0F0).to_bytes(4, "little")
    made[12:16] = (10).to_bytes(4, "little")
    made[24:32] = b"\xff" * 8
    made[32 : 32 + len(name)] = name
    made[316:320] = timeout.to_bytes(4, "little", signed=True)
    return ctypes.create_string_buffer(bytes(made), CONFIG)


def part_of(comm, members, number, name=b"part", timeout=-1):
    """A communicator of some ranks of another."""
    rank = members.index(comm.rank)
    made = Rank(comm.library, rank, len(members))
    listed = (ctypes.c_uint32 * len(members))(*members)
    comm.call(
        "HcclCreateSubCommConfig",
        ctypes.byref(comm.handle),
        len(members),
        listed,
        ctypes.c_uint64(number),
        rank,
        config(name, timeout),
        ctypes.byref(made.handle),
    )
    return made


def parts(comm):
    """Every pair becomes a communicator; they work interleaved with one another."""
    pairs = [(i, j) for i in range(comm.size) for j in range(i + 1, comm.size)]
    made = {
        pair: part_of(comm, pair[::-1], number, b"pair%d" % number)
        for number, pair in enumerate(pairs)
        if comm.rank in pair
    }
    for pair, part in made.items():
        name = ctypes.create_string_buffer(128)
        part.call("HcclGetCommName", part.handle, name)
        assert name.value == b"pair%d" % pairs.index(pair)
        own, result = np.array([comm.rank], np.int32), np.zeros(2, np.int32)
        part.run("HcclAllGather", own, result, 1, "int32")
        assert tuple(result) == pair[::-1]
    reductions(comm, "int32", [5])
    for part in made.values():
        part.destroy()


def timeout_of_its_own(comm):
    """The execution timeout of a communicator's configuration holds for it alone."""
    part = part_of(comm, list(range(comm.size)), 1, timeout=1)
    if comm.rank == 0:
        with pytest.raises(HcclError, match=r"rank 1 within 1 s"):
            barrier(part)
    else:
        time.sleep(2)
    barrier(comm)


def names(comm):
    size, rank = ctypes.c_uint32(), ctypes.c_uint32()
    comm.call("HcclGetRankSize", comm.handle, ctypes.byref(size))
    comm.call("HcclGetRankId", comm.handle, ctypes.byref(rank))
    assert (rank.value, size.value) == (comm.rank, comm.size)
    error = ctypes.c_int32(7)
    comm.call("HcclGetCommAsyncError", comm.handle, ctypes.byref(error))
    assert error.value == 0
    assert comm.library.HcclGetCommConfigCapability() == 12


def kept_open(comm, number):
    """Communicators that are destroyed leave neither memory nor files."""

    def state():
        maps = Path("/proc/self/maps").read_text().count("simulated-hccl")
        return maps, sorted(os.listdir("/proc/self/fd"))

    before = state()
    for i in range(number):
        part = part_of(comm, list(range(comm.size)), i)
        movements(part, "int8", [3])
        part.destroy()
    assert state() == before


def barrier(comm):
    comm.run("HcclBarrier")


def in_threads(size, work):
    """Run `work(rank)` for all ranks at the same time."""
    failures = []

    def guarded(rank):
        try:
            work(rank)
        except Exception:
            failures.append(traceback.format_exc())

    workers = [threading.Thread(target=guarded, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures[0]


def work_of_a_thread(one):
    reductions(one, "float32", [1, 1000])
    batches(one, "int16", 3_000_000)
    one.destroy()


def threads_as_ranks(comm, size):
    """Several ranks in one process, each joined by its thread."""
    info = root_info(comm.library)
    in_threads(size, lambda rank: work_of_a_thread(Rank(comm.library, rank, size).join(info)))


def all_devices(comm, size):
    """Several ranks in one process, made by one call; wrong lists of devices are refused."""
    handles = (ctypes.c_void_p * size)()

    def init(*devices):
        listed = (ctypes.c_int32 * len(devices))(*devices)
        comm.call("HcclCommInitAll", len(devices), listed, handles)

    init(*range(size))
    made = [Rank(comm.library, i, size, ctypes.c_void_p(handles[i])) for i in range(size)]
    in_threads(size, lambda rank: work_of_a_thread(made[rank]))
    for devices, text in (((0, 1, 1), "twice"), ((0, 4), "not there"), ((), "no devices")):
        with pytest.raises(HcclError, match=text):
            init(*devices)


def call(comm, name, *arguments):
    """One call; `[count, type]` stands for an array."""
    made = []
    for argument in arguments:
        if isinstance(argument, list):
            made.append(filled(argument[1], argument[0]))
        elif isinstance(argument, dict):
            made.append(u32(argument["u32"]))
        else:
            made.append(argument)
    comm.run(name, *made)


def destroy(comm):
    comm.destroy()


def forked(comm):
    """A forked child may not use what its parent made."""
    child = os.fork()
    if child == 0:
        try:
            barrier(comm)
        except HcclError as error:
            os._exit(40 if "forked" in str(error) else 41)
        os._exit(42)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 40


def destroyed_meanwhile(comm):
    """Destroying a communicator wakes the thread that waits in it."""
    timer = threading.Timer(0.5, comm.destroy)
    timer.start()
    with pytest.raises(HcclError, match="was destroyed"):
        barrier(comm)
    timer.join()


def sleep(comm, seconds):
    time.sleep(seconds)


def serve(path: str, rank: int, size: int) -> None:
    library = ctypes.CDLL(path)
    library.last_error.restype = ctypes.c_char_p
    comm = Rank(library, rank, size)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        answer = {"error": None, "code": None, "value": None}
        try:
            if name == "root_info":
                answer["value"] = root_info(library).hex()
            elif name == "join":
                comm.join(bytes.fromhex(arguments[0]))
            else:
                globals()[name](comm, *arguments)
        except HcclError as error:
            answer |= {"error": str(error), "code": error.code}
        except Exception:
            answer["error"] = traceback.format_exc()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
