"""torch.distributed on the simulated Ascend: the real torch_npu in several processes.

What each process checks is in distributed_checks.py. Its checks share one process group per launch,
as starting takes longer than all of them; each is a test of its own here.
"""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from accel.simulate.activation import child_environment
from accel.simulate.machine import Machine

CHECKS = Path(__file__).with_name("distributed_checks.py")
SECONDS = 300
COLLECTIVES = (
    "all_reduce",
    "all_reduce_of_bool_is_any",
    "all_reduce_of_much",
    "all_reduce_coalesced",
    "broadcast",
    "reduce",
    "all_gather",
    "all_gather_of_different_shapes",
    "all_gather_into_tensor",
    "all_gather_into_tensor_coalesced",
    "reduce_scatter",
    "reduce_scatter_of_different_shapes",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "all_to_all_single_with_splits",
    "all_to_all",
    "scatter",
    "gather",
    "send_and_receive",
    "all_send_first",
    "batch_isend_irecv",
    "barrier",
    "objects",
    "new_groups",
    "device_mesh_and_dtensor",
)
REFUSALS = (
    "unsupported_dtypes_are_refused",
    "non_contiguous_tensors_are_refused",
    "tensors_on_the_cpu_are_refused",
)
DDP = (
    "ddp_equals_one_process",
    "ddp_with_many_buckets",
    "ddp_with_a_static_graph",
    "ddp_with_unused_parameters",
    "ddp_that_accumulates",
    "ddp_starts_from_the_weights_of_rank_0",
    "ddp_with_float16_gradients",
    "ddp_with_batch_norm_buffers",
    "ddp_with_uneven_inputs",
)
FSDP2 = (
    "fsdp2_equals_one_process",
    "fsdp2_that_keeps_parameters_gathered",
    "fsdp2_clips_the_norm_of_one_process",
    "fsdp2_in_bfloat16",
    "fsdp2_saves_and_loads_whole_weights",
)
ENDINGS = ("different_counts", "different_operations", "killed")
EVERYTHING = COLLECTIVES + REFUSALS + DDP + FSDP2
# Of what two ranks of an A2 are asked, what may differ with a third and on the next chip.
OF_THREE = (*COLLECTIVES, "ddp_equals_one_process", "ddp_with_uneven_inputs",
            "fsdp2_equals_one_process")  # fmt: skip
OF_A3 = (
    "all_reduce",
    "all_gather",
    "all_gather_of_different_shapes",
    "reduce_scatter_tensor",
    "reduce_scatter_of_different_shapes",
    "all_to_all_single_with_splits",
    "send_and_receive",
)


def shortened(checks, short):
    """Checks as parameters, of which those beside the short form are long."""
    return [
        check if check in short else pytest.param(check, marks=pytest.mark.long) for check in checks
    ]


def environment(**machine):
    """Memory that was not written is NaN, so that what no rank has sent shows."""
    simulated = child_environment(Machine(poison=True, **machine))
    return {**os.environ, **simulated, "OMP_NUM_THREADS": "1", "HCCL_EXEC_TIMEOUT": "60"}


def launch(directory, ranks, checks, **machine):
    """Run checks under torchrun; what each came to, by rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*command, f"--nproc-per-node={ranks}", str(CHECKS), str(directory), *checks],
        env=environment(devices=ranks, **machine),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    answers = []
    for rank in range(ranks):
        path = Path(directory, f"{rank}.json")
        answers.append(json.loads(path.read_text()) if path.exists() else {})
    return result, answers


def judge(launched, check):
    result, answers = launched
    for rank, answer in enumerate(answers):
        assert check in answer, f"rank {rank} ended before:\n{result.stderr}"
        assert answer[check] is None, f"rank {rank}:\n{answer[check]}"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("two"), 2, EVERYTHING)


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory, request):
    checks = EVERYTHING if request.config.getoption("--long") else OF_THREE
    return launch(tmp_path_factory.mktemp("three"), 3, checks)


@pytest.fixture(scope="module")
def two_ranks_of_a3(tmp_path_factory, request):
    checks = COLLECTIVES if request.config.getoption("--long") else OF_A3
    return launch(tmp_path_factory.mktemp("a3"), 2, checks, chip="910_9391")


def test_every_check_is_run():
    def has_arguments(function):
        return function.args.args or function.args.vararg or function.args.kwarg

    functions = [
        node for node in ast.parse(CHECKS.read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    checks = {node.name for node in functions if not has_arguments(node)}
    assert checks - {"npu", "neighbours", *ENDINGS} == set(EVERYTHING)


@pytest.mark.parametrize("check", EVERYTHING)
def test_with_two_ranks(two_ranks, check):
    judge(two_ranks, check)


def test_two_ranks_end_well(two_ranks):
    assert two_ranks[0].returncode == 0, two_ranks[0].stderr


@pytest.mark.parametrize("check", shortened(EVERYTHING, OF_THREE))
def test_with_three_ranks(three_ranks, check):
    judge(three_ranks, check)


@pytest.mark.parametrize("check", shortened(COLLECTIVES, OF_A3))
def test_with_two_ranks_of_the_next_chip(two_ranks_of_a3, check):
    """There torch_npu gathers and scatters uneven shapes with calls of their own."""
    judge(two_ranks_of_a3, check)


DATA_PARALLEL = """
import torch

model, x = torch.nn.Linear(7, 3).to("npu:0"), torch.randn(8, 7).to("npu:0")
torch.nn.DataParallel(model, [0, 1])(x).square().sum().backward()
gradient = model.weight.grad.clone()
model.zero_grad()
model(x).square().sum().backward()
torch.testing.assert_close(gradient, model.weight.grad)
for i, copy in enumerate(torch.nn.parallel.comm.broadcast(x, [0, 1])):
    assert copy.device.index == i
    assert torch.equal(copy.cpu(), x.cpu())
"""


def test_data_parallel_over_the_devices_of_one_process():
    result = subprocess.run(
        [sys.executable, "-c", DATA_PARALLEL],
        env=environment(devices=2),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert result.returncode == 0, result.stderr


# --- what goes wrong --------------------------------------------------------------------------


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture
def alone():
    """Two processes without torchrun, which would end the second when the first fails."""
    processes = []

    def start(check):
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
        for rank in ("0", "1"):
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(CHECKS), "--alone", check],
                    env=environment(devices=2) | rendezvous | {"RANK": rank, "LOCAL_RANK": rank},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return processes

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (
            "different_counts",
            "rank 0 calls HcclAllReduce(count=3, float32, sum), "
            "rank 1 calls HcclAllReduce(count=4, float32, sum)",
        ),
        (
            "different_operations",
            "rank 0 calls HcclAllReduce(count=3, float32, sum), "
            "rank 1 calls HcclBroadcast(count=3, float32, root=0)",
        ),
    ],
)
def test_different_calls_are_an_error_that_names_both_on_each_rank(alone, check, text):
    for process in alone(check):
        _, errors = process.communicate(timeout=60)
        assert process.returncode not in (0, None)
        assert "RuntimeError: operator():" in errors
        assert text in errors


def test_a_killed_rank_is_an_error_within_seconds(alone):
    first, second = alone("killed")
    second.wait(60)
    begun = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert first.returncode not in (0, None)
    assert "HcclAllReduce on rank 0: rank 1 (process" in errors
    assert "has died" in errors
