from __future__ import annotations

import io

import pytest

from accel.report import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_drawn_at_most_ten_times_a_second() -> None:
    clock, stream = Clock(), Terminal()
    with Progress(1000, "train", stream=stream, clock=clock) as progress:
        for _ in range(1000):
            clock.now += 0.002
            progress.advance(text="loss 1.5")
    drawn = stream.getvalue().split("\r")[1:]
    assert 19 <= len(drawn) <= 21
    assert drawn[-1].rstrip() == f"train  {'█' * 30}  1,000/1,000  500 step/s  loss 1.5"
    assert stream.getvalue().endswith("\n")


def test_a_shorter_line_wipes_the_longer_one() -> None:
    clock, stream = Clock(), Terminal()
    progress = Progress(10, stream=stream, clock=clock)
    for words in ("a very long text", "short"):
        clock.now += 1
        progress.advance(text=words)
    first, second = stream.getvalue().split("\r")[1:]
    assert len(second) >= len(first.rstrip())


def test_a_log_gets_a_plain_line_every_ten_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(100, "train", unit="batch", stream=stream, clock=clock) as progress:
        for _ in range(25):
            clock.now += 1
            progress.advance()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "train  10/100  1 batch/s",
        "train  20/100  1 batch/s",
        "train  25/100  1 batch/s",
    ]


def test_the_last_state_is_printed_once() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(10, stream=stream, clock=clock) as progress:
        clock.now += 10
        progress.advance(10)
    assert stream.getvalue() == "10/10  1 step/s\n"


def test_no_steps_and_too_many_steps_are_drawn_too() -> None:
    clock, stream = Clock(), Terminal()
    with Progress(0, stream=stream, clock=clock):
        pass
    with Progress(1, stream=stream, clock=clock) as progress:
        clock.now += 1
        progress.advance(3)
    assert "0/0" in stream.getvalue()
    assert f"{'█' * 30}  3/1" in stream.getvalue()
    with pytest.raises(ValueError, match="total must be at least 0, got -1"):
        Progress(-1)


def test_an_exception_comes_through_and_ends_the_line() -> None:
    stream = Terminal()

    def work() -> None:
        with Progress(3, stream=stream) as progress:
            progress.advance()
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert stream.getvalue().endswith("\n")


def test_only_one_of_several_processes_draws() -> None:
    stream = Terminal()
    with Progress(2, stream=stream, enabled=False) as progress:
        progress.advance(2)
    assert (progress.done, stream.getvalue()) == (2, "")
