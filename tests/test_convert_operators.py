"""Operators and dtypes that the chip's tables rule out: what is flagged, and what is not."""

import pytest

from accel.convert.module import Module
from accel.convert.options import Options
from accel.convert.rules import operators, operators_table
from accel.convert.source import Source


def findings(program: str, **options):
    module = Module(Source(program.encode()), "program.py", Options(**options))
    return list(operators.find(module))


def flagged(body: str, head: str = "import torch\n") -> list[str]:
    found = findings(head + body + "\n")
    assert {f.action for f in found} <= {"flag"}
    assert all(f.advice and f.subject for f in found)
    return [f.rule for f in found]


@pytest.mark.parametrize(
    ("rule", "program"),
    [(r.id, e.before) for r in operators.RULES for e in r.examples],
)
def test_examples(rule, program) -> None:
    assert [f.rule for f in findings(program)] == [rule]


@pytest.mark.parametrize("program", [text for rule in operators.RULES for text in rule.kept])
def test_kept(program) -> None:
    assert findings(program) == []


# --- operators ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program",
    [
        "from torch import nn\nlayer = nn.RNN(3, 4)",
        "from torch.nn import RNN\nlayer = RNN(3, 4)",
        "from torch.nn import RNN as Cell\n\n\nclass Mine(Cell):\n    pass",
        "import torch.nn as layers\nkinds = {'rnn': layers.RNN}",
        "import torch\nmake = torch.nn.RNN\nlayer = make(3, 4)",
        "import torch\nlayer = torch.nn.modules.rnn.RNN(3, 4)",
        "from torch import nn\nlayer = nn.Transformer(8)",  # the row is that of `forward`
        "import torch\ny = x.unique_consecutive()",
        "from torch.func import vmap\nf = vmap(g)",
    ],
)
def test_an_unsupported_operator_under_any_name(program) -> None:
    found = findings(program + "\n")
    assert [f.rule for f in found] == ["ACC090"]
    assert "listed as unsupported for A2 in the tables of PyTorch" in found[0].message


def test_an_operator_with_a_substitute_is_work() -> None:
    (found,) = findings("import torch\ny = torch.unique_consecutive(x)\n")
    assert (found.effort, found.blocker) == ("rewrite", False)
    assert found.advice.startswith("Compare each element with the one before it")
    (found,) = findings("from torch import nn\nlayer = nn.MaxPool3d(2)\n")
    assert (found.blocker, found.advice.startswith("Pool the last two dimensions")) == (False, True)


def test_an_operator_without_one_is_a_blocker(monkeypatch) -> None:
    monkeypatch.delitem(operators_table.ADVICE, "torch.heaviside")
    found = findings("import torch\n\ny = torch.heaviside(x, z)\n")
    assert [(f.rule, f.effort, f.blocker) for f in found] == [("ACC090", "rewrite", True)]
    assert found[0].message.endswith("; nothing is known to take its place")


@pytest.mark.parametrize(
    ("api", "start"),
    [
        ("torch.nn.RNN", "Use torch.nn.GRU"),
        ("torch.func.vmap", "Write the derivative"),
        ("torch.func.replace_all_batch_norm_modules_", "Build the model with GroupNorm"),
        ("torch.optim.Adam.step", "torch.optim.AdamW"),
        ("torch.optim.LBFGS.step", "Its step is arithmetic"),
        ("torch.nn.Linear", ""),
    ],
)
def test_substitutes_by_name_or_by_the_longest_prefix(api, start) -> None:
    known = operators_table.substitute(api)
    assert known.startswith(start)
    assert bool(known) is bool(start)


@pytest.mark.parametrize(
    "program",
    [
        "from torch import nn\nlayer = nn.LSTM(3, 4)",
        "from mylib import nn\nlayer = nn.RNN(3, 4)",
        "import torch\n\n\ndef f(torch):\n    return torch.std_mean(1)",
        "import torch\nimport pandas as pd\nx = pd.unique_consecutive(a)",
        "import torch\nfrom torch import nn\n\n\ndef f(x: nn.RNN) -> nn.RNN:\n    y: nn.RNN = x",
        "from torch import nn\nfound = issubclass(kind, (nn.RNN, nn.LSTM))",
        "import torch\ntorch.serialization.add_safe_globals([torch.nn.RNN])",
        "import torch\ntorch.nn.RNN.forward = mine",
        "import torch\ntorch.backends.cuda.enable_flash_sdp(True)",  # another family's
        "import torch\nx = torch.no_such_thing(1)",
        "import torch\n\n\nclass A:\n    def f(self):\n        return self.unique_consecutive()",
        "text = 'torch.std_mean'",
    ],
)
def test_what_is_no_use_of_an_unsupported_operator(program) -> None:
    assert findings(program + "\n") == []


def test_the_chip_decides() -> None:
    program = "from torch import nn\nlayer = nn.Linear(3, 4)\nother = nn.RNN(3, 4)\n"
    for chip in ("910B2", "910_9391", "950"):
        assert [f.line for f in findings(program, chip=chip)] == [3]
    with pytest.raises(ValueError, match="no support tables for the chip 'H100'"):
        findings(program, chip="H100")


def test_advice_names_a_way() -> None:
    (found,) = findings("import torch\na, b = torch.std_mean(x)\n")
    assert found.advice.startswith("Call torch.std and torch.mean.")


# --- dtypes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "rules"),
    [
        # float64 at the place where it is made or asked for
        ("x = y.double()", ["ACC092"]),
        ("model.double()", ["ACC092"]),
        ("x = y.to(torch.float64)", ["ACC092"]),
        ("x = y.to(device, torch.double)", ["ACC092"]),
        ("x = y.to(dtype=torch.float64)", ["ACC092"]),
        ("x = y.type(torch.float64)", ["ACC092"]),
        ("x = torch.zeros(3, dtype=torch.float64, device=d)", ["ACC092"]),
        ("x = torch.zeros(3, dtype=torch.float64).to(d)", ["ACC092"]),
        ("x = torch.zeros(3, dtype=torch.float64).cuda()", ["ACC092"]),
        ("x = torch.zeros_like(y, dtype=torch.float64)", ["ACC092"]),
        ("x = y.new_zeros(3, dtype=torch.float64)", ["ACC092"]),
        ("x = y.sum(dtype=torch.float64)", ["ACC092"]),
        ("x = torch.sum(y, dtype=torch.float64)", ["ACC092"]),
        ("torch.set_default_dtype(torch.float64)", ["ACC092"]),
        ("W = torch.float64\nx = torch.zeros(3, dtype=W, device=d)", ["ACC092"]),
        # on the host, or nobody can tell
        ("x = torch.zeros(3, dtype=torch.float64)", []),
        ("x = torch.zeros(3, dtype=torch.float64, device='cpu')", []),
        ("x = torch.zeros(3, dtype=torch.float64, device=torch.device('cpu'))", []),
        ("x = y.cpu().double()", []),
        ("x = y.detach().cpu().flatten().double()", []),
        ("x = torch.from_numpy(a).double()", []),
        ("x = torch.tensor(a).double()", []),
        ("x = y.to('cpu', torch.float64)", []),
        ("x = y.to('cpu').double()", []),
        ("x = torch.sum(y.cpu(), dtype=torch.float64)", []),
        ("x = y.to(torch.float32)", []),
        ("x = y.double(3)", []),
        ("x = y.dtype == torch.float64", []),
        ("import numpy as np\nx = np.double(3) + np.zeros(3, dtype=np.float64)", []),
        ("def f(double):\n    return double()", []),
        ("torch.set_default_dtype(torch.float32)", []),
        # complex numbers
        ("x = torch.zeros(3, dtype=torch.cfloat, device=d)", ["ACC093"]),
        ("x = y.to(torch.complex64)", ["ACC093"]),
        ("x = y.cfloat()", ["ACC093"]),
        ("x = torch.view_as_complex(y)", []),
        # calls whose row leaves the dtype out
        ("x = torch.erfinv(y.double())", ["ACC091"]),
        ("x = torch.erfinv(y)", []),
        ("x = torch.erfinv(y.half())", []),
        ("z = y.double()\nx = torch.erfinv(z)", ["ACC092", "ACC091"]),
        ("x = torch.abs(y.double())", ["ACC092"]),
        ("x = torch.erfinv(y.cpu().double())", []),
    ],
)
def test_dtypes(body, rules) -> None:
    assert sorted(flagged(body)) == sorted(rules)


def test_a_class_with_a_method_of_that_name_is_left_alone() -> None:
    program = (
        "import torch\n\n\nclass A:\n    def double(self):\n        return 2\n\n\nx = a.double()\n"
    )
    source = Source(program.encode())
    from accel.convert import project

    index = project.index({"program.py": program.encode()})
    assert list(operators.find(Module(source, "program.py", Options(), index))) == []


# --- DataParallel, TorchScript -----------------------------------------------------------------


def test_data_parallel_has_the_recipe() -> None:
    (found,) = findings("from torch import nn\nmodel = nn.DataParallel(model)\n")
    assert (found.rule, found.effort) == ("ACC094", "rewrite")
    for word in ("torchrun", "DistributedDataParallel", "ddp_device_ids", "DistributedSampler"):
        assert word in found.advice


@pytest.mark.parametrize(
    "body",
    [
        "m = torch.nn.parallel.DataParallel(m)",
        "y = torch.nn.parallel.data_parallel(m, x)",
        "from torch.nn import DataParallel as DP\nm = DP(m)",
    ],
)
def test_other_spellings(body) -> None:
    assert flagged(body) == ["ACC094"]


@pytest.mark.parametrize(
    ("body", "rules"),
    [
        ("@torch.jit.script\ndef f(x):\n    return x", ["ACC095"]),
        ("m = torch.jit.trace(m, x)", ["ACC095"]),
        ("m = torch.jit.load('m.pt')", []),
        ("if torch.jit.is_scripting():\n    pass", []),
    ],
)
def test_torchscript(body, rules) -> None:
    assert flagged(body) == rules


# --- memory formats ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "count"),
    [
        ("net = net.to(memory_format=torch.channels_last)", 1),
        ("x = x.cuda(memory_format=torch.channels_last)", 1),
        ("x = x.to(device, dtype, memory_format=torch.channels_last_3d)", 1),
        ("x = x.contiguous(memory_format=torch.channels_last)", 1),
        ("x = x.clone(memory_format=torch.channels_last)", 1),
        ("x = torch.empty(2, 3, 4, 4, device=device, memory_format=torch.channels_last)", 1),
        ("x = torch.zeros(2).to(device, memory_format=torch.channels_last)", 1),
        ("x = torch.empty_like(x, memory_format=torch.channels_last)", 1),
        ("fmt = torch.channels_last if wide else other\nx.to(memory_format=fmt)", 1),
        ("x = torch.nn.functional.relu(x).to(memory_format=torch.channels_last)", 1),
        ("from torch import channels_last as last\nx = x.contiguous(memory_format=last)", 1),
        ("run(model, memory_format=torch.channels_last)", 1),
        ("x = torch.zeros(2, device='cpu', memory_format=torch.channels_last)", 0),
        ("x = x.to(torch.float16, memory_format=torch.preserve_format)", 0),
        ("n = torch.nn.ReLU().to(memory_format=torch.channels_last)", 0),
        ("class N(torch.nn.Module):\n    pass\nN().to(memory_format=torch.channels_last)", 0),
    ],
)
def test_a_memory_format_that_the_chip_refuses(body, count) -> None:
    assert flagged(body) == ["ACC096"] * count


def test_files_for_other_platforms_and_without_torch_say_nothing() -> None:
    assert findings("x = y.double()\n") == []
    assert findings("import torch\nx = y.double()\n", source="npu") == []


# --- substitutes: what the advice says computes the same ---------------------------------------


def test_pooling_in_steps_and_by_bins() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = torch.randn(1, 2, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    for pool in (functional.max_pool3d, functional.avg_pool3d):
        torch.testing.assert_close(pool(pool(x, (1, 2, 2)), (2, 1, 1)), pool(x, 2))
    row = x[0, :, 0, 0, :5]
    bins = [(i * 5 // 3, -(-(i + 1) * 5 // 3)) for i in range(3)]
    parts = torch.stack([row[:, start:end].amax(1) for start, end in bins], 1)
    assert torch.equal(parts, functional.adaptive_max_pool1d(row, 3))
    values, indices = functional.max_pool3d(x, 2, return_indices=True)
    flat = torch.zeros(1, 2, 216).scatter(2, indices.flatten(2), values.flatten(2))
    assert torch.equal(flat.view_as(x), functional.max_unpool3d(values, indices, 2))


def test_padding_the_depth_by_its_own_indexes() -> None:
    torch = pytest.importorskip("torch")
    pad = torch.nn.functional.pad
    x = torch.randn(1, 1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for mode, indexes in (("reflect", [1, 0, 1, 2, 1]), ("replicate", [0, 0, 1, 2, 2])):
        flat = pad(x[0], (1, 1, 1, 1), mode=mode)[None]
        whole = pad(x, (1,) * 6, mode=mode)
        assert torch.equal(flat.index_select(2, torch.tensor(indexes)), whole)


def test_losses_and_transforms_that_are_written_out() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    goal = (x.flip(0) > 0).float()
    torch.testing.assert_close(
        functional.multilabel_soft_margin_loss(x, goal),
        functional.binary_cross_entropy_with_logits(x, goal),
    )
    torch.testing.assert_close(torch.fft.ihfftn(x), torch.fft.rfftn(x, norm="forward").conj())
    labels = torch.tensor([2, 0, -1, 1, 1, 1])
    ours = sum(
        (1 - (x[0][label] - x[0][other])).clamp(min=0)
        for label in (2, 0) for other in (1, 3, 4, 5)
    ) / 6  # fmt: skip
    torch.testing.assert_close(functional.multilabel_margin_loss(x[0], labels), ours)


def test_adam_is_adamw_without_decay() -> None:
    torch = pytest.importorskip("torch")
    weights = torch.nn.Parameter(torch.ones(3))
    other = torch.nn.Parameter(torch.ones(3))
    one = torch.optim.Adam([weights], lr=0.1, weight_decay=0)
    two = torch.optim.AdamW([other], lr=0.1, weight_decay=0)
    for _ in range(3):
        for parameter, optimizer in ((weights, one), (other, two)):
            optimizer.zero_grad()
            (parameter**2).sum().backward()
            optimizer.step()
    assert torch.equal(weights, other)
