"""The facts that the converter brings: operators by chip, packages, environment variables."""

import importlib.machinery
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from accel.convert import tables
from accel.convert.tables import environment, operators, packages
from accel.devices import chips
from accel.devices import environment as runtime

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "ci" / "support_tables"


# --- operators ---------------------------------------------------------------------------------


def test_data_parallel_is_listed_as_unsupported_everywhere() -> None:
    for chip in ("910B2", "910_9391", "950"):
        row = tables.support(chip).look_up("torch.nn.DataParallel")
        assert row is not None
        assert row.status == "unsupported"
        assert "listed as unsupported" in row.describe()
        assert "fails" not in row.describe()


def test_dtypes_of_a_row() -> None:
    row = tables.support("910B2").look_up("torch.erfinv")
    assert row is not None
    assert (row.accepts("float32"), row.accepts("torch.float64")) == (True, False)
    row = tables.support("910B2").look_up("torch.zeros")
    assert row is not None
    assert row.accepts("float64") is None  # nothing is stated


def test_a_cross_of_the_950_alone_is_not_verified() -> None:
    row = tables.support("950").look_up("torch.nn.Linear")
    assert row is not None
    assert row.status == "unverified"
    assert tables.support("910B2").look_up("torch.nn.Linear").status == "supported"


def test_what_is_not_in_the_tables() -> None:
    assert tables.support().look_up("torch.no_such_thing") is None


@pytest.mark.parametrize(
    ("inner", "public"),
    [
        ("torch.nn.modules.rnn.RNN", "torch.nn.RNN"),
        ("torch.nn.parallel.DataParallel", "torch.nn.DataParallel"),
        ("torch.nn.parallel.data_parallel.DataParallel", "torch.nn.DataParallel"),
        (
            "torch.nn.parallel.distributed.DistributedDataParallel",
            "torch.nn.parallel.DistributedDataParallel",
        ),
    ],
)
def test_inner_names_have_the_row_of_the_public_one(inner, public) -> None:
    row = tables.support().look_up(inner)
    assert row is not None
    assert row.api == public


def test_every_chip_of_a_compared_generation_has_a_column() -> None:
    columns = {"A2": "A2", "A3": "A3", "950": "950DT"}
    compared = [chip for chip in chips.CHIPS.values() if chip.generation in columns]
    assert len(compared) > 20
    for chip in compared:
        assert operators.column(chip.soc_name) == columns[chip.generation]
        assert operators.column(chip.soc_name.removeprefix("Ascend")) == columns[chip.generation]
    assert operators.column("910B") == "A2"


@pytest.mark.parametrize("name", ["310P3", "910A", "Ascend910B", "H100", "910B9", "A4", ""])
def test_chips_that_are_not_compared(name) -> None:
    with pytest.raises(ValueError, match="910B1 to 910B4"):
        tables.support(name)


def test_versions() -> None:
    newest = tables.support("A2")
    assert tables.support("A2", "2.13.1+cpu") == newest
    old = tables.support("A2", "2.11")
    assert old.version == "2.11"
    name = "torch.accelerator.memory.empty_cache"
    assert newest.look_up(name) is not None
    assert old.look_up(name) is None
    with pytest.raises(ValueError, match=re.escape("2.13, 2.12, 2.11")):
        tables.support("A2", "2.1")


def test_the_data_file_says_where_it_is_from_and_holds_names_only() -> None:
    source = operators.source()
    assert re.fullmatch(r"[0-9a-f]{40}", source["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", source["date"])
    content = (ROOT / "accel/convert/tables/operators.json").read_text(encoding="utf-8")
    assert content.isascii()  # no prose of the documents
    assert len(content) < 400_000


# --- the script --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("support_tables", str(SCRIPT))
    spec = importlib.util.spec_from_loader("support_tables", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["support_tables"] = module
    loader.exec_module(module)
    return module


def entry(name: str, marks: str, remark: str = "") -> str:
    chip_names = ("Atlas A2 训练系列产品", "Atlas A3 训练系列产品", "Ascend 950DT")
    rows = [f"| <term>{c}</term> | {m} |" for c, m in zip(chip_names, marks, strict=True)]
    lines = [f"### {name}", "", "**原生文档**\uff1a[x](https://pytorch.org)", "", *rows, ""]
    if remark:
        lines += [f"**限制与说明**\uff1a {remark}", ""]
    return "\n".join([*lines, "</div>", ""])


def checkout(folder: Path, documents: dict[str, dict[str, str]]) -> Path:
    for version, files in documents.items():
        inner = folder / "docs/zh/api/native_api" / f"pytorch_{version}"
        inner.mkdir(parents=True)
        for name, text in files.items():
            (inner / name).write_text(text, encoding="utf-8")
    return folder


def run(script, folder: Path) -> tuple[int, Path]:
    out = folder / "operators.json"
    given = [str(folder), "--commit", "c" * 40, "--date", "2026-01-01", "--out", str(out)]
    return script.main(given), out


def test_the_script_writes_versions_as_what_changed(script, tmp_path) -> None:
    new = {"torch.md": entry("torch.sin", "✔✔✘", "`input`仅支持fp32") + entry("torch.cos", "✔✘✔")}
    old = {"torch.md": entry("torch.sin", "✔✔✘", "`input`仅支持fp32")}
    folder = checkout(tmp_path, {"2-13-0": new, "2-12-0": new, "2-11-0": old})
    status, out = run(script, folder)
    assert status == 0
    table = json.loads(out.read_text())
    assert table["rows"] == {
        "torch.cos": {"not": ["A3"]},
        "torch.sin": {"not": ["950DT"], "dtypes": "float32"},
    }
    assert table["changes"] == {"2.12": {}, "2.11": {"torch.cos": None}}
    assert table["counts"]["2.13"] == {"rows": 2, "not A2": 0, "not A3": 1, "not 950DT": 1}


def test_an_interface_in_two_documents_is_read_in_its_own(script, tmp_path) -> None:
    both = {
        "Named-Tensors.md": entry("torch.Tensor.flatten", "✔✔✘", "`input`仅支持fp32"),
        "torch-Tensor.md": entry("torch.Tensor.flatten", "✔✔✔"),
    }
    folder = checkout(tmp_path, dict.fromkeys(("2-13-0", "2-12-0", "2-11-0"), both))
    status, out = run(script, folder)
    assert status == 0
    assert json.loads(out.read_text())["rows"] == {"torch.Tensor.flatten": {}}


def test_what_the_script_cannot_read_is_an_error(script, tmp_path, capsys) -> None:
    folder = checkout(tmp_path, {"2-13-0": {"torch.md": entry("torch.sin", "✔✔?")}})
    status, out = run(script, folder)
    assert status == 1
    assert not out.exists()
    assert "torch.md:" in capsys.readouterr().err
    assert run(script, tmp_path / "nothing")[0] == 1


# --- packages ----------------------------------------------------------------------------------


def test_every_package_is_complete() -> None:
    for package in packages.known_packages():
        assert package.what, package
        assert package.advice.endswith("."), package
        assert package.source, package
        assert package.verdict in ("supported", "replaceable", "none")
        assert package.imports or package.distributions, package
        for one in package.replacement:
            assert "://" not in one.link
            assert "." in one.link.partition("/")[0], one


def test_no_name_means_two_packages() -> None:
    imports = [name for package in packages.known_packages() for name in package.imports]
    assert len(imports) == len(set(imports))
    names = [name for package in packages.known_packages() for name in package.distributions]
    normal = [packages._normal(name) for name in names]
    assert sorted(name for name in set(normal) if normal.count(name) > 1) == []


def test_what_is_said_of_an_import_is_said_of_one_of_the_package() -> None:
    for package in packages.known_packages():
        said = [name for name, _ in (*package.words, *package.only_cuda)]
        assert {*said, *package.kernels} <= {*package.imports}, package
        assert {within for _, within in package.words} <= {*get_args(packages.Within)}, package


@pytest.mark.parametrize(
    ("module", "names", "package"),
    [
        ("apex.amp", None, "apex"),
        ("nvidia.dali.fn", None, "nvidia-dali"),
        ("numba", frozenset({"cuda"}), "numba.cuda"),
        ("numba", frozenset({"jit"}), None),
        ("numba.cuda", None, "numba.cuda"),
        ("kernels", frozenset({"get_kernel"}), "kernels"),
        ("kernels", None, None),
        ("kernels", frozenset({"gauss"}), None),
        ("cuda", frozenset({"cudart"}), "cuda-python"),
        ("cuda.bindings", None, "cuda-python"),
        ("cuda", frozenset({"helper"}), None),
        ("torch", None, None),
        ("apexcharts", None, None),
    ],
)
def test_which_package_an_import_is(module, names, package) -> None:
    found = packages.imported(module, names)
    assert (found.name if found else None) == package


def test_which_package_a_requirement_is() -> None:
    assert packages.distribution("Flash_Attn").name == "flash_attn"
    assert packages.distribution("nvidia-cudnn-cu12").name == "nvidia wheels"
    assert packages.distribution("numpy") is None


# --- environment variables ---------------------------------------------------------------------


def test_twins_agree_with_those_that_are_set_at_run_time() -> None:
    ours = {one.name: one.ascend for one in environment.variables() if one.kind == "twin"}
    assert ours == dict(runtime._TWINS.values())
    assert environment.ALLOCATOR_OPTIONS == runtime._ALLOCATOR_OPTIONS


@pytest.mark.parametrize(
    ("name", "value", "carries"),
    [
        ("CUDA_VISIBLE_DEVICES", "0,1", True),
        ("CUDA_VISIBLE_DEVICES", "", False),
        ("CUDA_VISIBLE_DEVICES", "-1", False),
        ("CUDA_VISIBLE_DEVICES", "GPU-8932f937", False),
        ("CUDA_LAUNCH_BLOCKING", "1", True),
        ("CUDA_LAUNCH_BLOCKING", "yes", False),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:64", True),
        ("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync", False),
        ("NCCL_DEBUG", "INFO", False),
    ],
)
def test_which_values_mean_the_same(name, value, carries) -> None:
    assert environment.variable(name).carries(value) is carries


def test_a_variable_of_a_family_has_its_own_name() -> None:
    assert environment.variable("NCCL_IB_HCA").name == "NCCL_IB_HCA"
    assert environment.variable("NCCL_SOCKET_IFNAME").ascend == "HCCL_SOCKET_IFNAME"
    assert environment.variable("USE_CUDA") is None
