"""The data and the training of examples/align_modalities.py and examples/align_code.py."""

import ast
import logging
import re
import runpy
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
ALIGN = EXAMPLES / "align_modalities.py"


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """Examples import one another, as scripts in one folder do."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def here(monkeypatch, capsys) -> Callable[..., str]:
    """Runs an example's `main` in this process; what it printed."""

    def run_here(example: Path, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(example), *arguments])
        runpy.run_path(str(example))["main"]()
        return capsys.readouterr().out

    return run_here


@pytest.fixture(scope="module")
def characters():
    sys.path.insert(0, str(EXAMPLES))
    import character_pairs

    sys.path.remove(str(EXAMPLES))
    return character_pairs.read_characters()


@pytest.fixture(scope="module")
def functions():
    sys.path.insert(0, str(EXAMPLES))
    import code_pairs

    sys.path.remove(str(EXAMPLES))
    return code_pairs.read_functions()


# --- characters --------------------------------------------------------------------------------


def test_every_named_character_of_the_font_is_there(characters) -> None:
    count = len(characters.names)
    assert count == 5749  # of DejaVu Sans 2.37, which all releases of matplotlib ship
    assert len(set(characters.names)) == count
    assert characters.glyphs.shape == (count, 1, 32, 32)
    assert 0.0 == characters.glyphs.min() < characters.glyphs.max() == 1.0
    assert (characters.glyphs.flatten(1).amax(1) > 0).all()
    assert len(characters.features) == len(characters.spellings) == len(characters.groups) == count


def test_groups_are_the_characters_that_look_alike(characters) -> None:
    sizes = torch.bincount(characters.groups)
    assert 700 <= int(sizes[sizes > 1].sum()) <= 760  # 730 with FreeType 2.14
    for group in sizes.argsort(descending=True)[:20]:
        glyphs = characters.glyphs[characters.groups == group]
        assert (glyphs == glyphs[0]).all()
    group = dict(zip(characters.names, characters.groups.tolist(), strict=True))
    assert group["LATIN CAPITAL LETTER A"] == group["GREEK CAPITAL LETTER ALPHA"]
    assert group["LATIN CAPITAL LETTER A"] == group["CYRILLIC CAPITAL LETTER A"]
    assert group["LATIN CAPITAL LETTER A"] != group["LATIN SMALL LETTER A"]


def test_reading_twice_gives_the_same(characters) -> None:
    import character_pairs

    again = character_pairs.read_characters()
    assert again.names == characters.names
    for one, other in zip(again[1:], characters[1:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("held_out", [0, 1, 800, 5000])
def test_no_glyph_is_on_both_sides_of_a_split(held_out: int, characters) -> None:
    import character_pairs

    rows, unseen = character_pairs.split(characters.groups, held_out, seed=3)
    assert len(unseen) == held_out
    assert torch.cat([rows, unseen]).sort().values.equal(torch.arange(len(characters.names)))
    assert not torch.isin(characters.groups[unseen], characters.groups[rows]).any()
    again, other = (character_pairs.split(characters.groups, held_out, seed)[1] for seed in (3, 4))
    assert torch.equal(again, unseen)
    assert held_out == 0 or not torch.equal(other, unseen)


@pytest.mark.parametrize(
    ("letter", "low", "high"), [(" ", 250, 1125), ("A", 250, 1375), ("9", 875, 1375)]
)
def test_a_letter_sounds_as_two_tones(letter: str, low: int, high: int) -> None:
    import character_pairs

    wave = character_pairs.sound(character_pairs.spell([letter, "AB"]))
    assert wave.shape == (2, 2 * character_pairs.CHORD)
    tone, rest = wave[0].chunk(2)
    assert not rest.any()
    spectrum = torch.fft.rfft(tone).abs()
    found = spectrum.topk(6).indices  # a Hann window makes three bins of each tone
    width = character_pairs.RATE / character_pairs.CHORD
    assert set(found.tolist()) == {round(f / width) + i for f in (low, high) for i in (-1, 0, 1)}


def test_no_two_letters_sound_alike() -> None:
    import character_pairs

    waves = character_pairs.sound(torch.arange(len(character_pairs.LETTERS))[:, None])
    cosines = torch.nn.functional.normalize(waves) @ torch.nn.functional.normalize(waves).T
    assert cosines.fill_diagonal_(0).max() < 0.75


def test_features_are_the_same_in_every_process() -> None:
    import character_pairs

    found = character_pairs.hashed_features(["LATIN LETTER", "X"], buckets=1000)
    words = ["word LATIN", "word LETTER", "< LATIN", "LATIN LETTER", "LETTER >"]
    assert found[0, :5].tolist() == [zlib.crc32(word.encode()) % 999 + 1 for word in words]
    assert (found[0] > 0).all()
    assert (found[1] > 0).sum() == 4  # the word, two pairs, one part
    assert found.max() < 1000


def test_a_batch_is_augmented_by_its_generator_alone(characters) -> None:
    import character_pairs

    def batch(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return character_pairs.augmented(characters, torch.arange(64), generator)

    one, same, other = batch(1), batch(1), batch(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["image"], other["image"])
    assert not torch.equal(one["audio"], other["audio"])
    assert torch.equal(one["text"], other["text"])
    change = (one["image"] - characters.glyphs[:64]).abs().mean()
    assert 0.0 < change < characters.glyphs[:64].mean()  # moved, and still mostly there


# --- functions ---------------------------------------------------------------------------------


def test_functions_have_lost_their_docstrings(functions) -> None:
    assert 4000 < len(functions.names) < 8000
    assert len(functions.sources) == len(functions.docstrings) == len(functions.modules)
    for source, docstring in zip(functions.sources[::7], functions.docstrings[::7], strict=True):
        (function,) = ast.parse(source).body
        assert ast.get_docstring(function) != docstring
    assert "textwrap.dedent" in functions.names
    assert not any(re.search(r"\btests?\b", name.split(".")[0]) for name in functions.names)


def test_whole_modules_are_held_out(functions) -> None:
    import code_pairs

    rows, unseen = code_pairs.split(functions.modules, 0.15, seed=0)
    assert not torch.isin(functions.modules[unseen], functions.modules[rows]).any()
    assert 0.05 * len(functions.names) < len(unseen) <= 0.15 * len(functions.names)
    assert torch.equal(unseen, code_pairs.split(functions.modules, 0.15, seed=0)[1])


def test_code_and_english_share_words() -> None:
    import code_pairs

    code, text = code_pairs.hashed_words(
        ["def readXMLFile(path_names):", "Reads the XML files"], 9999
    )
    assert set(text[text > 0].tolist()) - set(code.tolist()) == set(
        code_pairs.hashed_words(["the"], 9999)[0].tolist()
    )
    assert code_pairs.hashed_words(["", "a"], 9999).tolist()[0] == [0]


# --- training ----------------------------------------------------------------------------------

SMALL = ["--batch", "96", "--policy", "compute=float32"]


def recall(output: str, query: str, target: str, k: int = 10) -> float:
    found = re.search(rf"{query} -> {target} .*?R@{k} +([\d.]+) %", output)
    assert found, output
    return float(found[1])


def test_it_learns_and_repeats_and_writes_its_page(tmp_path: Path, here) -> None:
    page = tmp_path / "page.html"
    arguments = ["--steps", "30", *SMALL, "--report", str(page)]
    first, second = (here(ALIGN, *arguments) for _ in range(2))
    numbers = [re.sub(r"\d+ CPU-seconds", "", output) for output in (first, second)]
    assert numbers[0] == numbers[1]
    chance = 100 * 10 / 800
    assert recall(first, "text", "image") > 4 * chance
    assert recall(first, "text", "audio") > 4 * chance
    assert "image -> audio  emergent" in first
    assert "zero-shot, first word of the name by image" in first
    assert "Aligned" in page.read_text("utf-8")


def test_a_loss_without_negatives_is_found_out(here, caplog) -> None:
    """Within 100 steps, while the loss itself is nearly 0."""
    with caplog.at_level(logging.WARNING, "accel"):
        here(ALIGN, "--steps", "100", "--loss", "all-ones", "--batch", "64")
    warned = [record.message for record in caplog.records if "collapsing" in record.message]
    assert warned
    assert int(re.search(r"step (\d+)", warned[0])[1]) < 100
    caplog.clear()
    with caplog.at_level(logging.WARNING, "accel"):
        here(ALIGN, "--steps", "40", "--batch", "64")
    assert not caplog.records


@pytest.mark.parametrize(
    "options",
    [
        ["--missing", "0.6"],
        ["--teacher", "0.5", "--missing", "0.6"],
        ["--loss", "sigmoid", "--pairs", "hub:image"],
        ["--pairs", "all", "--duplicates", "positive"],
    ],
    ids=" ".join,
)
def test_its_options(options: list[str], here) -> None:
    output = here(ALIGN, "--steps", "3", "--batch", "32", *options)
    assert output.count("R@1 ") == 6
    assert output.count("emergent") == (0 if "all" in options else 2)


@pytest.mark.parametrize(
    "wrong", [["--missing", "1"], ["--steps", "0"], ["--report", "no/where.html"]]
)
def test_what_cannot_work_is_said_at_once(wrong: list[str], here, capsys) -> None:
    with pytest.raises((SystemExit, OSError, ValueError)):
        here(ALIGN, "--steps", "1", *wrong)


def test_code_finds_its_docstring_better_than_before(here) -> None:
    output = here(
        EXAMPLES / "align_code.py", "--steps", "25", "--batch", "256", "--find", "read a line"
    )
    untrained, trained = output.split("\ntrained on")
    assert recall(trained, "text", "code") > 1.5 * recall(untrained, "text", "code")
    assert len(output.strip().splitlines()[-5:]) == 5
