"""Hand-made results of the converter, for tests of what is made from them."""

from accel.convert.finding import Entry, FileResult, Finding, Span, TreeResult

HOSTILE = "<script>alert(1)</script>"
SOURCE = "import torch\n\ntorch.cuda.synchronize()\n"
CONVERTED = "import torch\nimport accel\n\naccel.synchronize()\n"


def made(root, files):
    """Write files by name, and say where."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def finding(rule="ACC001", action="convert", line=1, *, column=1, start=0, end=1, **more):
    given = {"message": f"{rule} says so", "snippet": f"line {line}", **more}
    return Finding(rule, action, Span(start, end), line, column, **given)


def file(path="a.py", before=b"x = 1\n", after=None, findings=(), **more):
    given = {"language": "python", "lines": before.count(b"\n"), **more}
    return FileResult(
        path, before=before, after=before if after is None else after, findings=tuple(findings),
        **given,
    )  # fmt: skip


def entry(action="convert", line=1, token="cuda"):
    return Entry(token, "name", Span(0, 4), line, action, "" if action == "missing" else "A", "")


def tree(*files, roots=("src", "tests"), **more):
    return TreeResult(roots, files, **more)


def rich():
    """A tree with something of everything."""
    source = "é = t.cuda()  # 变量\r\nm = DataParallel(\r\n    m)\r\n".encode()
    python = file(
        "src/train.py",
        source,
        source.replace(b"t.cuda()", b"t.to(accel.device())"),
        [
            finding("ACC001", line=1, column=5, start=5, end=13, snippet="é = t.cuda()  # 变量"),
            finding(
                "ACC110", "flag", 2, column=5, start=29, end=50, effort="rewrite", blocker=True,
                subject="DataParallel", advice="Use DistributedDataParallel.",
                snippet="m = DataParallel(",
            ),
            finding("ACC095", "flag", 3, effort="review", subject="torch.fft.fftshift"),
            finding("ACC140", "keep", 3, message="a word of yours"),
        ],
        ledger=(entry(), entry("flag", 2), entry("keep", 3)),
    )  # fmt: skip
    shell = file(
        f"src/{HOSTILE}.sh", b"export CUDA_VISIBLE_DEVICES=0\n", language="shell",
        findings=[finding("ACC121", "flag", snippet=f"x {HOSTILE}", advice=HOSTILE,
                          subject=HOSTILE, message=HOSTILE)],
        ledger=(entry("missing", 1, HOSTILE),),
    )  # fmt: skip
    broken = file("src/old.py", b"print 1\n", error="line 1: not Python 3")
    return tree(python, shell, broken)
