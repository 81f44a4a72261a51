"""Readers of text and of JSON rows: every fault names the file and the line.

Formats: .txt, .jsonl, .json (a list), each also compressed as .gz or .zst, and .parquet.
A folder is all such files in it and below, in name order.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

from tutelage.core.errors import ConfigError, DataError

Row = dict[str, Any]
KINDS = (".txt", ".jsonl", ".json", ".parquet")
_BLANK = re.compile(r"[ \t\r\n]*")


def _kind(path: Path) -> tuple[str, str]:
    """(format suffix, compression suffix or "") of a file name; the format is "" when it is not one of KINDS."""
    suffixes = [s.lower() for s in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    kind = suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""
    return kind, packed


def corpus_files(path: str | Path) -> list[Path]:
    """The files that `path` stands for, in name order. DataError when it is missing or holds no readable format."""
    path = Path(path)
    if path.is_file():
        if not _kind(path)[0]:
            with path.open("rb") as file:
                if file.read(15) == b"SQLite format 3":
                    raise DataError(f"{path}: a database; of a store: tutelage label export {path} out=rankings.jsonl")
            raise DataError(f"{path}: unknown format, expected one of {', '.join(KINDS)} (or .gz/.zst of one)")
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    files = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith(".") and _kind(f)[0])
    if not files:
        raise DataError(f"{path}: no {', '.join(KINDS)} file in this folder")
    return files


class Meter:
    """How much of a corpus has been read, in bytes on the disk: `done` of `total`. `show` is told of every change."""

    def __init__(self, path: str | Path, show: Callable[[int], None] | None = None) -> None:
        self.total = sum(file.stat().st_size for file in corpus_files(path))
        self.done = self._files = 0
        self._show = show

    def at(self, position: int) -> None:
        """The current file is read up to here."""
        self.done = self._files + position
        if self._show:
            self._show(self.done)

    def close(self, file: Path) -> None:
        """A file is read to its end."""
        self._files += file.stat().st_size
        self.done = self._files


class _Zstd(io.RawIOBase):
    """A zstandard file as a stream. The library's own reader ends quietly on a truncated file; this one raises."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._left = b""  # decompressed, not yet handed out
        self.position = self._file.tell
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        import zstandard

        while not self._left:
            packed = self._file.read(1 << 17)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the last zstandard frame is not complete")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._left = self._frame.decompress(packed)
            if self._frame.eof:  # another frame may follow: go back to where this one ended
                self._file.seek(-len(self._frame.unused_data), io.SEEK_CUR)
                self._frame = None
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _open(path: Path) -> tuple[IO[bytes], Callable[[], int]]:
    """The file's bytes, decompressed as they are read, and a function that says how many were read from the disk."""
    packed = _kind(path)[1]
    if packed == ".gz":
        stream: Any = gzip.open(path, "rb")
        return stream, stream.fileobj.tell
    if packed == ".zst":
        raw = _Zstd(path)
        return io.BufferedReader(raw, 1 << 17), raw.position
    file = path.open("rb")
    return file, file.tell


def _lines(path: Path, meter: Meter | None = None) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, raw line); a broken compressed stream becomes a DataError at the line it broke."""
    number = 0
    try:
        stream, position = _open(path)
        with stream:
            for number, line in enumerate(stream, 1):
                if meter and number % 64 == 0:
                    meter.at(position())
                yield number, line
    except DataError:
        raise
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}:{number + 1}: cannot read on ({error}); the file may be truncated") from error
    except Exception as error:  # zlib.error and zstandard.ZstdError share no base with the above
        if type(error).__module__.split(".")[0] in ("zlib", "zstandard"):
            raise DataError(f"{path}:{number + 1}: broken compressed data ({error})") from error
        raise


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 (byte {error.start}), expected UTF-8 text") from error


def _parse(raw: bytes, where: str) -> Row | DataError:
    """One JSON object from one line, or the fault: returned, not raised, as the caller may skip the row."""
    try:
        row = json.loads(_decode(raw, where))
    except DataError as error:
        return error
    except json.JSONDecodeError as error:
        return DataError(f"{where}: not JSON ({error.msg}, column {error.colno}), expected one object a line")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets too deep
        return DataError(f"{where}: not usable JSON ({error}), expected one object a line")
    return _object(row, where)


def _object(row: Any, where: str) -> Row | DataError:
    """The row itself if it is an object of encodable text, else the fault."""
    if not isinstance(row, dict):
        return DataError(f"{where}: a JSON {type(row).__name__}, expected an object such as {{\"text\": ...}}")
    try:
        for value in row.values():  # half a surrogate pair is legal JSON, but no tokenizer can encode it
            (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).encode("utf-8")
    except UnicodeEncodeError as error:
        return DataError(f"{where}: half of a surrogate pair in the text ({error.reason}), expected whole characters")
    return row


def _json_list(path: Path, meter: Meter | None = None) -> Iterator[tuple[str, Row | DataError]]:
    """Items of a JSON list, each with the line where it begins (which a plain json.loads would not tell)."""
    text = _decode(b"".join(raw for _, raw in _lines(path)), str(path)).removeprefix("\ufeff")
    decoder = json.JSONDecoder()
    line, at = 1, 0

    def skip() -> str:
        """Step over white space; the character that follows ("" at the end)."""
        nonlocal line, at
        start, at = at, _BLANK.match(text, at).end()  # type: ignore[union-attr]
        line += text.count("\n", start, at)
        return text[at : at + 1]

    if skip() == "{":  # many sets name one-object-a-line files .json
        yield from _jsonl(path, meter)
        return
    if text[at : at + 1] != "[":
        raise DataError(f"{path}:{line}: not a JSON list, expected [{{...}}, {{...}}] or one object a line")
    at += 1
    follows = skip()
    while follows != "]":
        where = f"{path}:{line}"
        try:
            row, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg}), expected a list of objects") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not usable JSON ({error}), expected a list of objects") from error
        line, at = line + text.count("\n", at, end), end
        yield where, _object(row, where)
        follows = skip()
        if follows == ",":
            at += 1
            follows = skip()
            if follows != "]":
                continue
        elif follows == "]":
            continue
        raise DataError(f"{path}:{line}: not JSON (expected ',' or ']' after an item), expected a list of objects")


def _parquet(path: Path, meter: Meter | None = None) -> Iterator[tuple[str, Row | DataError]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                if meter:
                    meter.at(path.stat().st_size * number // max(1, file.metadata.num_rows))
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}:{number + 1}: not readable as parquet ({error})") from error


def _jsonl(path: Path, meter: Meter | None = None) -> Iterator[tuple[str, Row | DataError]]:
    for number, raw in _lines(path, meter):
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        yield where, _parse(raw, where)


def read_rows(
    path: str | Path,
    on_bad_row: Literal["stop", "skip"] = "stop",
    report: list[str] | None = None,
    meter: Meter | None = None,
) -> Iterator[tuple[str, Row]]:
    """("file:line", row) for every JSON row of a file or a folder (.jsonl, .json list, .parquet; .gz and .zst too).

    A bad row raises DataError ("stop") or is left out ("skip"), its message appended to `report`. `meter` is told how
    far the reading is.
    """
    if on_bad_row not in ("stop", "skip"):
        raise ConfigError(f"on_bad_row: {on_bad_row!r}, expected 'stop' or 'skip'")
    readers = {".jsonl": _jsonl, ".json": _json_list, ".parquet": _parquet}
    for file in corpus_files(path):
        kind = _kind(file)[0]
        if kind not in readers:
            if Path(path).is_file():
                raise DataError(f"{file}: a {kind} file has no rows, expected .jsonl, .json or .parquet")
            continue
        for where, row in readers[kind](file, meter):
            if not isinstance(row, DataError):
                yield where, row
            elif on_bad_row == "stop":
                raise row
            elif report is not None:
                report.append(str(row))
        if meter:
            meter.close(file)


def _txt(path: Path, document: str, separator: str | None, meter: Meter | None = None) -> Iterator[str]:
    """Documents of a plain text file, read line by line so that a large file never lies in memory whole."""
    kept: list[str] = []
    if separator is not None and "\n" in separator:
        yield from "".join(_txt(path, "file", None)).split(separator)
        return
    for number, raw in _lines(path, meter):
        line = _decode(raw, f"{path}:{number}").replace("\r\n", "\n")
        if number == 1:
            line = line.removeprefix("\ufeff")
        if separator is not None:
            *closed, rest = line.split(separator)
            for piece in closed:
                yield "".join([*kept, piece])
                kept = []
            kept.append(rest)
        elif document == "line":
            yield line
        elif document == "paragraph" and not line.strip():
            yield "".join(kept)
            kept = []
        else:
            kept.append(line)
    yield "".join(kept)


def read_texts(
    path: str | Path,
    document: Literal["file", "paragraph", "line"] = "file",
    separator: str | None = None,
    field: str = "text",
    on_bad_row: Literal["stop", "skip"] = "stop",
    report: list[str] | None = None,
    meter: Meter | None = None,
) -> Iterator[str]:
    """Documents of a corpus, never empty ones.

    `document` says what one document of a .txt file is: the whole file, a block between blank lines, or a line.
    A `separator` such as "<|endoftext|>" overrides it. Rows of other formats hold the document under `field`.
    Documents of files cut into pieces are stripped of surrounding blank space; a whole file is kept as it is.
    """
    if document not in ("file", "paragraph", "line"):
        raise ConfigError(f"document: {document!r}, expected 'file', 'paragraph' or 'line'")
    if separator == "":
        raise ConfigError("separator: an empty string, expected a text such as '<|endoftext|>'")
    for file in corpus_files(path):
        if _kind(file)[0] == ".txt":
            whole = document == "file" and separator is None
            for text in _txt(file, document, separator, meter):
                if text.strip():
                    yield text if whole else text.strip()
            if meter:
                meter.close(file)
            continue
        for where, row in read_rows(file, on_bad_row, report, meter):
            value = row.get(field)
            if isinstance(value, str):
                if value.strip():
                    yield value
                continue
            found = f"no {field!r}" if field not in row else f"{field!r} is a {type(value).__name__}"
            fault = f"{where}: {found}, expected an object with a string {field!r} (keys: {', '.join(row) or 'none'})"
            if on_bad_row == "stop":
                raise DataError(fault)
            if report is not None:
                report.append(fault)
