"""Ascend chips by the name that their driver gives: what each has and how it differs. No torch.

Names are compared whole, as torch_npu does: `Ascend910B` is a first-generation id, `Ascend910B1` a
second-generation one, and `Ascend910_9391` a third-generation one. Only Ascend 950 is known by its
prefix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

_GIB = 2**30
_MIB = 2**20


@dataclass(frozen=True)
class Chip:
    """One Ascend chip.

    Attributes:
        soc_name: As its driver names it, e.g. `Ascend910B2`.
        generation: 910, 310P, A2, 310B, A3 or 950.
        soc_id: The number torch_npu gives it; its rules compare these.
        memory_bytes: Device memory.
        cube_cores: Cores with a matrix unit.
        vector_cores: Separate vector cores; 0 where every core holds both units.
        l2_bytes: Second-level cache.
        bfloat16: It computes in bfloat16.
        fp8: It multiplies 8-bit floats (E4M3 and E5M2).
        saturates: By default an overflow gives the largest number and NaN gives 0.
        internal_format: By default operators may choose memory layouts of the chip's own.
        jit_compile: By default operators are compiled at run time.
        fp32_to_fp16: By default float32 products may be computed in float16.
        source: Where these facts are from, and which are assumed.
    """

    soc_name: str
    generation: str
    soc_id: int
    memory_bytes: int
    cube_cores: int
    vector_cores: int
    l2_bytes: int
    bfloat16: bool
    fp8: bool
    saturates: bool
    internal_format: bool
    jit_compile: bool
    fp32_to_fp16: bool
    source: str


# Generation, torch_npu's id, chip, memory in GiB, cube cores, vector cores, L2 in MiB, and what of
# it is assumed because the runtime's platform file of that chip leaves it out.
_ROWS: tuple[tuple[str, int, str, float, int, int, int, str], ...] = (
    ("910", 100, "910PremiumA", 32, 32, 0, 32, "memory"),
    ("910", 101, "910ProA", 32, 32, 0, 32, "memory"),
    ("910", 102, "910A", 32, 32, 0, 32, "memory"),
    ("910", 103, "910ProB", 32, 30, 0, 32, "memory"),
    ("910", 104, "910B", 32, 30, 0, 32, "memory"),
    ("310P", 200, "310P1", 24e9 / _GIB, 10, 8, 16, ""),
    ("310P", 201, "310P2", 24e9 / _GIB, 8, 7, 16, "memory, cores and L2, those of 310P3"),
    ("310P", 202, "310P3", 24e9 / _GIB, 8, 7, 16, ""),
    ("310P", 203, "310P4", 24e9 / _GIB, 8, 7, 16, "memory, cores and L2, those of 310P3"),
    ("310P", 204, "310P5", 24e9 / _GIB, 8, 7, 16, ""),
    ("310P", 205, "310P7", 24e9 / _GIB, 8, 7, 16, ""),
    ("A2", 220, "910B1", 64, 24, 48, 192, ""),
    ("A2", 221, "910B2", 64, 24, 48, 192, ""),
    ("A2", 222, "910B2C", 64, 24, 48, 192, "memory, that of 910B2"),
    ("A2", 223, "910B3", 64, 20, 40, 192, ""),
    ("A2", 224, "910B4", 32, 20, 40, 96, ""),
    ("A2", 225, "910B4-1", 32, 20, 40, 168, ""),
    ("310B", 240, "310B1", 32, 1, 1, 4, ""),
    ("310B", 241, "310B2", 8, 1, 1, 4, "memory, which differs between boards"),
    ("310B", 242, "310B3", 8, 1, 1, 4, "memory, which differs between boards"),
    ("310B", 243, "310B4", 8, 1, 1, 4, "memory, which differs between boards"),
    ("A3", 250, "910_9391", 64, 24, 48, 192, ""),
    ("A3", 251, "910_9392", 64, 24, 48, 192, ""),
    ("A3", 252, "910_9381", 64, 24, 48, 192, ""),
    ("A3", 253, "910_9382", 64, 24, 48, 192, ""),
    ("A3", 254, "910_9372", 64, 20, 40, 192, ""),
    ("A3", 255, "910_9362", 64, 20, 40, 168, ""),
    ("A3", 256, "910_9363", 32, 20, 40, 168, ""),
    ("950", 260, "950PR_9579", 128, 28, 56, 128, ""),
    ("950", 260, "950PR_957b", 112, 28, 56, 112, ""),
    ("950", 260, "950PR_957c", 84, 28, 56, 112, ""),
    ("950", 260, "950PR_957d", 96, 28, 56, 96, ""),
    ("950", 260, "950PR_9589", 128, 32, 64, 128, ""),
    ("950", 260, "950PR_958b", 112, 32, 64, 112, ""),
    ("950", 260, "950PR_9599", 128, 36, 72, 128, ""),
    ("950", 260, "950DT_9571", 144, 28, 56, 128, ""),
    ("950", 260, "950DT_9572", 96, 28, 56, 128, ""),
    ("950", 260, "950DT_9581", 144, 32, 64, 128, ""),
    ("950", 260, "950DT_9582", 96, 32, 64, 128, ""),
    ("950", 260, "950DT_9591", 144, 36, 72, 128, ""),
    ("950", 260, "950DT_9592", 96, 36, 72, 128, ""),
)

_ALIASES = {"950": "Ascend950DT_9581", "950DT": "Ascend950DT_9581", "950PR": "Ascend950PR_9589"}
_PREFIX_950 = "Ascend950"

_RULES = (
    "torch_npu: NpuVariables.cpp (id, bfloat16, Inf/NaN), EnvVariables.cpp (fp32_to_fp16), "
    "npu_sys_ctrl.cpp (internal_format), its documentation (jit_compile) and tests (FP8 from 950 "
    "on)"
)
_SIZES = "CANN runtime 681ef76, src/platform/platform_config/*.ini: memory, cores, L2"


def _chips() -> Iterator[Chip]:
    for generation, soc_id, name, memory, cubes, vectors, l2, assumed in _ROWS:
        newer = generation in {"A2", "A3", "950"}
        guesses = [assumed] if assumed else []
        if generation == "310B":
            guesses.append("jit_compile, that of 310P")
        yield Chip(
            soc_name=f"Ascend{name}",
            generation=generation,
            soc_id=soc_id,
            memory_bytes=round(memory * _GIB),
            cube_cores=cubes,
            vector_cores=vectors,
            l2_bytes=l2 * _MIB,
            bfloat16=soc_id >= 220,
            fp8=soc_id >= 260,
            saturates=not newer,
            internal_format=not newer,
            jit_compile=not newer,
            fp32_to_fp16=soc_id < 220,
            source=_source(guesses),
        )


def _source(guesses: list[str]) -> str:
    assumed = f"; assumed: {'; '.join(guesses)}" if guesses else ""
    return f"{_RULES}; {_SIZES}{assumed}"


CHIPS: dict[str, Chip] = {row.soc_name: row for row in _chips()}


def chip(soc_name: str) -> Chip:
    """The chip of this name.

    Args:
        soc_name: The driver's name (`Ascend910B2`), or that without `Ascend` (`910B2`). `950` and
            `950DT` stand for `Ascend950DT_9581`, `950PR` for `Ascend950PR_9589`. A name that begins
            with `Ascend950` and is not in `CHIPS` has the sizes of `Ascend950DT_9581`, and its
            `source` says so.

    Raises:
        TypeError: It is no string.
        ValueError: It is unknown, or is `910B`, which people say of two generations.
    """
    if not isinstance(soc_name, str):
        raise TypeError(f"a chip is named by a string such as 'Ascend910B2', not {soc_name!r}")
    if soc_name == "910B":
        raise ValueError(
            "'910B' may mean two generations: write Ascend910B for the first-generation id, or "
            "910B1, 910B2, 910B3 or 910B4 for one of the A2 chips that are called 910B"
        )
    full = soc_name if soc_name.startswith("Ascend") else f"Ascend{soc_name}"
    full = _ALIASES.get(soc_name, full)
    if full in CHIPS:
        return CHIPS[full]
    if full.startswith(_PREFIX_950):
        like = CHIPS[_ALIASES["950"]]
        return replace(
            like,
            soc_name=full,
            source=_source([f"memory, cores and L2, those of {like.soc_name}"]),
        )
    names = ", ".join(name.removeprefix("Ascend") for name in CHIPS)
    raise ValueError(
        f"unknown Ascend chip {soc_name!r}; known, each also with Ascend before it: {names}, "
        "and every name that begins with Ascend950"
    )
