"""The safetensors files of a recording: one tensor read back, every claim checked."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from accel.numerics.encoding import decoded, digest_of, encoded_layout

NEXT = "record it again or copy the directory again"


def read_tensor(path: Path, digest: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """One tensor of a safetensors file, if it is what it is said to be.

    Raises:
        ValueError: It is not; the message names the file and the reason.
    """
    check_regular(path)
    try:
        # safetensors checks its header against the file's size before anything is allocated.
        with safe_open(path, framework="pt", device="cpu") as file:
            if digest not in file.keys():  # noqa: SIM118 - safe_open is no mapping
                raise ValueError(f"{path} does not hold tensor {digest[:12]}…; {NEXT}")
            stored = file.get_tensor(digest)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; {NEXT}") from error
    expected = encoded_layout(dtype, shape)
    if (stored.dtype, list(stored.shape)) != expected:
        raise ValueError(
            f"{path} holds {stored.dtype} {list(stored.shape)} as tensor {digest[:12]}… where the "
            f"index says {expected[0]} {expected[1]}; {NEXT}"
        )
    if digest_of(stored, dtype, shape) != digest:
        raise ValueError(f"{path}: tensor {digest[:12]}… has other bytes than recorded; {NEXT}")
    return decoded(stored, dtype, shape)


def check_regular(path: Path) -> None:
    """Check that `path` is a plain file.

    Raises:
        ValueError: It is missing, a symbolic link, a directory or a device.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link, which no recording holds; {NEXT}")
    if not path.is_file():
        raise ValueError(f"{path} is missing; {NEXT}")
