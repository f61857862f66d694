"""Chip families: how they register, load from plugins, and fail without breaking others."""

from __future__ import annotations

import textwrap

import pytest

import accel
from accel.devices import AcceleratorDevice, CpuDevice, failures, find_device, registry
from accel.devices.accelerator import family_of


class TestRegister:
    @pytest.mark.parametrize("wrong", [object, CpuDevice(), "toy", None, int])
    def test_refuses_what_is_no_device(self, wrong):
        with pytest.raises(TypeError, match=r"subclass of accel\.Device"):
            accel.register_device(wrong)

    def test_names_what_is_missing(self):
        class Half(CpuDevice):
            name = accel.Device.name

        class Nameless(AcceleratorDevice):
            torch_type = "xpu"

        with pytest.raises(TypeError, match="Half does not define name"):
            accel.register_device(Half)
        with pytest.raises(TypeError, match="Nameless does not define family"):
            accel.register_device(Nameless)

    @pytest.mark.parametrize("name", ["", "to:y", "to y", 3])
    def test_refuses_a_family_that_nobody_could_name(self, name):
        bad = type("Bad", (CpuDevice,), {"family": name})
        with pytest.raises(ValueError, match=r"Bad\.family must be a name"):
            accel.register_device(bad)

    @pytest.mark.parametrize("name", ["cpu", "cuda", "npu"])
    def test_refuses_a_name_that_is_taken(self, name):
        with pytest.raises(ValueError, match=rf"'{name}' is already registered by accel\."):
            accel.register_device(type("Thief", (CpuDevice,), {"family": name}))

    @pytest.mark.without_npu
    def test_twice_is_once_and_it_decorates(self, make_family):
        toy = make_family("toy")
        assert accel.register_device(toy) is toy
        assert accel.current_device() == toy()

    def test_replaces_the_family_made_for_a_chip_without_one(self, make_family):
        registry._registry.families["toy"] = family_of("toy")
        toy = make_family("mine", torch_type="toy")
        assert "toy" not in registry._registry.families
        assert registry._registry.families["mine"] is toy

    @pytest.mark.without_npu
    def test_after_the_first_choice_it_is_seen(self, make_family):
        before = accel.current_device()
        toy = make_family("toy")
        assert before == CpuDevice()
        assert accel.current_device() == toy()


@pytest.mark.without_npu
def test_a_family_that_raises_when_counted(make_family, caplog):
    calls = []

    class Broken(CpuDevice):
        family = "broken"

        @classmethod
        def count(cls):
            calls.append(1)
            raise OSError("libvendor.so: cannot open")

    accel.register_device(Broken)
    assert accel.current_device() == CpuDevice()
    accel.available_devices()
    with pytest.raises(accel.DeviceError, match=r"libvendor\.so: cannot open.*accel doctor"):
        find_device("broken")
    (failure,) = (f for f in failures() if f.family == "broken")
    assert failure.error == "OSError: libvendor.so: cannot open"
    assert "raise OSError" in failure.traceback
    assert "Broken" in failure.source
    assert len(caplog.records) == 1  # told once,
    assert calls == [1]  # and not tried again: a vendor's import may take seconds


PLUGINS = {
    "good": "class Good(accel.devices.CpuDevice): family = 'good'; torch_type = 'xpu'",
    "raises": "raise ImportError('no vendor library')",
    "exits": "raise SystemExit(3)",
    "wrong": "Thing = 3",
    "taken": "class Taken(accel.devices.CpuDevice): family = 'cuda'",
}
ENTRIES = """
[accel.devices]
good = plugin_good:Good
raises = plugin_raises:Thing
exits = plugin_exits:Thing
wrong = plugin_wrong:Thing
missing = plugin_wrong:Nothing
absent = plugin_nowhere:Thing
cuda = plugin_taken:Taken
"""


def install(folder, entries):
    info = folder / "fakechips-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakechips\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entries))
    for name, body in PLUGINS.items():
        (folder / f"plugin_{name}.py").write_text(f"import accel\n{body}\n")


def test_plugins_good_and_broken(tmp_path, run_python):
    install(tmp_path, ENTRIES)
    result = run_python(
        """
        import logging; logging.basicConfig(format="%(message)s")
        import accel
        for _ in range(2):
            print(accel.current_device().family, [d.family for d in accel.available_devices()])
        for f in sorted(accel.devices.failures(), key=lambda f: f.family):
            print(f.family, "|", f.source, "|", f.error, "|", "Traceback" in f.traceback)
        try: accel.devices.find_device("raises")
        except accel.DeviceError as error: print(error)
        try: accel.devices.find_device("cuda")
        except accel.DeviceError as error: print(error)
        """,
        path=tmp_path,
    )
    assert result.lines[:2] == ["good ['good', 'cpu']"] * 2
    failed = [line.split(" | ") for line in result.lines[2:8]]
    assert [f[0] for f in failed] == ["absent", "cuda", "exits", "missing", "raises", "wrong"]
    errors = {f[0]: f[2] for f in failed}
    assert errors["raises"] == "ImportError: no vendor library"
    assert errors["exits"] == "SystemExit: 3"
    assert errors["wrong"].startswith("TypeError: register_device takes")
    assert errors["missing"].startswith("AttributeError")
    assert errors["absent"].startswith("ModuleNotFoundError")
    assert "already registered by accel.devices.cuda.CudaDevice" in errors["cuda"]
    assert all(f[3] == "True" and f[1].startswith("entry point ") for f in failed)
    assert "'raises' cannot be used: ImportError: no vendor library" in result.lines[8]
    # The plugin that wanted CUDA's name did not take CUDA with it.
    assert "'cuda' is not on this machine" in result.lines[9]
    for name in errors:
        assert result.errors.count(f"the device family {name!r} (") == 1


def test_a_damaged_package_breaks_nothing(tmp_path, run_python):
    install(tmp_path, "[accel.devices]\nthis line has no equals sign\n")
    result = run_python(
        "import accel; print(accel.current_device(), len(accel.devices.failures()))",
        path=tmp_path,
        TORCH_DEVICE_BACKEND_AUTOLOAD="0",  # torch's own look for plugins would not survive it
    )
    assert result.lines == ["cpu 1"]


def test_a_second_thread_waits_for_the_plugins(tmp_path, run_python):
    install(tmp_path, "[accel.devices]\ngood = plugin_good:Good\n")
    slow = tmp_path / "plugin_good.py"
    slow.write_text(f"import time; time.sleep(0.5)\n{slow.read_text()}")
    result = run_python(
        """
        import threading, time, accel
        seen = []
        look = lambda: seen.append(accel.current_device().family)
        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads: thread.start(); time.sleep(0.1)
        for thread in threads: thread.join()
        print(seen)
        """,
        path=tmp_path,
    )
    assert result.lines == ["['good', 'good']"]


@pytest.mark.parametrize("how", ["raise ImportError('libhccl.so: no such file')", "1 / 0"])
def test_torch_npu_that_does_not_load(tmp_path, run_python, how):
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text(f"print('tried')\n{how}\n")
    result = run_python(
        """
        import logging; logging.basicConfig(format="%(message)s")
        import accel
        print(accel.current_device(), accel.available_devices(), accel.is_available())
        try: accel.use_device("npu").__enter__()
        except accel.DeviceError as error: print(error)
        import os; os.environ["ACCEL_DEVICE"] = "npu:0"
        try: accel.current_device()
        except accel.DeviceError as error: print(error)
        """,
        path=tmp_path,
    )
    cause = "libhccl.so" if "hccl" in how else "ZeroDivisionError"
    assert result.lines[:2] == ["tried", "cpu [<accel cpu device cpu>] False"]
    assert all(cause in line and "accel doctor" in line for line in result.lines[2:])
    assert len(result.lines) == 4
    assert result.errors.count("the device family 'npu'") == 1
