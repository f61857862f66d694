"""The published limits of operators: the file, how it is read, and the script that makes it."""

import importlib.machinery
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from accel.simulate import limits
from accel.simulate.limits import limits_for

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "ci" / "vendor_tables"
FILE = ROOT / "accel" / "simulate" / "limits" / "operator_dtypes.json"
TABLE = json.loads(FILE.read_text("utf-8"))

INTEGERS = {"uint8", "int8", "int16", "int32", "int64"}
SMALL = {"float16", "float32"}
FLOATS = {"bfloat16", *SMALL}
COMPLEX = {"complex64", "complex128"}
UNSIGNED16 = FLOATS | {"float64", "bool", "uint16"} | INTEGERS
ATTENTION = "torch.nn.functional.scaled_dot_product_attention"

# Copied by hand from the documents: operator, chip, row, dtypes that the row lists.
KNOWN = [
    ("aten::add.Tensor", "A2", "torch.add", FLOATS | {"float64", "bool"} | INTEGERS),
    ("aten::mul.Tensor", "A2", "torch.mul", FLOATS | {"bool"} | INTEGERS | COMPLEX),
    ("aten::mm", "A2", "torch.mm", SMALL),
    ("aten::linear", "A3", "torch.nn.functional.linear", FLOATS),
    ("aten::gelu", "950", "torch.nn.functional.gelu", FLOATS),
    ("aten::sort", "950", "torch.sort", SMALL | INTEGERS),
    ("aten::where.self", "A2", "torch.where", FLOATS | {"float64", "bool"} | INTEGERS),
    ("aten::special_erf", "A2", "torch.special.erf", SMALL | {"int64", "bool"}),
    ("aten::linalg_cholesky", "A2", "torch.linalg.cholesky", {"float32"}),
    ("aten::fft_rfftn", "A3", "torch.fft.rfftn", {"float32"}),
    ("aten::lstm.input", "A2", "torch.nn.LSTM", {"float32"}),
    ("aten::_foreach_neg_", "A2", "torch._foreach_neg_", FLOATS | {"int8", "int32", "int64"}),
    ("aten::_ctc_loss", "A2", "torch.nn.functional.ctc_loss", {"float32", "float64"}),
    ("aten::huber_loss", "A2", "torch.nn.HuberLoss", {"float32", "float64"}),
    ("aten::less_equal.Tensor", "A2", "torch.less_equal", UNSIGNED16),
    ("aten::upsample_bilinear2d", "A2", "torch.nn.functional.interpolate", FLOATS | {"float64"}),
    ("aten::scaled_dot_product_attention", "A2", ATTENTION, FLOATS),
    ("aten::acos_", "A2", "torch.Tensor.acos_", SMALL | {"float64"}),
    ("aten::acos_", "A3", "torch.Tensor.acos_", FLOATS | {"float64"}),
    ("aten::acos_", "950", "torch.Tensor.acos_", SMALL | {"float64"}),
    ("aten::addcdiv_", "A2", "torch.Tensor.addcdiv_", FLOATS | {"float64"}),
    ("aten::addcdiv_", "950", "torch.Tensor.addcdiv_", None),
    ("aten::float_power_.Scalar", "A2", "torch.Tensor.float_power_", {"float64"}),
    ("aten::concatenate", "A2", "torch.concatenate", FLOATS | {"int64", "bool", "complex64"}),
    ("aten::concatenate", "950", "torch.concatenate", FLOATS | {"int64", "bool"}),
    ("aten::std.correction", "A2", "torch.std", None),
]


@pytest.mark.parametrize(("operator", "chip", "api", "dtypes"), KNOWN)
def test_gives_what_the_documents_say(operator, chip, api, dtypes) -> None:
    limit = limits_for(operator, chip)
    assert limit is not None
    assert limit.api == api
    assert limit.dtypes == dtypes
    assert limit.status == "supported"


def test_reads_without_torch(tmp_path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch is blocked')\n")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from accel.simulate.limits import limits_for\n"
        "print(limits_for('aten::gelu', 'A2').describe())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == (
        "torch.nn.functional.gelu on A2 (supported) lists bfloat16, float16, float32"
    )


def test_an_operator_of_which_nothing_is_published_has_no_limit() -> None:
    assert limits_for("aten::no_such_operator", "A2") is None
    assert limits_for("npu::npu_rms_norm", "A2") is None


@pytest.mark.parametrize("name", ["empty.memory_format", "view", "copy_", "zeros_like", "t"])
def test_operators_that_make_copy_or_view_are_not_mapped(name) -> None:
    assert limits_for(f"aten::{name}", "A2") is None


@pytest.mark.parametrize("generation", ["910", "310P", "310B"])
def test_a_chip_that_the_documents_do_not_compare_has_no_limits(generation) -> None:
    assert limits_for("aten::add", generation) is None


def test_refuses_a_chip_or_an_operator_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"unknown chip generation '910B'; known: 310B, 310P, 910"):
        limits_for("aten::add", "910B")
    with pytest.raises(ValueError, match="with its namespace, such as aten::add, got 'add'"):
        limits_for("add", "A2")


def test_knows_every_generation_of_chips() -> None:
    from accel.devices import chips

    for generation in {chip.generation for chip in chips.CHIPS.values()}:
        limits_for("aten::add", generation)


def test_a_cross_for_the_950_means_not_verified_and_lists_nothing() -> None:
    limit = limits_for("aten::linalg_cholesky", "950")
    assert limit is not None
    assert (limit.status, limit.chip, limit.chips) == ("unverified", "950DT", ("A2", "A3"))
    assert limit.dtypes is None
    assert limit.accepts("float32") is None


def test_a_cross_for_the_a2_means_unsupported() -> None:
    limit = limits_for("aten::fft_fftshift", "A2")
    assert limit is not None
    assert limit.status == "unsupported"


def test_what_another_row_of_the_operator_lists_is_accepted_too() -> None:
    """torch.mm leaves out bfloat16, which torch.nn.functional.linear, which runs mm, lists."""
    limit = limits_for("aten::mm", "A2")
    assert limit is not None
    assert "bfloat16" in limit.elsewhere
    assert limit.accepts("torch.bfloat16") is True
    assert limit.accepts("float16") is True
    assert limit.accepts("float64") is False
    assert "other rows bfloat16" in limit.describe()


def test_the_optimizers_row_counts_for_the_operator_that_it_runs() -> None:
    """torch.lerp leaves out bfloat16, which torch.optim.Adam, which runs lerp_, lists."""
    limit = limits_for("aten::lerp_.Scalar", "A2")
    assert limit is not None
    assert (limit.api, limit.dtypes) == ("torch.Tensor.lerp_", SMALL)
    assert limit.elsewhere == {"bfloat16"}


def test_what_a_row_rules_out_is_not_accepted_and_the_rest_not_stated() -> None:
    limit = limits_for("aten::logaddexp", "A2")
    assert limit is not None
    assert (limit.dtypes, limit.excluded) == (None, {"float64"})
    assert limit.accepts("float64") is False
    assert limit.accepts("complex64") is None
    assert "all but float64" in limit.describe()


@pytest.mark.parametrize(
    ("operator", "remarks", "ranks"),
    [
        ("aten::trunc", {"cpu_fallback"}, (None, None)),
        ("aten::std", {"cpu_fallback"}, (None, None)),
        ("aten::huber_loss", {"cpu_fallback", "argument"}, (None, None)),
        ("aten::gelu", {"argument"}, (None, None)),
        ("aten::pad", {"conditional", "other"}, (None, None)),
        ("aten::tan", {"value_range"}, (None, None)),
        ("aten::kron", set(), (None, 4)),
        ("aten::where", set(), (None, 7)),
        ("aten::matmul", {"other"}, (None, 6)),
        ("aten::prelu", set(), (1, 8)),
        ("aten::native_group_norm", {"argument"}, (2, None)),
    ],
)
def test_tells_fallbacks_ranks_and_kinds_of_remarks(operator, remarks, ranks) -> None:
    limit = limits_for(operator, "A2")
    assert limit is not None
    assert limit.remarks == remarks
    assert (limit.min_rank, limit.max_rank) == ranks


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("add", ("self",)),
        ("cat", ("tensors",)),
        ("native_layer_norm", ("input",)),
        ("_cdist_forward", ("x1",)),
        ("scaled_dot_product_attention", ("query",)),
        ("upsample_nearest2d", ("input", "self")),
    ],
)
def test_names_the_argument_that_the_dtypes_are_about(operator, arguments) -> None:
    limit = limits_for(f"aten::{operator}", "A2")
    assert limit is not None
    assert limit.arguments == arguments


# --- the file ----------------------------------------------------------------------------------


def test_the_file_says_where_it_is_from() -> None:
    source = limits.source()
    assert source["license"] == "CC-BY-4.0"
    assert source["repository"] == "https://github.com/Ascend/pytorch"
    assert len(source["commit"]) == 40
    assert source["date"] == "2026-08-21"


def test_the_file_has_the_counts_that_are_quoted() -> None:
    assert TABLE["counts"] == {
        "rows": 3249,
        "rows_with_dtypes": 1121,
        "rows_supported": {"A2": 3057, "A3": 3056, "950DT": 1484},
        "operators": 473,
        "operators_supported": {"A2": 453, "A3": 453, "950DT": 401},
        "operators_with_dtypes": {"A2": 434, "A3": 434, "950DT": 390},
    }
    assert len(TABLE["operators"]) == 473
    found = [limits_for(f"aten::{name}", "950") for name in TABLE["operators"]]
    assert sum(limit is not None and limit.status == "supported" for limit in found) == 401


def test_the_file_is_sorted_and_says_nothing_twice() -> None:
    twice = []

    def check(pairs):
        names = [name for name, _ in pairs]
        twice.extend(name for name in names if names.count(name) > 1)
        return dict(pairs)

    json.loads(FILE.read_text("utf-8"), object_pairs_hook=check)
    assert not twice
    for part in ("rows", "operators"):
        assert list(TABLE[part]) == sorted(TABLE[part])


def test_every_entry_of_the_file_has_its_form() -> None:
    chips = ["A2", "A3", "950DT"]
    dtypes = {*FLOATS, "float64", "bool", "uint16", *INTEGERS, *COMPLEX}
    kinds = {"cpu_fallback", "value_range", "argument", "conditional", "other"}
    for api, row in TABLE["rows"].items():
        assert set(row) <= {"supported", "dtypes", "without", "rank", "remarks"}, api
        assert row["supported"] == [chip for chip in chips if chip in row["supported"]], api
        for field in ("dtypes", "without"):
            value = row.get(field, {})
            texts = value if isinstance(value, dict) else dict.fromkeys(chips, value)
            assert set(texts) <= set(chips), api
            for text in texts.values():
                assert text.split() == sorted(set(text.split()) & dtypes), api
        assert set(row.get("remarks", [])) <= kinds, api
    used = [api for operator in TABLE["operators"].values() for api in operator["rows"]]
    assert set(used) == set(TABLE["rows"])
    for name, operator in TABLE["operators"].items():
        assert set(operator) == {"arguments", "rows"}, name
        assert operator["arguments"], name
        assert len(set(operator["rows"])) == len(operator["rows"]) > 0, name


# --- the script --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        loader = importlib.machinery.SourceFileLoader("vendor_tables", str(SCRIPT))
        spec = importlib.util.spec_from_loader("vendor_tables", loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["vendor_tables"] = module  # dataclass looks its module up
        loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def entry(title: str, marks: str, remark: str = "") -> str:
    names = ("Atlas A2 训练系列产品", "Atlas A3 训练系列产品", "Ascend 950DT")
    rows = [f"| <term>{name}</term> | {mark} |" for name, mark in zip(names, marks, strict=True)]
    lines = [title, "", "**原生文档**\uff1a[x](https://pytorch.org)", "", "| 硬件 | 是否支持 |"]
    lines += ["| ---- | :----: |", *rows, ""]
    if remark:
        lines += [f"**限制与说明**\uff1a {remark}", ""]
    return "\n".join([*lines, "</div>", ""])


def listed(*dtypes: str, name: str = "input") -> str:
    return f"`{name}`仅支持" + "\uff0c".join(dtypes)


MORE = "<term>Atlas A3 训练系列产品</term>额外支持fp64"

DOCUMENTS = {
    "torch.md": entry("### torch.sin", "✔✔✘", listed("fp16", "fp32"))
    + entry("### torch.cos", "✔✔✔", f"- {listed('double', 'int8')}\n- 可能回退至CPU执行")
    + entry("### torch.tan", "✔✔✔", f"- {listed('fp32')}\n- 一些别的话")
    + entry("### torch.where", "✔✔✔", "不支持8维度的shape")
    + entry("### torch.view_as_real", "✔✔✔", listed("complex64"))
    + entry("### torch.arange", "✔✔✔", listed("fp32", name="dtype"))
    + entry("### torch.set_printoptions", "✔✔✔"),
    "torch-Tensor.md": entry("### <code><i>class</i></code> torch.Tensor", "✔✔✔")
    + entry('> <font size="3">sin_()</font>', "✔✘✔", f"- {listed('bf16', name='self')}\n- {MORE}"),
    "torch-nn.md": entry(
        "### <code><i>class</i></code> torch.nn.Softmax",
        "✔✔✔",
        f"- {listed('fp32', 'fp64')}\n- <term>Ascend 950DT</term>\uff1a不支持fp64",
    ),
}


def checkout(root: Path, documents: dict[str, str]) -> Path:
    folder = root / "docs/zh/api/native_api/pytorch_2-13-0"
    folder.mkdir(parents=True)
    for name, text in documents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return root


def run(script: ModuleType, root: Path, out: Path) -> int:
    arguments = [str(root), "--commit", "c0ffee", "--date", "2026-01-01", "--out", str(out)]
    return script.main(arguments)


def test_the_script_reads_documents_of_that_form(script, tmp_path, capsys) -> None:
    out = tmp_path / "out.json"
    assert run(script, checkout(tmp_path / "pt", DOCUMENTS), out) == 0
    table = json.loads(out.read_text("utf-8"))
    everywhere = ["A2", "A3", "950DT"]
    assert table["source"]["commit"] == "c0ffee"
    assert table["rows"] == {
        "torch.Tensor.sin_": {
            "supported": ["A2", "950DT"],
            "dtypes": {"A2": "bfloat16", "A3": "bfloat16 float64", "950DT": "bfloat16"},
        },
        "torch.cos": {
            "supported": everywhere,
            "dtypes": "float64 int8",
            "remarks": ["cpu_fallback"],
        },
        "torch.nn.Softmax": {
            "supported": everywhere,
            "dtypes": {"A2": "float32 float64", "A3": "float32 float64", "950DT": "float32"},
        },
        "torch.sin": {"supported": ["A2", "A3"], "dtypes": "float16 float32"},
        "torch.tan": {"supported": everywhere, "dtypes": "float32", "remarks": ["other"]},
        "torch.where": {"supported": everywhere, "rank": [None, 7]},
    }
    assert table["operators"] == {
        "_softmax": {"arguments": ["self"], "rows": ["torch.nn.Softmax"]},
        "cos": {"arguments": ["self"], "rows": ["torch.cos"]},
        "sin": {"arguments": ["self"], "rows": ["torch.sin", "torch.Tensor.sin_"]},
        "sin_": {"arguments": ["self"], "rows": ["torch.Tensor.sin_", "torch.sin"]},
        "softmax": {"arguments": ["self"], "rows": ["torch.nn.Softmax"]},
        "tan": {"arguments": ["self"], "rows": ["torch.tan"]},
        "where": {"arguments": ["self"], "rows": ["torch.where"]},
    }
    assert table["counts"]["rows"] == 10
    assert json.loads(capsys.readouterr().out) == table["counts"]


def test_the_script_writes_the_same_bytes_twice(script, tmp_path) -> None:
    root = checkout(tmp_path / "pt", DOCUMENTS)
    for name in ("one", "two"):
        assert run(script, root, tmp_path / name) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (entry("### torch.sin", "✔?✔"), r"torch.md:8: expected one of .* for Atlas A3"),
        (
            entry("### torch.sin", "✔✔✔").replace("950DT", "960"),
            r"torch.md:9: unknown chip 'Ascend 960'",
        ),
        (
            entry("### torch.sin", "✔✔✔").replace("| <term>Ascend 950DT</term> | ✔ |\n", ""),
            r"torch.md:3: torch.sin has no mark for 950DT",
        ),
        (
            entry("### torch.sin", "✔✔✔").replace("Atlas A3", "Atlas A2"),
            r"torch.md:8: Atlas A2 .* is marked twice for torch.sin",
        ),
        (
            entry("### torch.sin", "✔✔✔", listed("fp16"))
            + entry("### torch.sin", "✔✔✔", listed("fp32")),
            r"torch.md:16: torch.sin is also at torch.md:3",
        ),
        (
            entry("### torch.sin", "✔✔✔", "<term>Ascend 960</term>额外支持bf16"),
            r"torch.md:3: torch.sin: unknown chip 'Ascend 960'",
        ),
        (entry("", "✔✔✔"), r"torch.md:3: an entry with no heading"),
        ("# nothing\n", r"holds no interface: is that a checkout of Ascend/pytorch\?"),
    ],
)
def test_the_script_names_what_is_wrong_and_writes_nothing(
    script, tmp_path, capsys, text, message
) -> None:
    out = tmp_path / "out.json"
    out.write_text("as it was")
    assert run(script, checkout(tmp_path / "pt", {"torch.md": text}), out) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert out.read_text() == "as it was"


def test_the_script_names_a_document_that_is_no_text(script, tmp_path, capsys) -> None:
    root = checkout(tmp_path / "pt", DOCUMENTS)
    (root / script.FOLDER / "torch.md").write_bytes(b"\xff\xfe\x00")
    assert run(script, root, tmp_path / "out.json") == 1
    assert "torch.md" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
