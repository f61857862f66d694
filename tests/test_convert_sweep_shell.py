"""Shell scripts: which assignments are converted, and that nothing else is."""

import subprocess

import pytest

from accel.convert.finding import Span
from accel.convert.options import Options
from accel.convert.sweep import sweep
from accel.convert.sweep.shell_words import Command, Rest, UnclearError, split


def shell(text: str):
    result = sweep(text.encode(), "run.sh", Options())
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    assert sweep(result.after, "run.sh", Options()).after == result.after
    return result


def words(text: str) -> list[list[str]]:
    pieces = split(text, Span(0, len(text)))
    return [[w.text for w in piece.words] for piece in pieces if isinstance(piece, Command)]


# --- splitting ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b; c && d | e & f", [["a", "b"], ["c"], ["d"], ["e"], ["f"]]),
        ("a 'b; c' \"d; $(e; f)\" g\\ h", [["a", "'b; c'", '"d; $(e; f)"', "g\\ h"]]),
        ("if a; then b; fi", [["a"], ["b"], ["fi"]]),
        ("a \\\n  b\nc", [["a", "b"], ["c"]]),
        ("a \\\r\n  b\r\nc", [["a", "b"], ["c"]]),
        ("a >b 2>&1 <c", [["a", "b", "2", "1", "c"]]),
        ("a # b; c\nd#e", [["a"], ["d#e"]]),
        ("X=${Y:-a b} c", [["X=${Y:-a b}", "c"]]),
        ("echo $((1 + 2))", [["echo", "$((1 + 2))"]]),
        ("f() { a; }", [["f"], ["a"], ["}"]]),
        ("cat <<< 'x y' z", [["cat", "'x y'", "z"]]),
        ("", []),
    ],
)
def test_split(text, expected) -> None:
    assert words(text) == expected


def test_here_documents() -> None:
    text = "cat <<-'END' | wc\n\ta 'b\n\tEND\nc\n"
    pieces = list(split(text, Span(0, len(text))))
    documents = [text[slice(*p.span)] for p in pieces if isinstance(p, Rest)]
    assert documents == ["\ta 'b\n\tEND\n"]
    assert words(text) == [["cat"], ["wc"], ["c"]]


@pytest.mark.parametrize("text", ["a 'b", 'a "b', "a $(b", "a ${b", "a `b", "cat <<E\nx\n"])
def test_what_is_never_closed(text) -> None:
    with pytest.raises(UnclearError, match="never closed"):
        words(text)


# --- assignments -------------------------------------------------------------------------------

A = "CUDA_VISIBLE_DEVICES"
B = "ASCEND_RT_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{A}=0 python x.py", f"{A}=0 {B}=0 python x.py"),
        (f"{A}='0,1' python x.py", f"{A}='0,1' {B}='0,1' python x.py"),
        (f"{A}=$GPU python x.py", f"{A}=$GPU {B}=$GPU python x.py"),
        (f'{A}="${{GPU:-0}}" python x', f'{A}="${{GPU:-0}}" {B}="${{GPU:-0}}" python x'),
        (f"X=1 {A}=0 Y=2 python x.py", f"X=1 {A}=0 {B}=0 Y=2 python x.py"),
        (f"env {A}=0 python x.py", f"env {A}=0 {B}=0 python x.py"),
        (f"export {B}=1\nenv {A}=0 python", f"export {B}=1\nenv {A}=0 {B}=0 python"),
        (f"export {A}=0,1 # two", f"export {A}=0,1 {B}=0,1 # two"),
        (f"declare -x {A}=0", f"declare -x {A}=0 {B}=0"),
        (f"for i in 0 1; do {A}=$i ./a & done", f"for i in 0 1; do {A}=$i {B}=$i ./a & done"),
        (f"(cd a && {A}=0 ./b)", f"(cd a && {A}=0 {B}=0 ./b)"),
        (f"{A}=0 \\\n  python x.py", f"{A}=0 {B}=0 \\\n  python x.py"),
        (f"unset {A}", f"unset {A} {B}"),
        (
            "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True "
            "PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
        ),
    ],
)
def test_converted(before, after) -> None:
    result = shell(before + "\n")
    assert result.after.decode() == after + "\n"
    converted = [f for f in result.findings if f.action == "convert"]
    assert [f.rule for f in converted] == ["ACC120"]


@pytest.mark.parametrize(
    "text",
    [
        f"{A}= python x.py",
        f"{A}=-1 python x.py",
        f"{A}=GPU-12 python x.py",
        f"{A}=`pick` python x.py",
        f"{A}=$(pick) python x.py",
        f"{A}=${A} python x.py",
        f"{A}=${{GPUS[0]}} python x.py",
        f"{A}=0$X python x.py",
        f"python x.py {A}=0",
        f"echo {A}=0",
        f"sed -i 's/{A}=0/{A}=1/' run.sh",
        f"bash -c '{A}=0 python x.py'",
        f"docker run -e {A}=0 image",
        f"{A}=0",
        f"# {A}=0 python x.py",
        f"cat <<E\n{A}=0 python x.py\nE",
        f"x='\n{A}=0 python x.py\n'",
        f"{B}=1 {A}=0 python x.py",
        f"export {B}=0\nexport {A}=0",
        f"export {A}=0\nexport {B}=0",
        f"unset {A} {B}",
        f"CUDA_VISIBLE_DEVICES_BACKUP=0 MY_{A}=1 python x.py",
        "NCCL_DEBUG=INFO python x.py",
        "export CUDA_HOME=/usr/local/cuda",
        "python train.py --device cuda --cuda=1 cuda:0 nccl",
        f"echo 'unclosed\n{A}=0 python x.py",
    ],
)
def test_not_converted(text) -> None:
    assert not shell(text + "\n").is_changed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("N=$(nvidia-smi -L | wc -l)", "ACC121"),
        ("/usr/bin/nvidia-smi", "ACC121"),
        ("which nvcc && make", "ACC121"),
        ("python x.py --device=cuda:$RANK", "ACC122"),
        ("docker run --gpus all image", "ACC125"),
        ("module load gcc/12 cuda/11.8", "ACC123"),
        ("conda install cudatoolkit=11.3", "ACC123"),
        ("sudo apt-get install -y libcudnn8", "ACC123"),
        ("python -m pip install apex-x xformers", "ACC123"),
        (f"mpirun -x {A} python x.py", "ACC120"),
        ("export PATH=/usr/local/cuda/bin:$PATH", "ACC120"),
        ("if [ -n $CUDA_HOME ]; then a; fi", "ACC120"),
        (f"{A}=$(pick) python x.py", "ACC120"),
        ("echo 'unclosed cuda", "ACC138"),
    ],
)
def test_flagged(text, expected) -> None:
    assert expected in [f.rule for f in shell(text + "\n").findings if f.action == "flag"]


@pytest.mark.parametrize(
    "text",
    [
        "# run on cuda",
        "echo using cuda",
        "python train_cuda.py --cuda --no-cuda --use_cuda=1 --out runs/cuda",
        "USE_CUDA=${USE_CUDA:-False}",
        'CUDA_FLAG="--cuda"; python x.py $CUDA_FLAG',
        "cp /data/cuda/x y",
        "CUDA_DEVICE_ORDER=PCI_BUS_ID python x.py",
    ],
)
def test_kept(text) -> None:
    result = shell(text + "\n")
    assert {f.action for f in result.findings} == {"keep"}


def test_the_converted_script_sets_both(tmp_path) -> None:
    """In a real shell: the same as before, and the twin beside it."""
    show = f"sh -c 'echo \"${A}/${B}\"'"
    text = f"GPU=3\n{A}=0,1 {show}\n{A}=$GPU {show}\nexport {A}='2'\n{show}\nunset {A}\n{show}\n"
    script = tmp_path / "run.sh"
    script.write_bytes(shell(text).after)
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0,1/0,1", "3/3", "2/2", "/"]
