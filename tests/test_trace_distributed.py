"""Process groups, meshes and data parallelism that ask for CUDA, under the tracing shim."""

from __future__ import annotations

from tests.trace_running import trace_program


def test_groups_meshes_and_wrappers_take_what_the_device_has(tmp_path) -> None:
    result = trace_program(
        tmp_path,
        """
        import warnings, torch, torch.distributed as dist
        from torch.distributed import device_mesh
        from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
        from torch.nn.parallel import DistributedDataParallel

        assert dist.is_nccl_available() and torch.distributed.Backend.NCCL == "nccl"
        dist.init_process_group(
            backend=dist.Backend.NCCL, store=dist.HashStore(), rank=0, world_size=1,
            device_id=torch.device("cuda:0"))
        assert dist.get_backend() == "gloo"
        assert dist.get_backend(dist.new_group([0], None, "nccl")) == "gloo"
        assert dist.get_backend(dist.new_group([0], backend="gloo")) == "gloo"
        dist.barrier(device_ids=[0])
        value = torch.ones(2).cuda(); dist.all_reduce(value); assert value.tolist() == [1, 1]
        for mesh in (dist.init_device_mesh("cuda", (1,)), device_mesh.DeviceMesh("cuda", [0]),
                     device_mesh.init_device_mesh(device_type="cuda", mesh_shape=(1,))):
            assert mesh.device_type == "cpu"
        layer = torch.nn.Linear(2, 2).cuda()
        for options in ({"device_ids": [0], "output_device": 0}, {"device_ids": ["cuda:0"]}, {}):
            DistributedDataParallel(layer, **options)(torch.ones(1, 2)).sum().backward()
        DistributedDataParallel(layer, [torch.device("cuda")], 0)
        warnings.simplefilter("ignore")
        index = torch.cuda.current_device()
        whole = FullyShardedDataParallel(torch.nn.Linear(2, 2), device_id=index)
        whole(torch.ones(1, 2).cuda()).sum().backward()
        fully_shard(layer, mesh=mesh)(torch.ones(1, 2)).sum().backward()
        dist.destroy_process_group()
        dist.init_process_group("cuda:nccl,cpu:gloo", rank=0, world_size=1,
                                store=dist.HashStore())
        assert dist.get_backend() == "cpu:gloo"
        dist.destroy_process_group()
        """,
    )
    group = {call.given: call.redirected_to for call in result.of("torch.distributed.new_group")}
    assert group == {"nccl": "gloo"}
    begun = result.of("torch.distributed.init_process_group")
    assert {call.given: call.redirected_to for call in begun} == {
        "nccl": "gloo", "cuda:nccl,cpu:gloo": "cpu:gloo",
    }  # fmt: skip
    backends = result.of("torch.distributed.get_backend")
    assert all("nccl" in call.note and call.redirected_to.endswith("gloo") for call in backends)
    assert {call.given for call in result.of("torch.nn.parallel.DistributedDataParallel")} == {
        "0", "cuda:0", "cpu",
    }  # fmt: skip
