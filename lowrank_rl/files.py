"""Writing files so that they appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A place to write to, beside ``path``; it becomes ``path`` when the block ends well, and vanishes otherwise.

    Raises:
        ValueError: the folder cannot be written or the disk is full; an older file of that name is untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise ValueError(f"{path}: expected a place that can be written, got '{error}'; nothing was overwritten") from error
    finally:
        with suppress(OSError):
            partial.unlink()
