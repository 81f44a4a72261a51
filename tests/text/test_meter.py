"""How far the reading of a corpus is, in bytes on the disk, for every format."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tutelage.text.corpus import Meter, read_texts

TEXTS = [f"document {n} of many, {n * 7919}" for n in range(5000)]
LINES = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS).encode()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet", "."])
def test_it_grows_to_the_whole_size(tmp_path, name):
    made = {
        "a.txt": "\n\n".join(TEXTS).encode(),
        "a.jsonl": LINES,
        "a.jsonl.gz": gzip.compress(LINES),
        "a.jsonl.zst": zstandard.compress(LINES),
        "a.json": json.dumps([{"text": t} for t in TEXTS]).encode(),
    }
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / name)
    for file, data in made.items():
        if name in (".", file):
            (tmp_path / file).write_bytes(data)
    meter = Meter(tmp_path / name)
    seen = [meter.done for _ in read_texts(tmp_path / name, "paragraph", meter=meter)]
    assert meter.done == meter.total == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert seen == sorted(seen) and len(seen) == 5000 * (5 if name == "." else 1)
    if name not in ("a.json", "a.jsonl.zst"):  # the whole list before its first item; so small a file in one piece
        assert 0.2 < seen[len(seen) // 2] / meter.total < 0.95
