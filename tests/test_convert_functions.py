"""torch.cuda's names and their imports: that each is known, and which imports stay."""

import pytest
import torch.cuda.amp
import torch.cuda.nvtx

import accel
from accel.convert.engine import convert_source
from accel.convert.options import Options
from accel.convert.rules.functions_amp import GENERIC
from accel.convert.rules.functions_questions import SILENT
from accel.convert.rules.functions_table import MODULES, TABLE, is_known, lookup

PUBLIC = sorted(
    {f"torch.cuda.{name}" for name in torch.cuda.__all__}
    | {f"torch.cuda.amp.{name}" for name in torch.cuda.amp.__all__}
    | {f"torch.cuda.nvtx.{name}" for name in torch.cuda.nvtx.__all__}
    | {f"torch.cuda.memory.{name}" for name in torch.cuda.memory.__all__}
    | {f"torch.cuda.random.{name}" for name in torch.cuda.random.__all__}
)


def convert(program: str, **options):
    result = convert_source(program.encode(), "program.py", Options(**options))
    assert result.error == ""
    assert [entry for entry in result.ledger if entry.action == "missing"] == []
    again = convert_source(result.after, "program.py", Options(**options))
    assert again.after == result.after
    return result


def text(program: str, **options) -> str:
    return convert(program, **options).after.decode()


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_known_and_becomes_or_says_something(name) -> None:
    assert is_known(name), name
    if name in MODULES:
        return
    result = convert(f"import torch\n\nx = {name}\n")
    actions = {f.action for f in result.findings if "torch.cuda" in f.snippet}
    if lookup(name).kind == "none":
        assert actions == {"flag"}
        assert all(f.advice for f in result.findings)
    else:
        assert actions == {"convert"}
        assert b"torch.cuda" not in result.after


def test_there_are_as_many_names_as_torch_has() -> None:
    assert len(torch.cuda.__all__) >= 125


def test_what_the_table_names_exists_here() -> None:
    ours = {known.function for known in TABLE.values() if known.kind not in ("none", "torch")}
    ours |= {generic.function for generic in GENERIC.values()}
    assert ours <= set(accel.__all__), ours - set(accel.__all__)
    theirs = {known.function for known in TABLE.values() if known.kind == "torch"}
    assert all(hasattr(torch, name) for name in theirs)


def test_tensor_classes_are_those_of_their_dtypes() -> None:
    for name, known in TABLE.items():
        if known.kind == "type":
            kind = name.rpartition(".")[2]
            assert getattr(torch, kind)(0).dtype is getattr(torch, known.dtype)


# --- imports -----------------------------------------------------------------------------------


def test_an_import_with_a_comment_to_keep_it_has_its_uses_converted() -> None:
    program = "from torch.amp import autocast  # accel: keep\n\nautocast('cuda')\n"
    after = text(program)
    assert "from torch.amp import autocast  # accel: keep\n" in after
    assert "accel.autocast()\n" in after


@pytest.mark.parametrize(
    "program",
    [
        "import torch\nimport torch.cuda as c\n\n__all__ = ['c']\nc.synchronize()\n",
        "import torch\nfrom torch.cuda import amp\n\n__all__ = ['amp']\namp.GradScaler()\n",
        "from torch.amp import autocast\n\n__all__ = ['autocast']\nautocast('cuda')\n",
    ],
)
def test_what_other_files_may_import_stays(program) -> None:
    kept = [line for line in program.splitlines() if "import" in line]
    assert all(line in text(program) for line in kept)


def test_where_a_comment_is_in_the_way_the_uses_are_converted() -> None:
    program = (
        "from torch.amp import (\n    autocast,  # casts\n    is_autocast_available,\n)\n\n"
        "autocast('cuda')\nis_autocast_available('cuda')\n"
    )
    result = convert(program)
    after = result.after.decode()
    assert "    autocast,  # casts\n" in after
    assert "accel.autocast()\n" in after
    assert [f.line for f in result.findings if f.rule == "ACC022"] == [1]


def test_an_import_that_is_a_test_stays() -> None:
    program = (
        "try:\n    import torch.cuda.amp as amp\n    has = True\nexcept ImportError:\n"
        "    has = False\nif has:\n    s = amp.GradScaler()\n"
    )
    assert "    import torch.cuda.amp as amp\n" in text(program)


def test_names_that_torch_keeps_to_itself_are_flagged_at_their_uses() -> None:
    result = convert("from torch.cuda import _sleep\n\n_sleep(3)\n")
    assert [(f.line, f.action) for f in result.findings] == [(1, "keep"), (3, "flag")]


def test_a_rule_that_is_switched_off_keeps_names_and_imports() -> None:
    program = "from torch.cuda import synchronize\n\nsynchronize()\n"
    assert text(program, ignore=("ACC02",)) == program
    alias = "import torch\nimport torch.cuda as c\n\nc.synchronize()\n"
    assert text(alias, ignore=("ACC020",)) == alias
    both = "import torch\nimport torch.cuda as c\n\nc.synchronize()\nc.manual_seed(1)\n"
    assert "import torch.cuda as c\n" in text(both, ignore=("ACC020",))


def test_imports_of_another_target() -> None:
    program = "from torch.cuda import set_device, synchronize\n\nset_device(0)\nsynchronize()\n"
    after = text(program, target="torch")
    assert after.startswith(
        "from torch.accelerator import set_device_index as set_device, synchronize\n"
    )
    assert text(program, target="npu").startswith(
        "import torch_npu\nfrom torch.npu import set_device, synchronize\n"
    )


def test_a_guard_that_is_kept_keeps_its_import() -> None:
    program = (
        "import torch\nfrom torch.cuda import is_available\n\nif is_available():\n"
        "    net = torch.nn.DataParallel(net)\nprint(is_available())\n"
    )
    after = text(program)
    assert "from torch.cuda import is_available\n" in after
    assert "if is_available():" in after
    assert "print(accel.is_available())" in after


def test_what_hangs_on_a_name_is_flagged_with_it() -> None:
    result = convert("import torch\n\ntorch.cuda.cudart().cudaProfilerStart()\n")
    assert [f.action for f in result.findings] == ["flag"]
    assert {entry.rule for entry in result.ledger} == {"ACC023"}


CHOICES = {
    "T = torch.cuda if torch.cuda.is_available() else torch": 1,
    "T = torch if not torch.cuda.is_available() else torch.cuda": 1,
    "c = torch.cuda if torch.cuda.device_count() > 0 and wanted else None": 1,
    "if torch.cuda.is_available():\n    T = torch.cuda\nelse:\n    T = torch": 1,
    "if torch.cuda.is_available():\n    import torch.cuda as T\nelse:\n    import torch as T": 1,
    "if torch.cuda.is_available():\n    from torch.cuda import FloatTensor\nelse:\n"
    "    from torch import FloatTensor\nx = FloatTensor(2)": 1,
    "has = torch.cuda.is_available()\nT = torch.cuda if has else torch": 1,
    "from torch.cuda import is_available\nT = torch.cuda if is_available() else torch": 1,
    "import torch.cuda as c\nT = c if c.is_available() else torch": 1,
}


@pytest.mark.parametrize("program", CHOICES)
def test_a_test_for_cuda_stays_with_the_module_that_it_chooses(program) -> None:
    before = f"import torch\n{program}\nT.manual_seed(1)\n"
    result = convert(before)
    assert result.after.decode() == before
    assert sum(f.action == "flag" for f in result.findings) == CHOICES[program]


def test_a_test_for_cuda_that_decides_on_more_is_converted() -> None:
    for program in (
        "has = torch.cuda.is_available()\nT = torch.cuda if has else torch\nprint(has)\n",
        "if torch.cuda.is_available():\n    c = torch.cuda\n    c.synchronize()\n",
        "if torch.cuda.is_available():\n    T = torch.cuda.FloatTensor\nelse:\n    T = None\n",
    ):
        assert "accel.is_available()" in text(f"import torch\n{program}")


def test_a_name_of_two_meanings_beside_one_that_moves_is_told() -> None:
    result = convert(
        "if wanted:\n    from torch.cuda import FloatTensor, Stream\nelse:\n"
        "    from torch import FloatTensor\n    from mine import Stream\nFloatTensor(2)\n"
    )
    assert b"from torch.cuda import FloatTensor\n" in result.after
    assert [(f.rule, f.line, f.column) for f in result.findings if f.action == "flag"] == [
        ("ACC025", 2, 28)
    ]


def test_an_import_that_is_another_one_elsewhere_is_told() -> None:
    result = convert(
        "try:\n    import torch.cuda.amp as amp\nexcept ImportError:\n    import mine as amp\n"
        "amp.autocast()\n"
    )
    assert ("ACC025", 2, "flag") in {(f.rule, f.line, f.action) for f in result.findings}


# --- calls whose failing is an answer ----------------------------------------------------------

QUESTIONS = [
    "try:\n    torch.cuda.current_device()\n    has = True\nexcept Exception:\n    has = False",
    "try:\n    torch.cuda.init()\nexcept (RuntimeError, AssertionError):\n    device = 'none'",
    "def f():\n  try:\n    return torch.cuda.mem_get_info()\n  except:\n    return 0, 0",
    "try:\n    torch.cuda.init()\nexcept Exception:\n    pass\nelse:\n    x = 1",
    "with contextlib.suppress(RuntimeError):\n    name = torch.cuda.get_device_name()",
    "with pytest.raises(AssertionError):\n    torch.cuda.synchronize()",
    "with self.assertRaises(RuntimeError):\n    torch.cuda.synchronize()",
]
NO_QUESTIONS = [
    "try:\n    torch.cuda.synchronize()\nexcept Exception:\n    pass",
    "try:\n    torch.cuda.synchronize()\nexcept RuntimeError as error:\n    print(error)",
    "with contextlib.suppress(RuntimeError):\n    torch.cuda.synchronize()",
    "try:\n    x = torch.cuda.current_device()\nexcept Exception:\n    raise ValueError('x')",
    "try:\n    x = torch.cuda.current_device()\nexcept Exception:\n    sys.exit(1)",
    "try:\n    x = torch.cuda.current_device()\nexcept KeyError:\n    x = None",
    "try:\n    x = torch.cuda.current_device()\nfinally:\n    x = None",
    "try:\n    pass\nexcept Exception:\n    x = torch.cuda.current_device()",
    "try:\n    x = torch.cuda.device_count()\nexcept Exception:\n    x = None",
    "try:\n    for x in y:\n        torch.cuda.synchronize()\nexcept Exception:\n    x = None",
    "try:\n    def f():\n        return torch.cuda.current_device()\nexcept Exception:\n    x = 1",
]
HEAD = "import contextlib\nimport sys\nimport pytest\nimport torch\n"


@pytest.mark.parametrize("program", QUESTIONS)
def test_a_call_whose_failing_is_an_answer_stays(program) -> None:
    result = convert(f"{HEAD}{program}\n")
    assert not result.is_changed
    assert [(f.rule, f.action) for f in result.findings] == [("ACC028", "flag")]


@pytest.mark.parametrize("program", NO_QUESTIONS)
def test_a_call_whose_failing_is_no_answer_is_converted(program) -> None:
    result = convert(f"{HEAD}{program}\n")
    assert b"torch.cuda" not in result.after
    assert {f.action for f in result.findings} == {"convert"}


ARGUMENTS = {
    "manual_seed": (0,),
    "manual_seed_all": (0,),
    "set_rng_state": (torch.ones(1, dtype=torch.uint8),),
    "set_rng_state_all": ([],),
    "set_stream": (None,),
    "stream": (None,),
    "StreamContext": (None,),
    "device_of": (torch.ones(1),),
    "custom_fwd": (print,),
    "custom_bwd": (print,),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="what raises without CUDA")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(SILENT))
def test_functions_that_are_said_to_be_silent_do_not_raise(name) -> None:
    homes = [f"torch.cuda.{name}", f"torch.cuda.amp.{name}"]
    assert any(home in TABLE for home in homes)
    home = torch.cuda if hasattr(torch.cuda, name) else torch.cuda.amp
    function = getattr(home, name, None) or getattr(torch.cuda.memory, name)
    function(*ARGUMENTS.get(name, ()))
