"""The structure that DESIGN fixes, as tests: imports, layers, public names, sizes, the wheel."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import accel

ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("accel/**/*.py"), *ROOT.glob("kernels/**/*.py")]
VENDORS = {"torch_npu", "triton", "onnx", "onnxruntime", "onnxscript", "matplotlib", "fastapi"}


def python(code: str, path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [path, str(ROOT), str(ROOT / "kernels")]))
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


# --- imports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "import accel",
        "import accel.cli, accel.cli.doctor, accel.cli.validate, accel.cli.compare",
        "import accel.doctor",
        "import accel.convert.engine, accel.convert.tree, accel.cli.convert, accel.cli.converting",
        "import accel.convert.pages.page, accel.convert.pages.sarif, accel.convert.pages.text",
        "from accel import convert; [getattr(convert, name) for name in convert.__all__]",
        "import accel.cli; accel.cli.main(['convert', 'rules'])",
        "import accel.cli; accel.cli.main(['convert', '--check', 'tests/test_structure.py'])",
        "import accel.report",
        "import accel.devices.chips",
        "import accel.simulate, accel.simulate.limits, accel.simulate.package, accel.cli.simulate",
        "from accel import BackendError, DeviceError, report; report.Progress",
        "import accel.cli; accel.cli.main(['doctor', '--json'])",
        "import accel.cli; accel.cli.main(['--version'])",
    ],
)
def test_works_where_torch_and_numpy_cannot_be_imported(statement, tmp_path) -> None:
    for name in ("torch", "numpy", "safetensors", *VENDORS):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is blocked')\n")
    result = python(statement, str(tmp_path))
    assert "Traceback" not in result.stderr, result.stderr
    assert result.returncode in (0, 1)


def test_importing_accel_brings_in_nothing_heavy() -> None:
    code = "import sys, accel; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert python(code).stdout.strip() == "[]"


def test_using_accel_imports_no_vendor_package(tmp_path) -> None:
    """They are made importable and fatal, so that an import at any level shows."""
    for name in VENDORS - {"torch_npu"}:  # whose import is the way to find an Ascend
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('imported')\n")
    code = (
        "import torch, accel\n"
        "for name in accel.__all__: getattr(accel, name)\n"
        "t = torch.randn(1, 1, 4, 4, requires_grad=True)\n"
        "accel.segmented_attention(t, t, t).sum().backward()\n"
        "print(accel.current_device())"
    )
    result = python(code, str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "cpu"


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    parts = [part for part in relative.parts if part != "kernels"]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Imported modules, and whether at module level (outside functions and TYPE_CHECKING)."""

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                for alias in child.names:
                    full = f"{child.module}.{alias.name}"
                    known = full if full in MODULES else child.module
                    yield known or "", top
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            else:
                inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from visit(child, top and not inner)

    yield from visit(ast.parse(path.read_text()), True)


MODULES = {module_of(path) for path in SOURCES}


def test_no_vendor_import_at_module_level() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in SOURCES
        for name, top in imports_of(path)
        if top and name.split(".")[0] in VENDORS
    ]
    assert found == []


# Which part may import which others, besides itself, accel.errors and accel._version.
ARROW = {
    "accel": {"accel.cli"},  # __main__
    "accel.errors": set(),
    "accel._version": set(),
    "accel.devices": {"torch"},
    "accel.dispatch": {"torch", "kernels.spec", "kernels.op"},
    "accel.report": set(),
    "accel.doctor": set(),
    "accel.convert": {"accel.report"},
    "accel.trace": {"accel.devices", "accel.report", "accel.simulate", "accel.tracing"},
    "accel.tracing": {"torch", "accel.devices", "accel.report", "accel.simulate"},
    "accel.attention": {
        "torch", "accel.dispatch", "accel.devices", "accel.distributed", "kernels.op",
        "kernels.shared", "kernels.spec",
    },
    "accel.alignment": {
        "torch", "accel.dispatch", "accel.devices", "accel.distributed", "accel.precision",
        "accel.report", "kernels.op", "kernels.shared", "kernels.spec",
    },
    "accel.distributed": {"torch", "accel.devices"},
    "accel.precision": {
        "torch", "accel.dispatch", "accel.devices", "accel.report", "kernels.op", "kernels.shared",
        "kernels.spec",
    },
    "accel.numerics": {
        "torch", "accel.devices", "accel.report", "kernels.shared", "kernels.vendor",
    },
    "accel.testing": {
        "torch", "accel.devices", "accel.dispatch", "accel.numerics", "accel.attention",
        "accel.precision", "accel.report", "kernels.spec", "kernels.shared",
    },
    "accel.simulate": {
        "torch", "accel.devices", "accel.report", "kernels.shared", "kernels.vendor",
    },
    "accel.cli": {
        "accel.convert", "accel.devices", "accel.doctor", "accel.numerics", "accel.report",
        "accel.simulate", "accel.testing", "accel.trace", "kernels.shared",
    },
    "kernels.shared": {"torch"},
    "kernels.vendor": {"torch", "kernels.shared"},
    "kernels.spec": {"torch", "kernels.shared"},
    "kernels.op": {"torch", "kernels.spec", "kernels.shared", "kernels.backend"},
    "kernels.backend": {"torch", "kernels.spec", "kernels.shared", "kernels.op"},
}  # fmt: skip
SHARED_IN_AN_OP = {  # used by several backends, part of the mathematics
    "arguments", "bias", "call", "differentiable", "dropout", "flops", "formula", "operators",
    "pairing", "passes", "selection", "state", "stretches", "tiles", "truth", "workspace",
}  # fmt: skip


def part_of(module: str) -> str | None:
    """The part of the library a module belongs to; None for what the arrow does not speak of."""
    head, *rest = module.split(".")
    if head in ("torch", "safetensors"):
        return "torch" if head == "torch" else None
    if head == "accel":
        return ".".join(["accel", *rest[:1]]) if rest and rest != ["__main__"] else "accel"
    if head != "accel_kernels":
        return None
    if not rest or rest[0] in {
        "avx512",
        "budgets",
        "compiled",
        "fp8",
        "masks",
        "openmp",
        "philox",
        "references",
        "triton_language",
        "sketch",
    }:
        return "kernels.shared"
    if rest[0] == "vendor":
        return "kernels.vendor"
    if rest[0] == "spec":
        return "kernels.spec"
    return "kernels.op" if len(rest) == 1 or rest[1] in SHARED_IN_AN_OP else "kernels.backend"


def test_imports_follow_the_dependency_arrow() -> None:
    wrong = []
    for path in SOURCES:
        module = module_of(path)
        part = part_of(module)
        for name, top in imports_of(path):
            target = part_of(name)
            if target in (None, part, "accel.errors", "accel._version"):
                continue
            if part == "accel.cli" and target == "torch" and not top:
                continue  # sub-commands import torch when they run
            if target not in ARROW[part or ""]:
                wrong.append(f"{module} -> {name}")
    assert wrong == []


def test_backends_import_neither_one_another_nor_accel() -> None:
    """A backend is a module of its operation, or a package of its own there."""
    for path in ROOT.glob("kernels/accel_kernels/*/**/*.py"):
        module = module_of(path)
        if part_of(module) != "kernels.backend":
            continue
        own = ".".join(module.split(".")[:3])
        for name, _ in imports_of(path):
            assert name.split(".")[0] != "accel", path
            is_own = name == own or name.startswith(f"{own}.")
            assert is_own or part_of(name) != "kernels.backend", f"{module} imports {name}"


def test_every_public_name_of_devices_is_found_in_its_module() -> None:
    from accel import devices

    tree = ast.parse((ROOT / "accel/devices/__init__.py").read_text())
    declared = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("accel")
        for alias in node.names
    }
    assert declared == {name: f"accel.devices.{home}" for name, home in devices._HOMES.items()}
    assert sorted(declared) == devices.__all__ == dir(devices)
    assert all(getattr(devices, name) is not None for name in devices.__all__)
    with pytest.raises(AttributeError, match=r"'accel\.devices' has no attribute 'nonsense'"):
        _ = devices.nonsense


def test_accel_itself_is_lazy() -> None:
    """`accel/__init__.py` imports two torch-free modules; the rest is behind TYPE_CHECKING."""
    found = {name for name, _ in imports_of(ROOT / "accel/__init__.py")}
    assert {n for n in found if n.startswith("accel")} == {"accel._version", "accel.errors"}


# --- names -------------------------------------------------------------------------------------


def test_every_public_name_is_declared_for_type_checkers_and_found() -> None:
    tree = ast.parse((ROOT / "accel/__init__.py").read_text())
    declared = {
        alias.asname: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("accel")
        for alias in node.names
    }
    public = set(accel.__all__)
    assert set(declared) == public
    for name, home in accel._HOMES.items():
        assert declared[name] == (home, name)
    for name in public:
        assert getattr(accel, name) is not None
    assert sorted(public) == accel.__all__


def test_public_names_are_as_recorded() -> None:
    """Adding or removing a public name is a decision: change tests/public_api.txt with it."""
    recorded = (ROOT / "tests/public_api.txt").read_text().split()
    assert accel.__all__ == recorded


def test_at_most_40_public_names_besides_the_flat_functions() -> None:
    flat = {n for n, home in accel._HOMES.items() if home == "accel.devices.functions"}
    assert len(set(accel.__all__) - flat) <= 40


def test_no_name_is_both_a_function_and_a_module() -> None:
    for package in [p.parent for p in SOURCES if p.name == "__init__.py"]:
        inside = {p.stem for p in package.iterdir() if p.suffix == ".py" or p.is_dir()}
        tree = ast.parse((package / "__init__.py").read_text())
        exported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if f"{node.module}.{alias.name}" not in MODULES
        }
        assert not exported & inside, package


# --- sizes and layout --------------------------------------------------------------------------


def test_files_are_small() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in SOURCES)
    assert lengths[len(lengths) // 2] <= 150
    assert lengths[-1] <= 800
    for path in ROOT.glob("tests/**/*.py"):
        assert len(path.read_text().splitlines()) <= 800, path
    for path in ROOT.glob("examples/*.py"):
        assert len(path.read_text().splitlines()) <= 150, path


def test_functions_are_short() -> None:
    lengths = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lengths.append(body[-1].end_lineno - body[0].lineno + 1 if body else 0)
    lengths.sort()
    assert lengths[len(lengths) // 2] <= 12
    assert lengths[int(len(lengths) * 0.95)] <= 60


def test_kernels_is_no_package() -> None:
    """`kernels` is the import name of Hugging Face's package; ours must not hide it."""
    assert not (ROOT / "kernels/__init__.py").exists()
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or "site-packages" in spec.origin


def test_nothing_tracked_names_a_place_on_a_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:work|root|home)/\w")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".json", ".yml", ".txt", ""} and path.is_file():
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                allowed = "tests/data" in name or "pattern = re.compile" in line
                assert allowed or not pattern.search(line), f"{name}:{number}"


# --- the wheel ---------------------------------------------------------------------------------


def test_the_wheel_holds_both_packages_and_nothing_else(tmp_path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("accel_torch-")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        assert {name.split("/")[0] for name in names} == {"accel", "accel_kernels", info}
        assert "accel = accel.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        archive.extractall(tmp_path / "site")
    for source in SOURCES:
        relative = source.relative_to(ROOT).as_posix().removeprefix("kernels/")
        assert relative in names
    assert {"accel/py.typed", "accel_kernels/py.typed"} <= set(names)
    runtime = {path.name for path in (ROOT / "accel/simulate/runtime").iterdir()}
    assert {f"accel/simulate/runtime/{name}" for name in runtime} <= set(names)
    assert "accel/simulate/limits/operator_dtypes.json" in names
    # The wheel's own contents, not the checkout, run an operation.
    code = (
        "import accel, accel_kernels, torch; t = torch.ones(1, 1, 2, 2);"
        "accel.segmented_attention(t, t, t); print(accel.__file__); print(accel_kernels.__file__)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert all(line.startswith(str(tmp_path)) for line in result.stdout.split())


# --- cost --------------------------------------------------------------------------------------


def measured(code: str, times: int = 5) -> float:
    """The least of several runs, each in a fresh process, of what `code` prints."""
    return min(float(python(code).stdout) for _ in range(times))


def test_import_is_cheap_in_modules() -> None:
    """Its time is measured by ci/full; the number of modules it loads is the same everywhere."""
    code = (
        "import sys; before = set(sys.modules); import accel;print(len(set(sys.modules) - before))"
    )
    assert measured(code, 1) <= 60
