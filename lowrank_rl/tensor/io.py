"""One file per value: tensors and a JSON header in the safetensors format. Nothing is ever unpickled."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.files import whole

SCHEMA = 1


def save(path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict) -> None:
    """Write tensors and a JSON-able header; the file appears whole or not at all.

    Raises:
        ValueError: the folder cannot be written or the disk is full; an older file of that name is untouched.
    """
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps({"kind": kind, "schema": SCHEMA, **header}, default=np.generic.item)
    meta = {"lowrank_rl": text, "digest": _digest(text, tensors)}
    with whole(path) as partial:
        try:
            partial.touch()
            mode = partial.stat().st_mode      # as everybody's umask says; safetensors lets nobody else read it
            save_file(tensors, partial, meta)
            partial.chmod(mode)
        except SafetensorError as error:     # safetensors' word for a failed write
            raise OSError(error) from error


def load(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict]:
    """Read what ``save`` wrote: (tensors, header).

    Raises:
        ValueError: no such file, not a file of this kind or schema, or a corrupt or truncated one.
    """
    path = Path(path)
    check.file(path, f"a saved {kind}")
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        header = json.loads(meta.get("lowrank_rl", "{}"))
        if "digest" in meta and meta["digest"] != _digest(meta.get("lowrank_rl", ""), tensors):
            raise ValueError("its checksum disagrees")
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a saved {kind}, got a corrupt or truncated file ({error}); "
                         "restore it or make it again") from error
    if not isinstance(header, dict) or "digest" not in meta:
        header = {}   # a safetensors file of somebody else
    if header.get("kind") != kind or header.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected a {kind} of schema {SCHEMA}, got kind {header.get('kind')!r} of schema "
                         f"{header.get('schema')!r}; make it again with this version")
    return tensors, header


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Changes with any bit of the header or of a tensor; safetensors itself does not notice flipped numbers."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
