"""The stand-in HCCL by itself: ranks are processes, device memory is numpy's."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

import accel.simulate.build as build
from tests.simulate.hccl_ranks import REDUCED, TYPES, Ranks

SOURCES = ("hccl", "communicator", "transport", "channels", "collectives", "reduce")
STUB = """
#include <stdarg.h>
#include <stdio.h>
#include "runtime.h"

SimConfig sim_config = {.devices = 4};

static _Thread_local char text[1024];

aclError sim_fail(aclError code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return code;
}

void *sim_bytes(const void *pointer, size_t size, const char *caller) {
    if (!pointer) sim_fail(1, "%s: %zu bytes at no address", caller, size);
    return (void *)pointer;
}

EXPORT const char *last_error(void) { return text; }
"""
PARAMETER, POINTER, UNSUPPORTED, TIMEOUT, REMOTE = 1, 2, 5, 9, 21
LARGE = 1_700_001  # elements: several slots, several rings, and odd


def named():
    return sorted(os.listdir("/dev/shm"))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hccl")
    (directory / "stub.c").write_text(STUB)
    sources = [str(build.SOURCES / f"{name}.c") for name in SOURCES]
    target = directory / "libhccl.so"
    flags = ["-shared", "-fPIC", "-std=c11", "-O2", "-fvisibility=hidden", f"-I{build.SOURCES}"]
    flags += ["-Wall", "-Wextra", "-Werror"]
    inputs = [*sources, str(directory / "stub.c")]
    libraries = ["-lpthread", "-lrt", "-ldl", "-lm"]
    subprocess.run(["cc", *flags, *inputs, "-o", str(target), *libraries], check=True)
    before = named()
    yield target
    assert named() == before


@pytest.fixture(scope="module", params=[2, 3, 4], ids="{} ranks".format)
def ranks(request, library):
    """Ranks that outlive a test; for checks that succeed."""
    made = Ranks(library, request.param)
    yield made
    made.close()


@pytest.fixture
def make_ranks(library):
    """Ranks of one test, which may fail and die."""
    made: list[Ranks] = []

    def make(size, **options):
        made.append(Ranks(library, size, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("dtype", REDUCED)
def test_reductions_equal_numpy_in_the_order_of_ranks(ranks, dtype):
    ranks.all("reductions", dtype, [0, 1, 63, 1000])


@pytest.mark.parametrize("dtype", TYPES)
def test_movements_equal_numpy(ranks, dtype):
    ranks.all("movements", dtype, [0, 1, 63, 1000])


def test_more_than_a_slot_is_reduced_in_rounds(ranks):
    ranks.all("reductions", "float32", [LARGE])


def test_more_than_a_slot_is_moved_in_rounds(ranks):
    ranks.all("movements", "int16", [LARGE])


@pytest.mark.parametrize("scale", [0, 1, 17, 300_001])
def test_uneven_pieces_equal_numpy(ranks, scale):
    ranks.all("uneven", "float32", scale)


def test_nan_infinities_and_signed_zeros(ranks):
    ranks.all("special_values")


def test_every_float16_and_its_sums(ranks):
    ranks.all("every_float16")


def test_bfloat16_sums_are_rounded_to_nearest_even(ranks):
    ranks.all("tied_bfloat16")


@pytest.mark.parametrize("dtype", ["int8", "bfloat16", "float64"])
def test_messages_when_all_send_first(ranks, dtype):
    ranks.all("messages", dtype, [0, 1, 63, 30_001])


def test_messages_longer_than_the_ring(ranks):
    ranks.all("passed_on", "float32", LARGE)


@pytest.mark.parametrize("count", [0, 1, 1000, LARGE])
def test_batches_in_both_directions_and_to_oneself(ranks, count):
    ranks.all("batches", "float32", count)


def test_messages_of_a_batch_keep_their_order(ranks):
    ranks.all("ordered_batches", "int16", [5, LARGE, 0, 7, LARGE + 2])


@pytest.mark.parametrize("count", [1, LARGE])
def test_groups_of_sends_and_receives(ranks, count):
    ranks.all("groups", "float32", count)


def test_many_calls_of_ranks_at_different_speeds(ranks):
    ranks.all("many_calls", 2000)


def test_pairs_are_communicators_of_their_own(ranks):
    ranks.all("parts")


def test_ranks_know_who_they_are(ranks):
    ranks.all("names")


def test_destroyed_communicators_leave_no_memory_and_no_files(ranks):
    ranks.all("kept_open", 30)


def test_threads_of_one_process_are_ranks(ranks):
    ranks.all("threads_as_ranks", 3)


def test_one_process_makes_ranks_for_all_its_devices(ranks):
    ranks.all("all_devices", 3)


def test_a_forked_child_is_refused(ranks):
    ranks.all("forked")
    ranks.all("barrier")


# --- what goes wrong --------------------------------------------------------------------------


def failure(ranks, rank, code, *texts, seconds=5.0):
    answer = ranks.answer(rank, seconds)
    assert answer["error"] is not None, f"rank {rank} succeeded"
    assert answer["code"] == code, answer["error"]
    for text in texts:
        assert text in answer["error"]


@pytest.mark.parametrize(
    ("check", "name"),
    [
        (["barrier"], "HcclBarrier"),
        (["call", "HcclRecv", [4, "int8"], 4, "int8", {"u32": 1}], "HcclRecv"),
        (["call", "HcclSend", [9_000_000, "int8"], 9_000_000, "int8", {"u32": 1}], "HcclSend"),
        (["batches", "int8", 5], "HcclBatchSendRecv"),
    ],
    ids=["collective", "receive", "send", "batch"],
)
def test_a_dead_rank_is_an_error_on_the_others(make_ranks, check, name):
    ranks = make_ranks(3)
    others = [0, 2] if name != "HcclSend" else [0]
    for rank in others:
        ranks.start(rank, *check)
    time.sleep(0.3)
    ranks.kill(1)
    for rank in others:
        failure(ranks, rank, REMOTE, name, "rank 1", "has died", seconds=3)


def test_what_a_dead_rank_had_sent_is_received(make_ranks):
    ranks = make_ranks(2)
    ranks.start(1, "call", "HcclSend", [1000, "int8"], 1000, "int8", {"u32": 0})
    assert ranks.answer(1)["error"] is None
    ranks.kill(1)
    ranks.start(0, "call", "HcclRecv", [1000, "int8"], 1000, "int8", {"u32": 1})
    assert ranks.answer(0)["error"] is None


def test_a_failed_communicator_stays_failed(make_ranks):
    ranks = make_ranks(2)
    ranks.kill(1)
    for _ in range(2):
        ranks.start(0, "barrier")
        failure(ranks, 0, REMOTE, "HcclBarrier on rank 0: rank 1", "has died")
    ranks.start(0, "destroy")
    assert ranks.answer(0)["error"] is None
    ranks.start(0, "barrier")
    failure(ranks, 0, PARAMETER, "no communicator, or it was destroyed")


def test_a_rank_that_left_is_an_error(make_ranks):
    ranks = make_ranks(2)
    ranks.start(1, "destroy")
    assert ranks.answer(1)["error"] is None
    ranks.start(0, "barrier")
    failure(ranks, 0, REMOTE, "rank 1 has destroyed its communicator")


REDUCE = ["HcclReduce", [4, "int8"], [4, "int8"], 4, "int8", "sum", {"u32": 0}]
MISMATCHES = {
    "operation": (["HcclBarrier"], REDUCE, "HcclBarrier(count=0, int8)", "HcclReduce(count=4"),
    "count": (REDUCE, [*REDUCE[:3], 3, *REDUCE[4:]], "count=4", "count=3"),
    "type": (REDUCE, [*REDUCE[:4], "uint8", *REDUCE[5:]], "int8", "uint8"),
    "reduction": (REDUCE, [*REDUCE[:5], "max", *REDUCE[6:]], "sum", "max"),
    "root": (REDUCE, [*REDUCE[:6], {"u32": 1}], "root=0", "root=1"),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_different_calls_are_an_error_on_every_rank(make_ranks, what):
    usual, other, *texts = MISMATCHES[what]
    ranks = make_ranks(3)
    for rank in ranks.everyone:
        ranks.start(rank, "call", *(other if rank == 2 else usual))
    for rank in ranks.everyone:
        failure(ranks, rank, PARAMETER, "do not call the same", "rank 0", "rank 2", *texts)


def test_different_counts_of_uneven_pieces_are_an_error_on_every_rank(make_ranks):
    ranks = make_ranks(2)
    ranks.start(0, "uneven", "int8", 3)
    ranks.start(1, "uneven", "int8", 4)
    for rank in ranks.everyone:
        failure(ranks, rank, PARAMETER, "HcclAlltoAllV", "rank 0 sends", "expects")


def test_a_message_of_another_size_or_type_is_an_error_on_both_ranks(make_ranks):
    ranks = make_ranks(2)
    ranks.start(0, "call", "HcclSend", [4, "int8"], 4, "int8", {"u32": 1})
    assert ranks.answer(0)["error"] is None  # small enough to be on its way
    ranks.start(1, "call", "HcclRecv", [5, "uint8"], 5, "uint8", {"u32": 0})
    text = "rank 1 receives 5 of uint8 from rank 0, which sends 4 of int8"
    failure(ranks, 1, PARAMETER, text)
    ranks.start(0, "barrier")
    failure(ranks, 0, PARAMETER, text)


def test_receiving_from_a_rank_that_is_in_a_collective_is_an_error_on_every_rank(make_ranks):
    ranks = make_ranks(3)
    ranks.start(0, "call", "HcclRecv", [4, "int8"], 4, "int8", {"u32": 1})
    for rank in (1, 2):
        ranks.start(rank, "barrier")
    for rank in ranks.everyone:
        failure(ranks, rank, PARAMETER, "rank 0 waits in HcclRecv for rank 1", "HcclBarrier")


@pytest.mark.parametrize(
    "check",
    [["barrier"], ["call", "HcclRecv", [4, "int8"], 4, "int8", {"u32": 1}]],
    ids=["collective", "receive"],
)
def test_waiting_ends_after_the_execution_timeout(make_ranks, check):
    ranks = make_ranks(2, HCCL_EXEC_TIMEOUT="1")
    begun = time.monotonic()
    ranks.start(0, *check)
    failure(ranks, 0, TIMEOUT, "no answer from rank 1 within 1 s (HCCL_EXEC_TIMEOUT)")
    assert time.monotonic() - begun > 0.9
    ranks.start(1, "barrier")
    failure(ranks, 1, TIMEOUT, "on rank 0: no answer from rank 1")


def test_a_communicator_has_a_timeout_of_its_own(make_ranks):
    make_ranks(2).all("timeout_of_its_own")


def test_joining_ends_after_the_connection_timeout(make_ranks):
    ranks = make_ranks(3, join=False, HCCL_CONNECT_TIMEOUT="1")
    info = ranks.root_info()
    for rank in (0, 2):
        ranks.start(rank, "join", info)
    for rank in (0, 2):
        failure(ranks, rank, TIMEOUT, "rank 1 did not join within 1 s (HCCL_CONNECT_TIMEOUT)")
    ranks.start(1, "join", info)
    failure(ranks, 1, REMOTE, "has to run")


def test_joining_ends_when_a_rank_dies(make_ranks):
    ranks = make_ranks(3, join=False)
    info = ranks.root_info()
    for rank in (0, 2):
        ranks.start(rank, "join", info)
    time.sleep(0.5)
    ranks.kill(0)
    failure(ranks, 2, REMOTE, "rank 0", "has died", seconds=3)


def test_joining_when_the_first_process_is_gone(make_ranks):
    ranks = make_ranks(2, join=False)
    info = ranks.root_info()
    ranks.kill(0)
    ranks.processes[0].wait()
    ranks.start(1, "join", info)
    failure(ranks, 1, REMOTE, "cannot open the memory")


def test_a_rank_that_joins_twice_is_an_error(make_ranks, library):
    ranks = make_ranks(3, join=False)
    info = ranks.root_info()
    ranks.start(0, "join", info)
    time.sleep(0.3)
    second = make_ranks(3, join=False)
    second.start(0, "join", info)
    failure(second, 0, PARAMETER, "rank 0 joined twice")
    failure(ranks, 0, PARAMETER, "rank 0 joined twice")


def test_ranks_that_disagree_on_their_number_are_an_error(make_ranks):
    ranks, others = make_ranks(3, join=False), make_ranks(2, join=False)
    info = ranks.root_info()
    ranks.start(0, "join", info)
    time.sleep(0.3)
    others.start(1, "join", info)
    failure(others, 1, PARAMETER, "rank 1 says that there are 2 ranks, another says 3")
    failure(ranks, 0, PARAMETER, "rank 1 says that there are 2 ranks, another says 3")


def test_a_root_info_that_is_none_is_refused(make_ranks):
    ranks = make_ranks(2, join=False)
    ranks.start(0, "join", "00" * 4108)
    failure(ranks, 0, PARAMETER, "was not made by HcclGetRootInfo")


def test_a_used_root_info_is_refused(make_ranks):
    ranks = make_ranks(2, join=False)
    info = ranks.root_info()
    ranks.all("join", info)
    ranks.start(1, "join", info)
    failure(ranks, 1, REMOTE, "cannot open the memory")


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        (["HcclAllReduce", [2, "int8"], [2, "int8"], 2, "uint16", "sum"], UNSUPPORTED, "uint16"),
        (
            ["HcclReduceScatter", [2, "int8"], [2, "int8"], 1, "int128", "sum"],
            UNSUPPORTED,
            "int128",
        ),
        (["HcclBroadcast", [2, "int8"], 2, {"u32": 13}, {"u32": 0}], PARAMETER, "data type 13"),
        (["HcclBroadcast", [2, "int8"], 2, "int8", {"u32": 1}], PARAMETER, "root rank 1"),
        (
            ["HcclAllReduce", [2, "int8"], [2, "int8"], 2, "int8", {"u32": 4}],
            PARAMETER,
            "reduction 4",
        ),
        (["HcclAllGather", None, None, 2, "int8"], POINTER, "HcclAllGather: 2 bytes at no address"),
        (["HcclAllGather", None, None, 2**63, "int64"], PARAMETER, "count"),
        (
            ["HcclAlltoAllV", None, None, None, "int8", None, None, None, "int8"],
            POINTER,
            "no counts",
        ),
        (["HcclSend", None, 2, "int8", {"u32": 0}], POINTER, "HcclSend: 2 bytes at no address"),
        (["HcclSend", None, 2**63, "int64", {"u32": 0}], PARAMETER, "count"),
        (["HcclRecv", [2, "int8"], 2, "int8", {"u32": 1}], PARAMETER, "remote rank 1"),
        (["HcclRecv", [2, "int8"], 2, {"u32": 99}, {"u32": 0}], PARAMETER, "data type 99"),
    ],
)
def test_wrong_arguments_are_errors_that_leave_the_communicator_usable(
    make_ranks, call, code, text
):
    ranks = make_ranks(1)
    ranks.start(0, "call", *call)
    failure(ranks, 0, code, text)
    ranks.all("reductions", "float32", [5])


def test_an_environment_that_is_no_number_is_an_error(make_ranks):
    ranks = make_ranks(1, join=False, HCCL_EXEC_TIMEOUT="soon")
    ranks.start(0, "join", ranks.root_info())
    failure(ranks, 0, PARAMETER, 'HCCL_EXEC_TIMEOUT is "soon", expected a whole number of seconds')


def test_destroying_wakes_a_thread_that_waits(make_ranks):
    ranks = make_ranks(2)
    ranks.start(0, "destroyed_meanwhile")
    assert ranks.answer(0, 5)["error"] is None


def test_a_rank_that_is_killed_leaves_nothing_behind(make_ranks):
    before = named()
    ranks = make_ranks(3)
    ranks.all("barrier")
    for rank in ranks.everyone:
        ranks.kill(rank)
        ranks.processes[rank].wait()
    assert named() == before
    assert not list(Path("/dev/shm").glob("*hccl*"))
