"""Streams and events: on a CPU, on a chip that torch knows, and on whatever is here."""

from __future__ import annotations

import time

import pytest
import torch

from accel.devices import CpuDevice


def test_elapsed_time_around_real_work(device):
    start, end = device.event(timing=True), device.event(timing=True)
    matrix = torch.randn(256, 256, device=device.torch_device)
    device.synchronize()
    began = time.perf_counter()
    start.record()
    for _ in range(20):
        matrix = matrix @ matrix / 16
    end.record()
    end.synchronize()
    wall = (time.perf_counter() - began) * 1e3
    assert start.query()
    assert end.query()
    assert 0 < start.elapsed_time(end) <= wall


def test_streams_order_work(device):
    stream = device.stream()
    source = torch.arange(1000.0, device=device.torch_device)
    stream.wait_stream(device.current_stream())
    with stream:
        doubled = source * 2
        done = stream.record_event()
    done.wait()
    device.current_stream().wait_event(done)
    assert torch.equal(doubled.cpu(), torch.arange(1000.0) * 2)
    stream.synchronize()
    assert stream.query()
    assert stream.device.type == device.torch_device.type


class TestCpu:
    def test_time_is_real_and_has_a_sign(self):
        first, second = (CpuDevice().event(timing=True) for _ in range(2))
        first.record()
        time.sleep(0.02)
        second.record(CpuDevice().current_stream())
        assert 20 <= first.elapsed_time(second) < 2000
        assert second.elapsed_time(first) == -first.elapsed_time(second)
        first.record()  # a second record replaces the first
        assert first.elapsed_time(second) < 0

    def test_nothing_waits_and_entering_gives_the_stream(self):
        stream, event = CpuDevice().stream(), CpuDevice().event()
        event.wait(stream)
        event.synchronize()
        assert event.query()
        with stream as entered:
            assert entered is stream
        with pytest.raises(KeyError), stream:  # what is raised inside comes out
            raise KeyError
        assert stream.record_event(event) is event

    def test_elapsed_time_is_refused(self):
        timed, other, untimed = (CpuDevice().event(timing=t) for t in (True, True, False))
        with pytest.raises(ValueError, match="both events recorded"):
            timed.elapsed_time(other)
        timed.record()
        with pytest.raises(ValueError, match="both events recorded"):
            timed.elapsed_time(other)
        untimed.record()
        for one, two in ((timed, untimed), (untimed, timed)):
            with pytest.raises(ValueError, match="timing=True"):
                one.elapsed_time(two)
        with pytest.raises(TypeError, match="another event of a CPU"):
            timed.elapsed_time(torch.Event("cpu"))


def test_a_chip_gets_torchs_own(make_family, monkeypatch):
    made = []
    monkeypatch.setattr(torch, "Stream", lambda place: made.append(("stream", place)))
    monkeypatch.setattr(
        torch, "Event", lambda place, *, enable_timing: made.append((place, enable_timing))
    )
    monkeypatch.setattr(
        torch.accelerator, "current_stream", lambda place: made.append(("current", place))
    )
    toy = make_family("toy", 2)(1)
    toy.stream()
    toy.current_stream()
    toy.event()
    toy.event(timing=True)
    place = torch.device("xpu:1")
    assert made == [("stream", place), ("current", place), (place, False), (place, True)]
