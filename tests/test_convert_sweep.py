"""Files that are not Python: what is converted, what is kept, what is said."""

import pytest

from accel.convert import rules as table  # noqa: F401 (before the sweep's own rules)
from accel.convert.options import Options
from accel.convert.sweep import language_of, sweep
from accel.convert.sweep.rules import EXAMPLE_FILES, RULES


def swept(text: str | bytes, path: str, **options):
    """Sweep, and check what holds for every file."""
    data = text.encode() if isinstance(text, str) else text
    result = sweep(data, path, Options(**options))
    assert result.error == ""
    assert result.before == data
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    for finding in result.findings:
        assert 0 <= finding.span.start <= finding.span.end <= len(data)
        assert (finding.action == "flag") == bool(finding.advice)
    again = sweep(result.after, path, Options(**options))
    assert again.after == result.after
    return result


def said(text: str | bytes, path: str, **options) -> list[tuple[str, str]]:
    return [(f.rule, f.action) for f in swept(text, path, **options).findings]


# --- the rules' own examples -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "example"),
    [pytest.param(r, e, id=f"{r.id}-{n}") for r in RULES for n, e in enumerate(r.examples)],
)
def test_example(rule, example) -> None:
    result = swept(example.before, EXAMPLE_FILES[rule.id])
    assert result.after.decode() == example.after
    assert (rule.id, rule.action) in {(f.rule, f.action) for f in result.findings}


@pytest.mark.parametrize(
    ("rule", "program"),
    [pytest.param(r, p, id=f"{r.id}-kept-{n}") for r in RULES for n, p in enumerate(r.kept)],
)
def test_kept(rule, program) -> None:
    result = swept(program, EXAMPLE_FILES[rule.id])
    assert not result.is_changed
    if rule.action != "convert":
        assert rule.id not in {f.rule for f in result.findings if f.action != "keep"}


def test_every_rule_has_an_example_file_and_a_number_of_its_own() -> None:
    assert set(EXAMPLE_FILES) == {rule.id for rule in RULES}
    assert len(RULES) == len(EXAMPLE_FILES)


# --- which files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("run.sh", "shell"),
        ("a/job.slurm", "shell"),
        ("tools/start.bat", "script"),
        ("Dockerfile", "docker"),
        ("docker/Dockerfile.gpu", "docker"),
        ("x.dockerfile", "docker"),
        ("docker-compose.yml", "yaml"),
        (".github/workflows/ci.yaml", "yaml"),
        ("requirements.txt", "requirements"),
        ("requirements/gpu.txt", "requirements"),
        ("requirements-dev.in", "requirements"),
        ("environment.yml", "requirements"),
        ("pyproject.toml", "requirements"),
        ("setup.cfg", "requirements"),
        ("config.json", "json"),
        ("ds.toml", "config"),
        ("a.ipynb", "notebook"),
        ("k.cu", "cuda"),
        ("k.cuh", "cuda"),
        ("a.CPP", "c++"),
        ("a.pyx", "cython"),
        ("CMakeLists.txt", "build"),
        ("Makefile", "build"),
        ("README.md", "prose"),
        ("README.txt", "prose"),
        ("train.py", None),
        ("corpus.txt", None),
        ("poetry.lock", None),
        ("package-lock.json", None),
        ("weights.bin", None),
        ("noname", None),
    ],
)
def test_language(path, language) -> None:
    assert language_of(path) == language


def test_a_file_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="language_of"):
        sweep(b"", "corpus.txt", Options())


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*EXAMPLE_FILES.values(), "a.bat", "pyproject.toml", "a.json"])
def test_empty_files(path) -> None:
    result = swept(b"", path)
    assert (result.findings, result.ledger, result.lines) == ((), (), 0)


def test_bytes_that_are_no_utf_8_stay() -> None:
    data = b"# caf\xe9\nCUDA_VISIBLE_DEVICES=0 python caf\xe9.py\n"
    result = swept(data, "run.sh")
    assert result.after == (
        b"# caf\xe9\nCUDA_VISIBLE_DEVICES=0 ASCEND_RT_VISIBLE_DEVICES=0 python caf\xe9.py\n"
    )


def test_utf_16_and_binary_files_are_errors_and_stay() -> None:
    for data in ("export CUDA_HOME=/x\n".encode("utf-16"), b"cuda\0\1\2"):
        result = sweep(data, "run.sh", Options())
        assert result.error
        assert result.after == data


def test_line_ends_and_columns() -> None:
    data = "# für\r\nexport CUDA_LAUNCH_BLOCKING=1\r\nexport X=ü CUDA_LAUNCH_BLOCKING=1"
    result = swept(data, "run.sh")
    assert result.after.decode() == (
        "# für\r\nexport CUDA_LAUNCH_BLOCKING=1 ASCEND_LAUNCH_BLOCKING=1\r\n"
        "export X=ü CUDA_LAUNCH_BLOCKING=1 ASCEND_LAUNCH_BLOCKING=1"
    )
    assert [(f.line, f.column) for f in result.findings] == [(2, 8), (3, 12)]
    assert result.lines == 3


# --- containers --------------------------------------------------------------------------------


def test_dockerfile() -> None:
    text = (
        "# cuda image\n"
        "FROM nvcr.io/nvidia/pytorch:24.01-py3 AS cuda-base\n"
        "ENV NVIDIA_VISIBLE_DEVICES=all CUDA_HOME=/usr/local/cuda\n"
        "ENV CUDA_VISIBLE_DEVICES 0\n"
        "ARG USE_CUDA=1\n"
        "RUN pip install flash-attn && \\\n"
        "    # a comment about cuda\n"
        "    nvidia-smi\n"
        "COPY cuda_kernels /src\n"
        'CMD ["python", "train.py", "--device", "cuda"]\n'
    )
    result = swept(text, "Dockerfile")
    assert not result.is_changed
    flagged = {(f.line, f.rule) for f in result.findings if f.action == "flag"}
    assert {(2, "ACC124"), (3, "ACC120"), (4, "ACC120"), (6, "ACC123"), (8, "ACC121")} <= flagged
    kept = {(f.line, f.rule) for f in result.findings if f.action == "keep"}
    assert {(1, "ACC139"), (5, "ACC139"), (9, "ACC139")} <= kept


def test_compose_and_kubernetes() -> None:
    text = (
        "services:\n  a:\n    image: nvidia/cuda:12.4.1-base\n    runtime: nvidia\n"
        "    environment:\n      - CUDA_VISIBLE_DEVICES=0\n      NCCL_DEBUG: INFO\n"
        "    limits:\n      nvidia.com/gpu: 1\n"
    )
    result = swept(text, "docker-compose.yml")
    assert {(f.line, f.rule) for f in result.findings if f.action == "flag"} == {
        (3, "ACC124"),
        (4, "ACC125"),
        (6, "ACC120"),
        (7, "ACC120"),
        (9, "ACC125"),
    }


# --- requirements ------------------------------------------------------------------------------


def test_requirements() -> None:
    text = (
        "numpy\n--extra-index-url https://download.pytorch.org/whl/cu121\ntorch==2.6.0+cu121\n"
        "apex-utils  # cuda\nflash_attn>=2 ; python_version > '3.8'\ndeepspeed\n"
        "nvidia-cudnn-cu12==9.1\nspconv-cu120\nonnxruntime-gpu\ncupy-cuda12x[all]\n"
    )
    result = swept(text, "requirements.txt")
    flagged = {f.line: f.subject for f in result.findings if f.action == "flag"}
    assert flagged == {
        2: "torch",
        3: "torch",
        5: "flash_attn",
        7: "nvidia wheels",
        8: "spconv",
        9: "onnxruntime-gpu",
        10: "cupy",
    }
    assert "onnxruntime-cann" in next(f.advice for f in result.findings if f.line == 9)


def test_conda_environment() -> None:
    text = (
        "name: cuda-env\nchannels:\n  - nvidia\ndependencies:\n  - pytorch-cuda=12.1\n"
        "  - cudatoolkit=11.3\n  - pip:\n      - flash-attn==2.5\n"
    )
    result = swept(text, "environment.yml")
    assert {f.line for f in result.findings if f.action == "flag"} == {5, 6, 8}


def test_pyproject() -> None:
    text = (
        '[project]\nname = "cuda-tools"\ndependencies = ["numpy", "flash-attn>=2", "apex"]\n'
        '[project.optional-dependencies]\ngpu = ["cupy-cuda12x"]\n'
        '[tool.poetry.dependencies]\nxformers = "^0.0.28"\n'
    )
    flagged = [f.subject for f in swept(text, "pyproject.toml").findings if f.action == "flag"]
    assert flagged == ["flash_attn", "apex", "cupy", "xformers"]


# --- configurations ----------------------------------------------------------------------------


KEPT = ("ACC139", "keep")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("device: cuda", [("ACC127", "flag")]),
        ("device: 'cuda:1'  # the second", [("ACC127", "flag")]),
        ("backend: nccl", [("ACC127", "flag")]),
        ("devices: [cuda, cpu]", [("ACC122", "flag")]),
        ("use_cuda: true", [("ACC139", "keep")]),
        ("cuda: false", [("ACC139", "keep")]),
        ("path: /mnt/cuda/x", [("ACC139", "keep")]),
        ("name: 'a # cuda'", [("ACC139", "keep")]),
        ("text: see [CUDA](https://developer.nvidia.com/cuda) first", [KEPT, KEPT]),
        ("run: wget -q https://developer.download.nvidia.com/x", [("ACC123", "flag")]),
        ("# device: cuda", [("ACC139", "keep")]),
        ("CUDA_VISIBLE_DEVICES: '0'", [("ACC120", "flag")]),
        ("  run: pip install flash-attn", [("ACC123", "flag")]),
        ("lr: 0.1", []),
    ],
)
def test_yaml(line, expected) -> None:
    assert said(line + "\n", "config.yaml") == expected


def test_json() -> None:
    text = '{\n  "device": "cuda",\n  "use_cuda": true,\n  "url": "https://x.org/cuda"\n}\n'
    assert said(text, "config.json") == [("ACC127", "flag"), ("ACC139", "keep"), ("ACC139", "keep")]


@pytest.mark.parametrize(("word", "action"), [("cuda text", "keep"), ("cuda:0", "flag")])
def test_one_line_of_json_with_much_text(word, action) -> None:
    text = '{"a": [' + ", ".join(f'"{word}"' for _ in range(2000)) + "]}"
    result = swept(text, "vocabulary.json")
    assert [finding.action for finding in result.findings] == [action]
    assert len(result.ledger) == 2000


# --- sources, builds, prose --------------------------------------------------------------------


def test_kernels_and_bindings_are_listed() -> None:
    text = (
        "// __global__ void not_this() {}\n#include <cuda_runtime.h>\n"
        "__global__ void forward_kernel(float* x) {}\n"
        "template <typename T> __global__ __launch_bounds__(256) void backward_kernel(T* x) {}\n"
        'PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("forward", &forward); }\n'
    )
    result = swept(text, "op.cu")
    (finding,) = result.findings
    assert (finding.rule, finding.blocker, finding.line) == ("ACC130", True, 3)
    assert finding.message == (
        "2 CUDA kernels: forward_kernel, backward_kernel; called from Python as forward"
    )


def test_a_source_without_cuda_says_nothing() -> None:
    assert said("int add(int a, int b) { return a + b; }\n", "a.cpp") == []
    assert said("// needs no cuda\nint x;\n", "a.h") == [("ACC139", "keep")]
    assert said("void nms_cuda(float* x);\n", "nms.h") == [("ACC131", "flag")]
    assert said("auto d = torch::kCUDA;\n", "main.cpp") == [("ACC131", "flag")]


def test_builds_and_scripts() -> None:
    (found,) = swept("# cuda\nNVCC = nvcc\nall:\n\t$(NVCC) k.cu\n", "Makefile").findings
    assert (found.rule, found.action, found.line) == ("ACC132", "flag", 2)
    assert found.message == "a build for CUDA, in 2 lines"
    assert said("# no cuda\nall:\n", "Makefile") == [("ACC139", "keep")]
    text = "rem cuda\r\nset CUDA_VISIBLE_DEVICES=0\r\nnvidia-smi\r\npython train.py --cuda\r\n"
    assert said(text, "run.bat") == [
        ("ACC139", "keep"),
        ("ACC120", "flag"),
        ("ACC121", "flag"),
        ("ACC139", "keep"),
    ]


def test_prose_is_counted() -> None:
    result = swept("# CUDA\n\nRun `nvidia-smi`.\n", "README.md")
    assert [(e.line, e.action) for e in result.ledger] == [(1, "keep"), (3, "keep")]


# --- choices of the user -----------------------------------------------------------------------


def test_rules_can_be_switched_off() -> None:
    text = "export CUDA_VISIBLE_DEVICES=0\n"
    for options in ({"ignore": ("ACC120",)}, {"select": ("ACC0",)}):
        result = swept(text, "run.sh", **options)
        assert not result.is_changed
        assert [(f.rule, f.action) for f in result.findings] == [("ACC120", "keep")]


@pytest.mark.parametrize("comment", ["# accel: keep", "# accel: keep[ACC120]"])
def test_a_comment_keeps_a_line(comment) -> None:
    assert not swept(f"export CUDA_VISIBLE_DEVICES=0  {comment}\n", "run.sh").is_changed
    other = swept("export CUDA_VISIBLE_DEVICES=0  # accel: keep[ACC121]\n", "run.sh")
    assert other.is_changed


def test_another_vendors_words_are_shown() -> None:
    text = "# npu\nexport ASCEND_RT_VISIBLE_DEVICES=0\nexport CUDA_VISIBLE_DEVICES=0\n"
    result = swept(text, "run.sh", source="npu")
    assert not result.is_changed
    assert [(f.line, f.action) for f in result.findings] == [(1, "keep"), (2, "flag")]
