"""The tracing shim: what it redirects, what it leaves alone, and what stays as torch has it."""

from __future__ import annotations

import pytest
import torch

from accel.devices import functions
from accel.tracing import cuda_names, factories
from accel.tracing.settings import Settings
from accel.tracing.tensor_types import DTYPES
from accel.tracing.tracer import Tracer
from tests.trace_running import trace_program

# Their devices are an implementation's own: no program gives them.
_PRIVATE_SCHEMAS = {"Generator", "pin_memory", "is_pinned", "to"}


def test_only_whole_device_names_in_device_positions_are_redirected(tmp_path) -> None:
    """Paths, host names, other objects' methods and data keep every letter."""
    result = trace_program(
        tmp_path,
        """
        import os, pickle, torch

        class Box:
            def __init__(self): self.device = "cuda"
            def cuda(self, index=None): return ("mine", index)
            def to(self, device): return device
            def is_cuda(self): return "mine"

        class Net(torch.nn.Module):
            def cuda(self, device=None): return ("the module's own", device)

        assert Box().cuda("cuda:1") == ("mine", "cuda:1")
        assert Box().to("cuda") == "cuda" and Box().is_cuda() == "mine" and Box().device == "cuda"
        assert Net().cuda(3) == ("the module's own", 3)

        os.mkdir("cuda_runs"); path = os.path.abspath("cuda_runs/cuda:0")
        torch.save({"cuda": torch.ones(2), "device": "cuda:0"}, path)
        loaded = torch.load(path)
        assert list(loaded) == ["cuda", "device"] and loaded["device"] == "cuda:0"
        assert os.listdir("cuda_runs") == ["cuda:0"]

        near = ("cuda:", "cuda0", "cuda:x", "cuda:1:2", " cuda", "CUDA", "/data/cuda", "cudax")
        for name in near:
            for call in (torch.device, torch.ones(1).to, torch.nn.Linear(1, 1).to, torch.Generator):
                try: call(name)
                except RuntimeError as error: assert name in str(error), (name, error)
                else: raise SystemExit(f"{name!r} passed for a device in {call}")

        from torch.distributed import distributed_c10d as c10d
        asked, store = [], "tcp://cuda-node1:23456"
        c10d.rendezvous = lambda url, *rest, **more: iter([asked.append(url)])
        for options in ({"init_method": store}, {}):
            given = () if options else ("gloo", store)
            try: torch.distributed.init_process_group(*given, rank=0, world_size=1, **options)
            except TypeError: pass  # the rendezvous brought nothing
        assert asked == [store, store]

        tensor = torch.ones(2)
        assert tensor.to(torch.float64).dtype == torch.float64 and tensor.to(tensor) is tensor
        assert tensor.new_tensor([True, False]).tolist() == [1.0, 0.0]
        assert torch.full((1,), 3, dtype=torch.int64).item() == 3
        assert torch.normal(0.0, 1.0, (2,)).shape == (2,)
        assert torch.device("cpu") == torch.device(type="cpu") == tensor.device
        assert torch.device("meta").type == "meta"
        try: torch.device("cuda", -2)
        except RuntimeError: pass
        else: raise SystemExit("a negative index passed")
        try: tensor.cuda("cpu")
        except ValueError as error: assert "CUDA device" in str(error)
        else: raise SystemExit("cuda('cpu') passed")
        """,
    )
    assert {call.api for call in result.calls} <= {"torch.Tensor.cuda"}, result.calls


def test_a_device_is_what_a_tensor_put_there_has(tmp_path) -> None:
    trace_program(
        tmp_path,
        """
        import copy, pickle, typing, torch

        true = type(torch.device("cpu"))
        forms = [torch.device("cuda"), torch.device("cuda:3"), torch.device("cuda", 0),
                 torch.device(type="cuda", index=1), torch.device(0), torch.device("cuda", index=1)]
        for device in forms:
            assert type(device) is true and isinstance(device, torch.device)
            for tensor in (torch.ones(1, device=device), torch.ones(1).to(device),
                           torch.ones(1).cuda(), torch.nn.Linear(1, 1).cuda().weight):
                assert tensor.device == device, (tensor.device, device)
            for copied in (pickle.loads(pickle.dumps(device)), copy.deepcopy(device)):
                assert copied == device and type(copied) is true
        assert not isinstance("cuda", torch.device) and isinstance(forms[0], (str, torch.device))
        assert true == torch.device and {true: 1}[torch.device] == 1
        assert issubclass(true, torch.device) and torch.device.__name__ == "device"
        for public in (torch.device, torch.zeros, torch.Tensor.to, torch.Tensor.cuda, torch.load,
                       torch.nn.Module.cuda, torch.cuda.synchronize, torch.cuda.Stream):
            assert pickle.loads(pickle.dumps(public)) is public
        number = torch.ones(1).cuda().get_device()  # -1 on a CPU
        for tensor in (torch.ones(1).cuda(number), torch.ones(1, device=number).to(number)):
            assert tensor.device == torch.device("cuda", number)
        assert typing.Optional[torch.device] and torch.device | None
        generator = torch.Generator(device="cuda").manual_seed(3)
        assert isinstance(generator, torch.Generator)
        expected = torch.rand(4, generator=torch.Generator().manual_seed(3))
        assert torch.equal(torch.rand(4, generator=generator, device="cuda"), expected)
        with torch.device("cuda"):
            assert torch.ones(1).device.type == "cpu"
        with torch.device("meta"):
            assert torch.fft.fftfreq(3).device.type == torch.zeros(1).device.type == "meta"
            assert torch.zeros(1, device="cuda").device.type == "cpu"
        """,
    )


def test_every_factory_of_torch_is_covered() -> None:
    """By torch's own schemas, so that a new one shows."""
    schemas = torch._C._jit_get_all_schemas()
    named = {
        schema.name.removeprefix("aten::")
        for schema in schemas
        if schema.name.startswith("aten::") and any(a.name == "device" for a in schema.arguments)
    }
    public = {name for name in named if name[0] != "_"} - _PRIVATE_SCHEMAS
    assert {name for name in public if hasattr(torch, name)} <= set(factories.FACTORIES)
    assert {name for name in public if hasattr(torch.Tensor, name)} <= set(factories.METHODS)
    by_default_device = torch.utils._device._device_constructors()
    covered = {getattr(torch, name) for name in factories.FACTORIES}
    elsewhere = {torch.fft.fftfreq, torch.fft.rfftfreq, torch.nested.nested_tensor}
    assert {one for one in by_default_device if one not in elsewhere} <= covered


def test_every_public_name_of_torch_cuda_has_its_place() -> None:
    names = set(torch.cuda.__all__)
    tensors = {f"{kind}Tensor" for kind in DTYPES} & names
    storages = {name for name in names if name.endswith("Storage")}
    redirected = {*cuda_names.FUNCTIONS, *cuda_names.CLASSES, *cuda_names.CLAIMS}
    assert redirected <= names, "a name that torch does not have"
    without = names - redirected - cuda_names.NEUTRAL - tensors - storages - {"default_generators"}
    assert without == {
        "CUDAGraph", "CUDAPluggableAllocator", "ExternalStream", "GreenContext", "MemPool",
        "caching_allocator_alloc", "caching_allocator_delete", "caching_allocator_disabled",
        "caching_allocator_enable", "change_current_allocator", "check_error", "clock_rate",
        "cudart", "current_blas_handle", "current_solver_handle", "device_memory_used",
        "get_allocator_backend", "get_arch_list", "get_gencode_flags", "get_stream_from_external",
        "graph", "graph_pool_handle", "has_half", "has_magma", "host_memory_stats",
        "host_memory_stats_as_nested_dict", "is_tf32_supported", "list_gpu_processes",
        "make_graphed_callables", "memory_usage", "power_draw",
        "reset_accumulated_host_memory_stats", "reset_peak_host_memory_stats", "temperature",
        "use_mem_pool",
    }  # fmt: skip
    for equivalent in [*cuda_names.FUNCTIONS.values(), *cuda_names.CLASSES.values()]:
        assert equivalent in functions.__all__
    assert set(cuda_names.NVTX) == set(torch.cuda.nvtx.__all__)


def test_functions_of_torch_cuda_answer_by_every_way_to_them(tmp_path) -> None:
    result = trace_program(
        tmp_path,
        """
        import importlib, torch
        import torch.cuda as c
        from torch.cuda import LongTensor, synchronize
        from torch.cuda.memory import memory_allocated
        from torch.cuda.nvtx import range_push, range_pop

        assert torch.cuda.is_available() and torch.cuda.device_count() == 1
        assert c.current_device() == 0 and torch.cuda.get_device_name("cuda:0")
        assert torch.cuda.get_device_capability() == (0, 0) and not c.is_bf16_supported()
        assert memory_allocated("cuda") == torch.cuda.memory.max_memory_allocated(0) == 0
        assert getattr(torch, "cuda").empty_cache() is None
        assert importlib.import_module("torch.cuda").memory_reserved() == 0
        synchronize(); torch.cuda.set_device("cuda:1"); range_push("cuda"); range_pop()
        torch.cuda.manual_seed_all(1); state = torch.cuda.random.get_rng_state()
        torch.cuda.set_rng_state(state)
        stream, event = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True)
        assert isinstance(stream, torch.cuda.Stream) and isinstance(event, torch.cuda.Event)
        with torch.cuda.stream(stream), torch.cuda.device(0), torch.cuda.StreamContext(stream):
            event.record(); stream.wait_event(event)
        assert event.elapsed_time(event) == 0.0
        torch.ones(1).cuda().record_stream(torch.cuda.current_stream())
        assert torch.cuda.FloatTensor is torch.FloatTensor and LongTensor([3]).dtype == torch.int64
        assert torch.ones(1).type("torch.cuda.HalfTensor").dtype == torch.float16
        assert torch.ones(1).pin_memory().shape == torch.empty(1, pin_memory=True).shape
        assert not torch.ones(1).cuda().is_cuda
        assert tuple(torch.cuda.default_generators) == ()
        assert not hasattr(torch.cuda, "nonsense")
        assert {"is_available", "FloatTensor", "CUDAGraph"} <= set(dir(torch.cuda))
        assert torch.UntypedStorage(4).to(device="cuda").cuda().nbytes() == 4
        for call in (torch.cuda.CUDAGraph, torch.cuda.cudart, torch.cuda.temperature):
            try: call()
            except Exception: pass
            else: raise SystemExit(f"{call} has an answer")
        assert torch.cuda.get_arch_list() == [] and torch.cuda.OutOfMemoryError
        # torch itself is told the truth.
        assert torch.optim.Adam([torch.ones(1, requires_grad=True)], fused=True)
        parallel = torch.nn.DataParallel(torch.nn.Linear(1, 1).cuda(), device_ids=[0, 1])
        assert parallel.device_ids == []
        """,
    )
    to = {call.api: call.redirected_to for call in result.calls}
    assert to["torch.cuda.synchronize"] == "accel.synchronize"
    assert to["torch.cuda.max_memory_allocated"] == "accel.max_memory_allocated"
    assert to["torch.cuda.nvtx.range_push"] == "accel.range_push"
    assert to["torch.cuda.FloatTensor"] == "accel.tensor_type"
    for name in ("CUDAGraph", "cudart", "temperature", "get_arch_list"):
        (call,) = result.of(f"torch.cuda.{name}")
        assert (call.redirected_to, call.note.partition(":")[0]) == ("", "no equivalent")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("cpu", ["cpu", "cpu", "cpu", "cpu"]),
        ("cuda", ["cuda", "cuda:1", "cuda:1", "cuda:0"]),
        ("xpu", ["xpu", "xpu:1", "xpu:1", "xpu:0"]),
    ],
)
def test_what_a_name_means_on_each_device(tmp_path, target: str, expected: list[str]) -> None:
    """Type and index as they would be there; where CUDA is here, nothing changes."""
    tracer = Tracer(Settings(str(tmp_path / "stem"), str(tmp_path)))
    tracer.__dict__["target"] = target
    given = ["cuda", "cuda:1", torch.device("cuda", 1), 0]
    assert [str(tracer.redirected(one)) for one in given] == expected
    others = [None, "cpu", "cuda:", "cuda:a", "/cuda", True, -2, 1.0, torch.float32, "npu", "xpu:0"]
    assert {tracer.redirected(one) for one in others} == {None}
    assert (tracer.redirected(-1) is None) is (target != "cpu")
    assert tracer.claims_cuda is (target == "cpu")


def test_a_cpu_can_say_that_it_is_none(tmp_path) -> None:
    code = """
        import torch
        assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
        assert not torch.distributed.is_nccl_available()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        assert torch.ones(1).cuda().device == device
        """
    trace_program(tmp_path, code, options={"claim_cuda": False})


@pytest.mark.parametrize("kind", ["torch.amp", "torch.cuda.amp", "torch"])
def test_mixed_precision_stays_off(tmp_path, kind: str) -> None:
    """As without CUDA, and without a warning; the CPU's own stays as it is."""
    if kind == "torch":
        autocast, scaler = 'torch.autocast("cuda", ', 'torch.amp.GradScaler("cuda", '
    elif kind == "torch.amp":
        autocast, scaler = 'torch.amp.autocast(device_type="cuda", ', "torch.GradScaler("
    else:
        autocast, scaler = "torch.cuda.amp.autocast(", "torch.cuda.amp.GradScaler("
    result = trace_program(
        tmp_path,
        f"""
        import warnings, torch
        warnings.simplefilter("error"); warnings.simplefilter("ignore", FutureWarning)
        layer = torch.nn.Linear(2, 2).cuda()
        with {autocast}dtype=torch.float16):
            assert layer(torch.ones(1, 2)).dtype == torch.float32
        assert not torch.is_autocast_enabled("cuda")
        assert {scaler}init_scale=4.0).is_enabled() is False
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(torch.ones(1, 2)).dtype == torch.bfloat16
        """,
    )
    home = "torch.cuda.amp" if kind == "torch.cuda.amp" else "torch.amp"
    assert [(call.line, call.count) for call in result.of(f"{home}.autocast")] == [(5, 1)]
    assert [(call.line, call.count) for call in result.of(f"{home}.GradScaler")] == [(8, 1)]


def test_scripts_compiled_functions_and_exports_work(tmp_path) -> None:
    result = trace_program(
        tmp_path,
        """
        import typing, torch

        @torch.jit.script
        def scripted(x: torch.Tensor, d: typing.Optional[torch.device] = None):
            cpu = torch.device("cpu")
            return x.to(cpu) + torch.zeros(2, device=x.device if d is None else d)
        assert scripted(torch.ones(2), torch.device("cuda")).sum() == 2

        @torch.jit.script
        def with_cuda(x: torch.Tensor):
            return torch.zeros(2, device="cuda") if x.is_cuda else x
        assert with_cuda(torch.ones(2)).sum() == 2
        torch.jit.trace(torch.nn.Linear(2, 1).cuda(), torch.ones(1, 2))(torch.ones(1, 2))

        for backend in ("eager", "aot_eager"):
            @torch.compile(backend=backend, fullgraph=True)
            def compiled(x):
                if x.is_cuda or x.device != torch.device("cuda"):
                    return x
                return x.cuda() + torch.ones(2, device="cuda").to("cuda:0")
            assert compiled(torch.ones(2, requires_grad=True)).sum().item() == 4

        @torch.compile(backend="eager")
        def available(x):
            with torch.autocast("cuda"):
                return x + 1 if torch.cuda.is_available() else x
        assert available(torch.ones(1)).item() == 2

        class Net(torch.nn.Module):
            def forward(self, x):
                return x + torch.zeros(2, device=x.device)
        exported = torch.export.export(Net(), (torch.ones(2).cuda(),))
        assert exported.module()(torch.ones(2)).sum() == 2
        assert torch.fx.symbolic_trace(Net())(torch.ones(2)).sum() == 2

        class Own(torch.Tensor):
            seen = []
            @classmethod
            def __torch_function__(cls, function, types, args=(), kwargs=None):
                cls.seen.append(function)
                return super().__torch_function__(function, types, args, kwargs or {})
        own = torch.ones(2).as_subclass(Own)
        torch.ones_like(own.to("cuda"), device="cuda")
        assert Own.seen == [torch.Tensor.to, torch.ones_like], Own.seen
        """,
    )
    (note,) = result.of("torch.jit.script")
    assert (note.given, note.redirected_to, note.count) == ("cuda", "", 1)


def test_checkpoints_from_cuda_are_read_to_what_is_here(tmp_path) -> None:
    result = trace_program(
        tmp_path,
        """
        import torch
        tag = (0, lambda storage: "cuda:1", lambda storage, location: None)
        torch.serialization._package_registry.insert(0, tag)  # as if it were saved on a GPU
        torch.save({"w": torch.arange(3.0)}, "cuda:1.pt")
        torch.serialization._package_registry.remove(tag)
        assert b"cuda:1" in open("cuda:1.pt", "rb").read()
        maps = [None, "cpu", "cuda", "cuda:0", torch.device("cuda:0"), {"cuda:1": "cuda:0"},
                {"cuda:7": "cpu"}, lambda storage, location: storage.cuda(0),
                lambda storage, location: storage, lambda storage, location: None]
        for place in maps:
            for weights_only in (True, False):
                read = torch.load("cuda:1.pt", map_location=place, weights_only=weights_only)["w"]
                assert read.device.type == "cpu" and read.tolist() == [0.0, 1.0, 2.0]
        torch.load("cuda:1.pt", "cuda")
        """,
    )
    in_the_file = [call for call in result.of("torch.load") if call.note]
    # None, the dictionary without it, and the function that leaves it to torch: twice each.
    assert sum(call.count for call in in_the_file if call.given == "cuda:1") == 6
    assert {call.redirected_to for call in result.of("torch.load")} == {"cpu"}


def test_flags_profiles_random_states_and_older_types(tmp_path) -> None:
    result = trace_program(
        tmp_path,
        """
        import warnings, torch
        from torch.profiler import ProfilerActivity, profile
        from torch.utils.data import DataLoader
        warnings.simplefilter("ignore", UserWarning)

        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        assert torch.backends.cudnn.benchmark and torch.backends.cuda.matmul.allow_tf32

        torch.manual_seed(1); state = torch.get_rng_state()
        with torch.random.fork_rng(devices=[0]):
            torch.rand(3)
        with torch.random.fork_rng():
            torch.rand(3)
        assert torch.equal(torch.get_rng_state(), state)

        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            torch.ones(2) + 1
        assert any(one.key == "aten::add" for one in recorded.key_averages())

        loader = DataLoader(torch.ones(4, 1), pin_memory=True, pin_memory_device="cuda")
        assert len(list(loader)) == 4
        packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2)])
        assert packed.cuda().data.tolist() == packed.to("cuda:0").data.tolist() == [1, 1]
        assert not packed.is_cuda

        torch.set_default_tensor_type("torch.cuda.DoubleTensor")
        assert torch.ones(1).dtype == torch.float64 and torch.ones(1).device.type == "cpu"
        torch.set_default_tensor_type(torch.cuda.FloatTensor)
        assert torch.Tensor([1.0]).type() == "torch.FloatTensor"
        assert isinstance(torch.ones(1), torch.cuda.FloatTensor)
        """,
    )
    for flag in ("torch.backends.cudnn.benchmark", "torch.backends.cuda.matmul.allow_tf32"):
        (call,) = result.of(flag)
        assert (call.given, call.redirected_to) == ("True", "")
    given = {call.api: call.given for call in result.calls}
    assert given["torch.random.fork_rng"] == "[0]"
    assert given["torch.profiler.profile"] == "ProfilerActivity.CUDA"
    assert given["torch.set_default_tensor_type"] == "torch.cuda.DoubleTensor"
    assert given["torch.utils.data.DataLoader(pin_memory_device)"] == "cuda"
