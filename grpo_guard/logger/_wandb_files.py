"""Reads the files that W&B writes offline, record by record.

A file is a log in LevelDB's format: 7 bytes of header, then blocks of 32 KiB with chunks of a
checksum (4 bytes), a length (2 bytes), a type (1 byte) and data. A record is one chunk or several.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER = 7
"""Bytes of the header of a file, and of that of a chunk."""
BLOCK = 32_768
"""Bytes of a block."""
ENDS = (1, 4)
"""Types of chunks that end a record: it has one chunk only, or this is its last."""


def read_records(file: Path) -> Iterator[Any]:
    """Yield the records of a file as W&B's protobuf messages, up to where it breaks off."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        chunk = data[position + HEADER : position + HEADER + length]
        if kind == 0 or len(chunk) < length:
            return
        position += HEADER + length
        parts += chunk
        if kind in ENDS:
            yield Record.FromString(parts)
            parts = b""


def last_step(folder: Path, run_id: str) -> int:
    """Return the last step of a run that the files in W&B's folder have; -1: none."""
    files = folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb")
    steps = [
        record.history.step.num
        for file in files
        for record in read_records(file)
        if record.WhichOneof("record_type") == "history"
    ]
    return max(steps, default=-1)
