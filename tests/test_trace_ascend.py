"""The tracing shim on simulated Ascends: what a program sees there."""

from __future__ import annotations

import pytest

from accel.errors import DeviceError
from accel.simulate import package
from tests.trace_running import trace_program

pytestmark = pytest.mark.without_npu


@pytest.fixture(autouse=True)
def torch_npu_is_here() -> None:
    try:
        package.find_torch_npu()
    except DeviceError as error:
        pytest.skip(str(error))


def test_devices_are_the_chips_and_equal_where_they_are_on_cuda(tmp_path) -> None:
    result = trace_program(
        tmp_path,
        """
        import copy, pickle, warnings, torch
        warnings.simplefilter("ignore")

        assert torch.cuda.is_available() and torch.cuda.device_count() == 2
        for index in (0, 1):
            device = torch.device(f"cuda:{index}")
            assert device == torch.device("cuda", index) == torch.device(index)
            assert (device.type, device.index) == ("npu", index)
            for tensor in (torch.ones(1).cuda(index), torch.ones(1, device=device),
                           torch.ones(1).to(f"cuda:{index}"), torch.zeros(1, device=index),
                           torch.nn.Linear(1, 1).to(device).weight):
                assert tensor.device == device and tensor.is_cuda, (tensor.device, device)
            assert pickle.loads(pickle.dumps(device)) == copy.deepcopy(device) == device
        assert torch.device("cuda").type == "npu" and torch.device("cuda").index is None
        assert not torch.ones(1).is_cuda and torch.ones(1).cuda().get_device() == 0
        torch.cuda.set_device(1)
        assert torch.cuda.current_device() == 1 and torch.ones(1).cuda().device.index == 1
        with torch.cuda.device(0):
            assert torch.ones(1, device="cuda").device.index == 0
        torch.cuda.set_device("cuda:0")

        layer = torch.nn.Linear(2, 2).cuda()
        for autocast in (torch.autocast("cuda"), torch.cuda.amp.autocast(),
                         torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16)):
            with autocast:
                assert layer(torch.ones(1, 2).cuda()).dtype in (torch.float16, torch.bfloat16)
                assert torch.is_autocast_enabled("cuda")
        for scaler in (torch.cuda.amp.GradScaler(), torch.amp.GradScaler("cuda", 4.0)):
            assert scaler.is_enabled()
            optimizer = torch.optim.SGD(layer.parameters(), 0.1)
            scaler.scale(layer(torch.ones(1, 2).cuda()).sum()).backward()
            scaler.step(optimizer); scaler.update()

        class Doubled(torch.autograd.Function):
            @staticmethod
            @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
            def forward(ctx, x):
                return x * 2
            @staticmethod
            @torch.amp.custom_bwd(device_type="cuda")
            def backward(ctx, g):
                return g * 2
        with torch.autocast("cuda"):
            assert Doubled.apply(torch.ones(1).cuda().half()).dtype == torch.float32

        torch.save(torch.ones(2).cuda(), "x.pt")
        assert torch.load("x.pt", map_location="cuda:1").device == torch.device("cuda:1")
        tag = (0, lambda storage: "cuda:1", lambda storage, location: None)
        torch.serialization._package_registry.insert(0, tag)
        torch.save(torch.ones(2), "from_cuda.pt")
        torch.serialization._package_registry.remove(tag)
        assert torch.load("from_cuda.pt").device == torch.device("cuda:1")
        assert torch.load("from_cuda.pt", lambda s, _: s.cuda(0)).device == torch.device("cuda:0")
        assert torch.load("from_cuda.pt", "cpu").device.type == "cpu"

        generator = torch.Generator("cuda").manual_seed(1)
        torch.rand(2, generator=generator, device="cuda")
        state = torch.cuda.get_rng_state(); first = torch.rand(2, device="cuda")
        torch.cuda.set_rng_state(state)
        assert torch.equal(torch.rand(2, device="cuda"), first)
        with torch.random.fork_rng(devices=[0]):
            torch.rand(2, device="cuda")
        stream, event = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(stream):
            value = torch.ones(2).cuda(); event.record()
        torch.cuda.current_stream().wait_stream(stream); value.record_stream(stream)
        torch.cuda.synchronize(); assert event.elapsed_time(event) == 0.0
        assert torch.cuda.max_memory_allocated("cuda:0") > 0
        assert len(torch.cuda.default_generators) == 2
        assert torch.cuda.FloatTensor([1.0]).is_cuda
        assert torch.ones(1).type("torch.cuda.HalfTensor").type() == "torch.npu.HalfTensor"
        torch.set_default_tensor_type("torch.cuda.FloatTensor")
        assert torch.ones(1).is_cuda
        """,
        options={"simulate": "910B2:2"},
    )
    assert {call.redirected_to for call in result.of("torch.cuda.amp.autocast")} == {"npu"}
    assert {call.redirected_to for call in result.of("torch.Tensor.cuda")} == {
        "npu", "npu:0", "npu:1",
    }  # fmt: skip
    assert not [call for call in result.calls if call.redirected_to == "cpu"]
