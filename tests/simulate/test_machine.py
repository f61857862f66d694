"""The settings of a simulated machine, as text and back."""

import os

import pytest

from accel.simulate.machine import VARIABLE, Machine, current_machine, parse_bytes, parse_machine


@pytest.mark.parametrize(
    "machine",
    [
        Machine(),
        Machine(chip="910A"),
        Machine(chip="950", devices=16, memory=3 * 2**30, faithful=True, strict=True, poison=True),
        Machine(report="a b/=,r.json"),
    ],
)
def test_text_and_back(machine):
    assert parse_machine(machine.to_text()) == machine


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("chip", "not NAME=VALUE"),
        ("colour=red", "a name of chip, devices"),
        ("chip=910Z", "910Z"),
        ("devices=two", "no size"),
        ("faithful=maybe", "neither yes nor no"),
        ("devices=17", "1 to 16"),
        ("", "not NAME=VALUE"),
    ],
)
def test_unreadable_text(text, expected):
    with pytest.raises(ValueError, match=expected):
        parse_machine(text)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"chip": "910"}, "910"),
        ({"devices": 0}, "1 to 16"),
        ({"memory": -1}, "positive"),
        ({"report": "a;b"}, "semicolon"),
    ],
)
def test_machines_that_cannot_be(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        Machine(**arguments)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8G", 8 << 30),
        ("512M", 512 << 20),
        ("64k", 64 << 10),
        ("7", 7),
        ("2GiB", 2 << 30),
        ("0", 0),
    ],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "1.5G", "-1", "8T", "8 G B"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


def test_the_current_one(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert current_machine() is None
    monkeypatch.setitem(os.environ, VARIABLE, "chip=950;devices=2")
    assert current_machine() == Machine(chip="950", devices=2)
    assert Machine(chip="950").memory_bytes == Machine(chip="950").profile.memory_bytes
    assert Machine(memory=5).memory_bytes == 5
