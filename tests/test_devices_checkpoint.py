"""accel.load: checkpoints of every chip and format, whole, damaged and hostile."""

from __future__ import annotations

import os
import pickle
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import accel
from accel.devices import CpuDevice

NEW, OLD, SAFE = "zip", "legacy", "safetensors"


def content():
    return {"weight": torch.arange(300.0), "half": torch.ones(2, 3, dtype=torch.bfloat16)}


def write(path, form, state):
    if form == SAFE:
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == NEW)
    return path


@pytest.fixture(params=[NEW, OLD, SAFE])
def form(request):
    return request.param


@pytest.fixture
def file(tmp_path, form):
    return write(tmp_path / "checkpoint", form, content())


def check(state, kind="cpu"):
    assert set(state) == {"weight", "half"}
    for name, tensor in content().items():
        assert (state[name].dtype, state[name].device.type) == (tensor.dtype, kind)
        assert kind == "meta" or torch.equal(state[name].cpu(), tensor)


@pytest.mark.parametrize("where", ["cpu", torch.device("cpu"), CpuDevice(), "meta"], ids=str)
def test_every_format(file, where):
    check(accel.load(file, map_location=where), "meta" if where == "meta" else "cpu")
    check(accel.load(str(file)))


def test_onto_a_device(file, device):
    check(accel.load(file, map_location=device), device.torch_device.type)


def test_mapped(file, form):
    if form == OLD:
        with pytest.raises(ValueError, match=r"legacy format.*mmap=False"):
            accel.load(file, mmap=True)
    else:
        check(accel.load(file, mmap=True))


def test_nested_plain_values(tmp_path):
    state = {"steps": 3, "list": [1, "x", None, (2.5, True)], "rng": torch.get_rng_state()}
    loaded = accel.load(write(tmp_path / "f", NEW, state))
    assert torch.equal(loaded.pop("rng"), state.pop("rng"))
    assert loaded == state


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.005, 0.02, 0.3, 0.6, 0.9, 0.99, 0.9999])
def test_truncated(file, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"checkpoint is no complete checkpoint.*save it again"):
        accel.load(file)


@pytest.mark.parametrize("place", [10, 60, 90])
def test_bytes_overwritten(file, place):
    data = bytearray(file.read_bytes())
    data[place : place + 40] = bytes(40)
    file.write_bytes(data)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        accel.load(file)


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"hello, this is text\n" * 20, b'{"weights": [1, 2]}', b"checkpoint\nfoo\n.",
     pickle.dumps({"a": 1}), pickle.dumps([1], protocol=2), bytes(1000), b"12345678{" * 9],
)  # fmt: skip
def test_files_that_are_something_else(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no complete checkpoint") as caught:
        accel.load(path)
    assert str(path) in str(caught.value)
    assert "run code" not in str(caught.value)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("folder/a.txt", "x")
    with pytest.raises(ValueError, match="no complete checkpoint"):
        accel.load(tmp_path / "z")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        accel.load(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        accel.load(tmp_path)


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("form", [NEW, OLD, "pickle"])
def test_code_is_not_run(tmp_path, form):
    state = {"a": torch.ones(1), "b": Hostile(tmp_path / "owned")}
    if form == "pickle":
        (tmp_path / "f").write_bytes(pickle.dumps(state))
    else:
        write(tmp_path / "f", form, state)
    message = "no complete" if form == "pickle" else r"could run code.*\.mkdir\).*state_dict"
    with pytest.raises(ValueError, match=message):
        accel.load(tmp_path / "f")
    assert not (tmp_path / "owned").exists()


def test_a_whole_module_is_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "f")
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        accel.load(tmp_path / "f")


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("nonsense", accel.DeviceError, "'nonsense' is unknown"),
        pytest.param(
            "npu:0",
            accel.DeviceError,
            "'npu:0' is not on this machine",
            marks=pytest.mark.without_npu,
        ),
        (torch.device("hpu:0"), accel.DeviceError, "'hpu:0' is unknown"),
        ("cuda:99", accel.DeviceError, "cuda:99"),
        (None, TypeError, "named by a string"),
        (3, TypeError, "named by a string"),
        (lambda storage, tag: storage, TypeError, "named by a string"),
    ],
    ids=str,
)
def test_a_wrong_place_is_not_blamed_on_the_file(file, where, error, message):
    with pytest.raises(error, match=message) as caught:
        accel.load(file, map_location=where)
    assert "checkpoint" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("full"), OSError(5, "io")])
def test_nor_is_the_machine(tmp_path, monkeypatch, error):
    path = write(tmp_path / "f", NEW, content())

    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)) as caught:
        accel.load(path)
    assert caught.value is error


class ChipTensor:
    """Pickled as torch_npu pickles a tensor on the chip."""

    def __init__(self, tensor, rebuild):
        self.tensor, self.rebuild = tensor, rebuild

    def __reduce__(self):
        tensor = self.tensor
        storage = torch.storage.TypedStorage(
            wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True
        )
        arguments = (storage, 1, (2, 2), (2, 1), False, {}, {"npu_format": 29})
        return (self.rebuild, arguments)


TAGS = ["npu:0", "cuda:3", "mlu:0", "xpu"]


@pytest.mark.parametrize("form", [NEW, OLD])
@pytest.mark.without_npu
def test_saved_on_a_chip_that_is_not_here(tmp_path, monkeypatch, run_python, form):
    names = ["torch_npu", "torch_npu.utils", "torch_npu.utils.storage"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def _rebuild_npu_tensor(*arguments):
        raise AssertionError("never called while saving")

    _rebuild_npu_tensor.__module__ = names[-1]
    _rebuild_npu_tensor.__qualname__ = "_rebuild_npu_tensor"
    sys.modules[names[-1]]._rebuild_npu_tensor = _rebuild_npu_tensor
    state = {
        "chip": ChipTensor(torch.arange(6.0), _rebuild_npu_tensor),
        "plain": torch.arange(3.0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    for tag in TAGS:
        monkeypatch.setattr(torch.serialization, "location_tag", lambda storage, tag=tag: tag)
        write(tmp_path / tag, form, state)
    result = run_python(
        f"""
        import sys, torch, accel
        for tag in {TAGS}:
            state = accel.load(tag, mmap={form == NEW})
            print(state["chip"].tolist(), state["plain"].tolist(), state["parameter"].tolist())
            print({{str(tensor.device) for tensor in state.values()}}, "torch_npu" in sys.modules)
            try: torch.load(tag, map_location="cpu")
            except Exception: print("npu" in str(torch.serialization.get_safe_globals()))
        """
    )
    good = ["[[1.0, 2.0], [3.0, 4.0]] [0.0, 1.0, 2.0] [1.0, 1.0]", "{'cpu'} False", "False"]
    assert result.lines == good * len(TAGS)
