"""What each module of a model gets by a policy: matching, precedence, shared modules, wrappers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

import accel
from accel.dispatch import backends
from accel.precision import Policy
from accel.precision.operand import SLOTS, OperandFormat, Slot
from accel.precision.policy import Rule
from accel_kernels.fp8.formats import E4M3, Scaling

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
E4M3_ROW = OperandFormat(scaling=Scaling(E4M3, "row"))


class Attention(nn.Module):
    """With projections that are called, unlike nn.MultiheadAttention's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return self.proj(self.qkv(x)[..., : x.shape[-1]])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x):
        return self.mlp(self.attn(self.norm(x)))


class Lm(nn.Module):
    def __init__(self, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)


def computes(policy, model, device=None):
    policy = Policy.parse(policy) if isinstance(policy, str) else policy
    return {name: plan.compute for name, plan in policy.resolve(model, device).items()}


@pytest.fixture
def single_process():
    """A mesh of one CPU."""
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def slots(resolution, name):
    return {f"{s.role}@{s.gemm}": f for s, f in resolution[name].slots.items()}


class TestMatching:
    def test_without_rules_everything_that_computes_gets_the_policys_dtype(self):
        resolution = Policy(BF16).resolve(Lm())
        assert {plan.compute for plan in resolution.values()} == {BF16}
        inner = ["norm", "attn", "attn.qkv", "attn.proj", "mlp.0", "mlp.1", "mlp.2"]
        blocks = [f"blocks.{number}.{name}" for number in (0, 1) for name in inner]
        assert list(resolution) == ["embed", *blocks, "head"]
        assert all(plan.rules["compute"] == "the policy's compute" for plan in resolution.values())
        assert list(resolution["head"].slots) == list(SLOTS)
        assert set(resolution["head"].slots.values()) == {OperandFormat(dtype=BF16)}
        assert resolution["embed"].slots == resolution["blocks.0.mlp.1"].slots == {}
        assert resolution["blocks.0.attn"].kind == "Attention"

    def test_a_name_means_the_module_and_all_inside_it(self):
        got = computes("compute=bf16; blocks.1=f32", Lm(blocks=11))
        assert {name for name, dtype in got.items() if dtype == F32} == {
            name for name in got if f"{name}.".startswith("blocks.1.")
        }
        assert got["blocks.1"] == F32  # a module that a rule names has a plan of its own
        assert "blocks.10" not in got

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("*.mlp.*", {"0.mlp.0", "0.mlp.1", "0.mlp.2", "1.mlp.0", "1.mlp.1", "1.mlp.2"}),
            ("*.mlp.0", {"0.mlp.0", "1.mlp.0"}),
            ("*.[01].mlp.[12]", {"0.mlp.1", "0.mlp.2", "1.mlp.1", "1.mlp.2"}),
            ("blocks.?.attn.qkv", {"0.attn.qkv", "1.attn.qkv"}),
            ("blocks.0.norm|*.proj", {"0.norm", "0.attn.proj", "1.attn.proj"}),
            ("*.attn", {f"{n}.attn{x}" for n in "01" for x in ("", ".qkv", ".proj")}),
        ],
    )
    def test_globs(self, pattern, expected):
        got = computes(f"compute=bf16; {pattern}=f32", Lm())
        assert {n for n, dtype in got.items() if dtype == F32} == {f"blocks.{n}" for n in expected}

    def test_globs_mind_case(self):
        with pytest.raises(ValueError, match=r"Head=float32, matches no module \(did you mean hea"):
            Policy.parse("Head=f32").resolve(Lm())

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("linear", {"conv.proj", "bilinear", "lm_head"}),
            ("head", {"lm_head"}),
            ("conv", {"conv.conv", "transposed"}),
            ("embedding", {"embedding", "bag"}),
            ("norm", {"norm", "batch", "rms", "own"}),
            ("attention", {"attention", "mha"}),
            ("Linear", {"conv.proj", "lm_head"}),
            ("_ConvNd", {"conv.conv", "transposed"}),
            ("Norm2", {"own"}),
        ],
    )
    def test_types(self, kind, expected):
        class Norm2(nn.Module):  # neither torch's nor called ...Norm
            def forward(self, x):
                return x

        class RmsNorm(Norm2):
            pass

        class SlidingAttention(nn.Module):
            def forward(self, x):
                return x

        convolution = nn.Module()
        convolution.conv, convolution.proj = nn.Conv1d(4, 4, 3), nn.Linear(4, 4)
        model = nn.ModuleDict(
            {
                "conv": convolution,
                "transposed": nn.ConvTranspose2d(4, 4, 3),
                "embedding": nn.Embedding(4, 4),
                "bag": nn.EmbeddingBag(4, 4),
                "norm": nn.LayerNorm(4),
                "batch": nn.BatchNorm1d(4),
                "rms": nn.RMSNorm(4),
                "own": RmsNorm(),
                "attention": SlidingAttention(),
                "mha": nn.MultiheadAttention(4, 1),
                "bilinear": nn.Bilinear(4, 4, 4),
                "lm_head": nn.Linear(4, 4),
            }
        )
        got = computes(f"compute=bf16; <{kind}>=f32", model)
        assert {name for name, dtype in got.items() if dtype == F32} == expected

    def test_a_type_means_the_module_and_all_inside_it(self):
        got = computes("compute=bf16; <attention>=f32", Lm())
        assert {n for n, d in got.items() if d == F32} == {n for n in got if ".attn" in n}

    def test_name_and_type_may_match_at_different_depths(self):
        got = computes("compute=bf16; blocks.1<linear>=f32", Lm())
        linears = ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
        assert {n for n, d in got.items() if d == F32} == {f"blocks.1.{n}" for n in linears}

    def test_the_first_match_wins(self):
        model = Lm()
        got = computes("compute=bf16; blocks.0.mlp.0=f16; blocks.0=f32; <linear>=f16", model)
        assert got["blocks.0.mlp.0"] == F16
        assert got["blocks.0.mlp.2"] == got["blocks.0.norm"] == F32
        assert got["blocks.1.mlp.0"] == got["head"] == F16
        assert got["blocks.1.norm"] == got["embed"] == BF16

    def test_the_root(self):
        assert computes("compute=bf16; *=f32", nn.Linear(2, 2)) == {"": F32}
        assert computes("compute=bf16; <linear>=f32", nn.Linear(2, 2)) == {"": F32}


class TestOperands:
    def test_roles_and_products(self):
        policy = Policy.parse(
            "compute=bf16,emulate; head/weight@forward=e4m3:row; head/input=e4m3:row;"
            " head/gradient@weight_gradient=e5m2:row; head=f32"
        )
        resolution = policy.resolve(Lm())
        assert resolution["head"].compute == F32
        e5m2 = Policy.parse("a=e5m2:row").rules[0].format
        assert slots(resolution, "head") == {
            "input@forward": E4M3_ROW,
            "weight@forward": E4M3_ROW,
            "gradient@data_gradient": OperandFormat(dtype=F32),
            "weight@data_gradient": OperandFormat(dtype=F32),
            "gradient@weight_gradient": e5m2,
            "input@weight_gradient": E4M3_ROW,
        }
        rules = resolution["head"].rules
        assert rules["compute"] == "head=float32"
        assert rules[Slot("forward", "weight")] == "head/weight@forward=float8_e4m3fn:row"
        assert rules[Slot("data_gradient", "weight")] == "head=float32"

    @pytest.mark.parametrize(
        ("first", "second", "wide"),
        [
            ("e4m3", "bf16", BF16),
            ("e4m3", "f32", F32),
            ("bf16", "f32", F32),
            ("bf16", "f16", F32),
            ("f16", "f16", F16),
        ],
    )
    @pytest.mark.parametrize("swap", [False, True])
    def test_a_product_is_in_eight_bits_only_if_both_operands_are(self, first, second, wide, swap):
        one, other = (second, first) if swap else (first, second)
        policy = Policy.parse(f"head/input@forward={one}; head/weight@forward={other}")
        resolution = policy.resolve(Lm(), "sm_90")
        got = slots(resolution, "head")
        assert got["input@forward"] == got["weight@forward"] == OperandFormat(dtype=wide)
        assert got["weight@data_gradient"] == OperandFormat(dtype=F32)
        said = "\n".join(resolution.widened.get("head", ()))
        for role, given in (("input", one), ("weight", other)):
            narrow = Rule(given).format
            word = str(Rule(given)).partition("=")[2]
            assert (f"not with the {role} in {word}" in said) == (narrow.dtype != wide)

    def test_what_is_no_linear_layer_takes_the_next_rule(self):
        model = nn.ModuleDict({"conv": nn.Conv1d(4, 4, 3), "fc": nn.Linear(4, 4)})
        resolution = Policy.parse("compute=bf16; *=e4m3:row; conv|fc=f16").resolve(model, "sm_90")
        assert (resolution["conv"].compute, resolution["fc"].compute) == (F16, F16)
        assert resolution["conv"].slots == {}
        assert set(resolution["fc"].slots.values()) == {E4M3_ROW}
        ((rule, reason),) = resolution.passed["conv"]
        assert (str(rule), reason) == (
            "*=float8_e4m3fn:row",
            "eight bits are for nn.Linear only, not for Conv1d",
        )

    def test_formats_that_nothing_multiplies(self):
        policy = Policy.parse("head/weight=hif8; head=e4m3")
        with pytest.raises(
            ValueError, match=r"head: the product forward would multiply .*hifloat8"
        ):
            policy.resolve(Lm(), "950")

    def test_a_linear_layer_with_its_own_forward(self):
        class Lora(nn.Linear):
            def forward(self, x):
                return super().forward(x)

        policy = Policy.parse("fc?=e4m3")
        model = nn.ModuleDict({"fc": Lora(4, 4)})
        resolution = policy.resolve(model)
        assert resolution["fc"].slots == {}
        assert resolution.passed["fc"][0][1] == "its class Lora has a forward of its own"

    def test_a_float64_weight(self):
        model = nn.ModuleDict({"fc": nn.Linear(4, 4, dtype=torch.float64)})
        resolution = Policy.parse("fc?=e4m3").resolve(model)
        assert resolution.passed["fc"][0][1] == "its weight is float64"


class TestRulesThatDecideNothing:
    @pytest.mark.parametrize(
        ("policy", "message"),
        [
            ("linear=f32", r"rule 1, linear=float32, matches no module \(did you mean <[lL]inear>"),
            ("zzz=f32", "matches no module: the model's modules are embed, blocks, blocks.0-1, b"),
            ("haed=f32", r"matches no module \(did you mean head.*write haed\?= for a rule that"),
            ("head=bf16; embde=f32", r"rule 2, embde=float32, .*did you mean embed"),
            ("*.mpl.*=f32", r"rule 1, \*\.mpl\.\*=float32, matches no module"),
            ("<conv>=f32", "matches no module: the model has no conv layer; correct"),
            ("<Liner>=f32", r"matches no module \(did you mean Linear"),
            ("<Zzz>=f32", r"matches no module: the model's types are Attention, Block, Emb"),
            ("embed<linear>=f32", "matches no module: the model has no linear there"),
            ("embed<Linear>=f32", "matches no module: no Linear is inside embed"),
            ("embed=e4m3", r"it matches embed \(eight bits are for nn.Linear only"),
            ("<norm>/weight=f32", r"norm \(single operands have formats in nn.Linear only"),
            ("*=f32; head=f16", r"rule 2, head=float16, decides nothing: the first match wins, and "
                                r"rules before it decide all that it matches \(head\)"),
            ("blocks=f32; *.mlp=f16", r"rule 2, .*matches \(blocks.0-1.mlp, blocks.0-1.mlp.0-2\)"),
            ("blocks.?.norm=e4m3", r"it matches blocks.0-1.norm \(eight bits are for nn.Linear"),
        ],
    )  # fmt: skip
    def test_are_an_error(self, policy, message):
        with pytest.raises(ValueError, match=message):
            Policy.parse(policy).resolve(Lm())
        with pytest.raises(ValueError, match=message):
            Policy.parse(policy).explain(Lm())

    def test_unless_they_are_optional(self):
        policy = "compute=bf16; haed?=f32; {conv ?: f32, linear: f16}; embed?=e4m3; head?=f32"
        got = computes(policy, Lm())
        assert (got["head"], got["embed"]) == (F16, BF16)

    @pytest.mark.parametrize("model", [None, "model", Lm, torch.zeros(2)])
    def test_what_is_no_model(self, model):
        with pytest.raises(TypeError, match=r"a policy speaks of an nn\.Module, not of"):
            Policy(BF16).resolve(model)


class TestMultiheadAttention:
    """Its projections are computed by one function, which calls no module."""

    @pytest.fixture
    def model(self):
        return nn.TransformerEncoderLayer(32, 2, 64)

    def test_has_a_dtype_and_no_operands(self, model):
        resolution = Policy.parse("fp8_rowwise").resolve(model, "sm_90")
        assert resolution["self_attn"].compute == BF16
        assert resolution["self_attn"].slots == {}
        assert "self_attn.out_proj" not in resolution
        assert "self_attn.out_proj" in resolution.nodes
        assert all(f.is_fp8 for f in resolution["linear1"].slots.values())

    @pytest.mark.parametrize("policy", ["self_attn=e4m3", "self_attn.out_proj=f32"])
    def test_its_projection_is_out_of_reach(self, model, policy):
        message = r"self_attn.out_proj \(nn.MultiheadAttention computes it without calling it\)"
        with pytest.raises(ValueError, match=message):
            Policy.parse(policy).resolve(model)

    def test_a_rule_for_the_whole_of_it_holds_for_its_projection(self, model):
        resolution = Policy.parse("compute=bf16; self_attn=f32").resolve(model)
        assert resolution["self_attn"].compute == F32
        assert resolution.passed == {}

    def test_its_projection_under_another_name_too_is_called(self, model):
        model.also = model.self_attn.out_proj
        resolution = Policy.parse("compute=bf16; also=f32").resolve(model)
        assert resolution["self_attn.out_proj"].compute == F32

    def test_that_is_true(self, model):
        called = []
        model.self_attn.out_proj.register_forward_hook(lambda *_: called.append(1))
        model(torch.zeros(3, 1, 32))
        assert called == []

    def test_a_subclass_that_calls_it(self):
        class Own(nn.MultiheadAttention):
            def forward(self, x):
                return self.out_proj(x)

        resolution = Policy.parse("compute=bf16; *=e4m3; out_proj?=f32").resolve(
            nn.ModuleDict({"a": Own(4, 1), "fc": nn.Linear(4, 4)}), "sm_90"
        )
        assert resolution["a.out_proj"].compute == BF16
        assert resolution["a.out_proj"].slots == {}


class TestSharedAndWrapped:
    def test_a_shared_module_has_one_plan_by_any_of_its_names(self):
        shared = nn.Linear(4, 4)
        model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.Linear(4, 4)})
        for rule in ("a=f32", "b=f32", "b.0=f32"):
            got = computes(f"compute=bf16; {rule}", model)
            assert got == {"a": F32, "c": BF16}
        assert Policy(BF16).resolve(model).nodes["a"].names == ("a", "b.0")

    def test_tied_weights_make_a_head(self):
        model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "out": nn.Linear(4, 8, bias=False)})
        with pytest.raises(ValueError, match="the model has no head layer"):
            computes("compute=bf16; <head>=f32", model)
        model["out"].weight = model["embed"].weight
        assert computes("compute=bf16; <head>=f32", model) == {"embed": BF16, "out": F32}

    def test_a_module_that_holds_itself(self):
        model = nn.ModuleDict({"a": nn.Linear(2, 2)})
        model["a"].back = model
        assert computes("compute=bf16; a=f32", model) == {"a": F32}

    def test_compiled_models(self):
        model = Lm()
        model.blocks[0].mlp[0] = torch.compile(model.blocks[0].mlp[0], backend="eager")
        compiled = torch.compile(model, backend="eager")
        policy = Policy.parse("compute=bf16; blocks.0.mlp.0|head=f32")
        resolution = policy.resolve(compiled)
        chosen = {name for name, plan in resolution.items() if plan.compute == F32}
        assert chosen == {"_orig_mod.head", "_orig_mod.blocks.0.mlp.0._orig_mod"}
        assert set(resolution) <= set(dict(compiled.named_modules()))
        assert list(resolution.plain_names.values()) == list(policy.resolve(Lm()))
        assert resolution["_orig_mod.blocks.0.mlp.0._orig_mod"].kind == "Linear"

    @pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
    def test_distributed_wrappers(self, single_process):
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy

        policy = Policy.parse("compute=bf16; blocks.1.mlp.0=f32")
        wrap = ModuleWrapPolicy({nn.Linear})
        sharded = FullyShardedDataParallel(
            Lm(), auto_wrap_policy=wrap, use_orig_params=True, device_id=torch.device("cpu")
        )
        for wrapped in (nn.parallel.DistributedDataParallel(Lm()), sharded):
            resolution = policy.resolve(wrapped)
            (chosen,) = (name for name, plan in resolution.items() if plan.compute == F32)
            assert resolution.plain_names[chosen] == "blocks.1.mlp.0"
            assert resolution.modules[chosen] is wrapped.get_submodule(chosen)
            assert list(resolution.plain_names.values()) == list(policy.resolve(Lm()))

    def test_data_parallel_and_checkpointing(self):
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        model = Lm()
        model.blocks[1] = checkpoint_wrapper(model.blocks[1])
        wrapped = nn.DataParallel(torch.optim.swa_utils.AveragedModel(model))
        policy = Policy.parse("compute=bf16; blocks.1.norm=f32")
        resolution = policy.resolve(wrapped)
        (chosen,) = (name for name, plan in resolution.items() if plan.compute == F32)
        assert chosen == "module.module.blocks.1._checkpoint_wrapped_module.norm"
        assert list(resolution.plain_names.values()) == list(policy.resolve(Lm()))

    def test_a_users_own_class_of_a_wrappers_name_is_none(self):
        class DataParallel(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = nn.Linear(2, 2)

        assert computes("compute=bf16; module=f32", DataParallel()) == {"module": F32}

    def test_modules_are_those_of_the_model(self):
        model = Lm()
        resolution = Policy(BF16).resolve(model)
        assert all(resolution.modules[n] is m for n, m in model.named_modules() if n in resolution)
        assert len(resolution) == len(resolution.modules)


class TestSwappedClasses:
    def test_this_librarys(self):
        from accel.precision.modules import ModuleMixin, swap_class

        class Mixin(ModuleMixin):
            def forward(self, x):
                return super().forward(x)

        model = Lm()
        swap_class(model.head, Mixin)
        resolution = Policy.parse("compute=bf16; <Linear>=e4m3:row").resolve(model, "sm_90")
        assert resolution["head"].kind == "Linear"
        assert set(resolution["head"].slots.values()) == {E4M3_ROW}

    def test_fsdp2s(self, single_process):
        from torch.distributed.fsdp import fully_shard

        model = Lm()
        for block in model.blocks:
            fully_shard(block, mesh=single_process)
        fully_shard(model.head, mesh=single_process)
        fully_shard(model, mesh=single_process)
        resolution = Policy.parse("compute=bf16; <linear>=e4m3:row").resolve(model, "sm_90")
        assert type(model.head).__name__ == "FSDPLinear"
        assert resolution["head"].kind == "Linear"
        assert set(resolution["head"].slots.values()) == {E4M3_ROW}
        assert list(resolution) == list(Policy(BF16).resolve(Lm()))

    def test_torchs_own(self):
        weighted = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        resolution = Policy.parse("<linear>=e4m3:row").resolve(weighted, "sm_90")
        assert set(resolution[""].slots.values()) == {E4M3_ROW}
        traced = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4)))
        assert computes("compute=bf16; <linear>=f32", traced)["0"] == F32

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    def test_torchscript_has_names_and_no_types(self):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
        assert computes("compute=bf16; 0=f32; <linear>?=f16", scripted)["0"] == F32


class TestDevices:
    def test_nothing_is_assumed_of_meta(self):
        resolution = Policy.parse("fp8_block").resolve(Lm().to("meta"))
        assert resolution.statements == {}
        assert any(f.is_fp8 for f in resolution["blocks.0.mlp.0"].slots.values())

    @pytest.mark.without_npu
    def test_emulation_must_be_asked_for(self, caplog):
        message = (
            r"^cpu .* does not compute all that this policy needs: float8_e4m3fn:row:pow2 by "
            r"float8_e4m3fn:row:pow2 would be stored as bytes, emulated by .*`emulate`"
        )
        with pytest.raises(accel.DeviceError, match=message):
            Policy.parse("fp8_rowwise").resolve(Lm())
        resolution = Policy.parse("fp8_rowwise,emulate").resolve(Lm())
        ((_, said),) = resolution.statements.items()
        assert [one.verdict for one in said] == ["native", "emulated"]
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert re.match(r"on cpu .*float8_e4m3fn:row:pow2 is stored as bytes, emul", record.message)

    def test_what_a_chip_computes_is_not_warned_of_but_pieces_are(self, caplog, monkeypatch):
        specs = [replace(spec, proven_on=spec.devices) for spec in backends("scaled_matmul")]
        monkeypatch.setattr("accel.precision.policy.chip.backends", lambda _: specs)
        Policy.parse("fp8_block").resolve(Lm(), "sm_90")
        assert caplog.records == []
        Policy.parse("fp8_block").resolve(Lm(), "950")
        (record,) = caplog.records
        assert "float8_e4m3fn:1x128 by float8_e4m3fn:1x128 is computed natively, one product" in (
            record.message
        )

    def test_a_dtype_that_the_chip_lacks(self):
        policy = "compute=bf16,output=f16{}; head/input@forward=bf16; head=f16; embed=f32"
        message = "Ascend910A does not compute .*: bfloat16 would be replaced by float32"
        with pytest.raises(accel.DeviceError, match=message):
            Policy.parse(policy.format("")).resolve(Lm(), "910A")
        resolution = Policy.parse(policy.format(",emulate")).resolve(Lm(), "910A")
        assert resolution.compute == F32
        assert resolution["blocks.0.norm"].compute == resolution["embed"].compute == F32
        assert resolution["blocks.0.norm"].rules["compute"] == (
            "the policy's compute, but float32: Ascend910A has no bfloat16"
        )
        assert set(resolution["blocks.0.mlp.0"].slots.values()) == {OperandFormat(dtype=F32)}
        assert resolution["head"].compute == F16

    def test_what_is_outside_of_modules_is_computed_too(self):
        for model in (nn.Sequential(), nn.Sequential(nn.Linear(2, 2))):
            policy = Policy.parse("compute=bf16; *?=f32")
            with pytest.raises(accel.DeviceError, match="bfloat16 would be replaced by float32"):
                policy.resolve(model, "910A")
            said = str(policy.explain(model, "910A"))
            assert "bfloat16  replaced by float32  what is in no module" in said

    def test_all_dtypes(self):
        resolution = Policy.parse("compute=bf16; head/weight@forward=f16").resolve(Lm())
        assert resolution.dtypes == {BF16, F32}  # the product is in the wider of both
        policy = Policy.parse("compute=bf16; head@forward=f16; blocks=e4m3; embed=f32")
        assert policy.resolve(Lm(), "sm_90").dtypes == {BF16, F16, F32}
        assert Policy.parse("fp8_block").resolve(Lm(), "sm_90").dtypes == {BF16}

    def test_one_statement_per_format(self):
        resolution = Policy.parse("fp8_block").resolve(Lm(), "sm_90")
        assert {(s.needs, s.verdict, s.modules) for s in resolution.statements.popitem()[1]} == {
            ("bfloat16", "native", 16),
            ("float8_e4m3fn:1x128 by float8_e4m3fn:128x128", "native", 8),
            ("float8_e4m3fn:1x128 by float8_e4m3fn:1x128", "native", 8),
        }

    def test_an_unknown_device(self):
        with pytest.raises(accel.DeviceError, match="unknown"):
            Policy(BF16).resolve(Lm(), "abacus")
        with pytest.raises(ValueError, match="'910B' may mean two generations"):
            Policy(BF16).resolve(Lm(), "910B")
