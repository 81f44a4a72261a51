"""TensorBoard event files, written without TensorBoard: length-framed, checksummed protocol-buffer records.

The format is small: a record is its length, the length's masked CRC-32C, the bytes, and their masked CRC-32C; an Event
message holds a wall time, a step and (tag, value) pairs.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def _table() -> list[int]:
    out = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, bits reversed
        out.append(byte)
    return out


_CRC = _table()


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and offset as the record format asks."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _event(payload: bytes, step: int | None = None) -> bytes:
    """Event: 1 wall_time (double), 2 step (int64), then the payload's own field."""
    head = b"\x09" + struct.pack("<d", time.time())
    return head + (b"" if step is None else b"\x10" + _varint(step)) + payload


class EventWriter:
    """Appends rows of scalars to one event file in `folder`."""

    def __init__(self, folder: Path, start: int = 0) -> None:
        """`start`: the first step that will be written; what an interrupted run wrote from there on is withdrawn."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / f"events.out.tfevents.{time.time_ns() // 1000}.{os.getpid()}").open("wb")
        self._write(_event(_bytes(3, b"brain.Event:2")))
        self._write(_event(_bytes(7, b"\x08\x01"), start))  # SessionLog START

    def _write(self, record: bytes) -> None:
        length = struct.pack("<Q", len(record))
        crcs = [struct.pack("<I", masked_crc(part)) for part in (length, record)]
        self._file.write(length + crcs[0] + record + crcs[1])

    def add(self, row: Mapping[str, Any]) -> None:
        """One event from a metrics row: every number but `step` becomes a scalar of that name."""
        values = b""
        for tag, value in row.items():
            if tag != "step" and isinstance(value, int | float) and abs(value) < 3e38:  # also leaves out NaN
                values += _bytes(1, _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
        if values:
            self._write(_event(_bytes(5, values), int(row.get("step", 0))))
            self._file.flush()

    def close(self) -> None:
        self._file.close()
