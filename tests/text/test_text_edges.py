"""Text: foreign templates and tokenizers, broken files of every format, document marks, writers that were killed."""

import gzip
import json

import numpy as np
import pytest
import zstandard
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tutelage.core.errors import ConfigError, DataError, RunError
from tutelage.text import chat, corpus, loader, shards, tokenizer

TEXTS = ["The cat sat on the mat.", "红楼梦里的人物很多。", "User and assistant talk.\n\nFine."] * 20
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi 红"},
    {"role": "assistant", "content": "你好, cat."},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "Fine."},
]


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train_tokenizer(TEXTS, 320)


@pytest.fixture
def llama():
    """A small tokenizer of Llama's kind: pieces with a blank in front, bytes for the rest, bos before every text."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{b:02X}>": 3 + b for b in range(256)}, "▁": 259, "a": 260}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_foreign_template_masks_what_the_assistant_adds(tok):
    other = tokenizer.train_tokenizer(TEXTS, 320)
    other.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    other.chat_template = CHATML
    assert not chat.ensure_chat(other)
    ids, mask = chat.encode_chat(other, TURNS)
    assert ids == other.apply_chat_template(TURNS, return_dict=True)["input_ids"]
    assert other.decode([i for i, m in zip(ids, mask) if m]) == "你好, cat.<|im_end|>Fine.<|im_end|>"
    prompt = chat.encode_prompt(other, TURNS[:2])
    assert ids[: len(prompt)] == prompt and mask.index(1) == len(prompt)
    other.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(DataError, match="rewrites earlier turns"):
        chat.encode_chat(other, TURNS)


def test_plain_llama_tokenizer_learns_to_chat(llama):
    before = tokenizer.fingerprint(llama)
    with pytest.raises(DataError, match="ensure_chat"):
        chat.encode_chat(llama, TURNS)
    assert chat.turn_end_id(llama) == llama.eos_token_id
    assert chat.ensure_chat(llama) and not chat.ensure_chat(llama)
    assert tokenizer.ensure_pad(llama) and not tokenizer.ensure_pad(llama)
    assert llama.pad_token_id != llama.eos_token_id
    assert tokenizer.fingerprint(llama) == before
    ids, mask = chat.encode_chat(llama, TURNS)
    out = llama.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    assert ids == out["input_ids"] and ids.count(llama.bos_token_id) == 1
    assert sum(i == chat.turn_end_id(llama) and m for i, m in zip(ids, mask)) == 2
    assert chat.encode_prompt(llama, "aa")[0] == llama.bos_token_id
    assert chat.encode_prompt(llama, "") == [llama.bos_token_id]


def test_added_tokens_keep_shards_valid(tok, tmp_path):
    other = tokenizer.train_tokenizer(TEXTS, 320)
    shards.write_shards(tmp_path / "s", tokenizer.encode_documents(other, TEXTS), other)
    other.add_tokens(["<|extra|>"], special_tokens=True)
    assert shards.TokenShards(tmp_path / "s", other).tokens
    assert tokenizer.fingerprint(tok) == tokenizer.fingerprint(other)  # training is deterministic


def test_encode_documents_close_with_eos_and_keep_markers_as_text(tok):
    texts = ["a cat", "x<|endoftext|>y", ""]
    rows = list(tokenizer.encode_documents(tok, texts, batch=2))
    assert [r[-1] for r in rows] == [tok.eos_token_id] * 3 and [r.count(tok.eos_token_id) for r in rows] == [1] * 3
    assert [tok.decode(r[:-1]) for r in rows] == texts


def test_max_length_cuts_the_end(tok):
    ids, mask = chat.encode_chat(tok, TURNS)
    assert chat.encode_chat(tok, TURNS, 7) == (ids[:7], mask[:7])


@pytest.mark.parametrize(
    "row",
    [{"q": 1}, {"messages": []}, {"messages": ["x"]}, {"messages": [{"role": "tool", "content": "x"}]}, "no turns", [],
     {"prompt": 3}, {"messages": [{"role": "user", "content": None}]}, {"instruction": None}],
)  # fmt: skip
def test_rows_that_are_no_chat(row):
    with pytest.raises(DataError, match="chat: "):
        chat.as_messages(row)


def test_more_row_formats():
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "system": "s"}
    assert chat.as_messages(parts) == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert chat.as_messages({"prompt": TURNS[:2], "completion": TURNS[2:3]}) == TURNS[:3]
    assert chat.as_messages({"instruction": "do", "input": "x"}) == [{"role": "user", "content": "do\n\nx"}]
    long = chat.as_messages("\n\nHuman: a\n\nb\n\nAssistant: c\n\nHuman: d\n\nAssistant:")
    assert [m["content"] for m in long] == ["a\n\nb", "c", "d", ""]


LINES = b"".join(b'{"text": "%d"}\n' % (n * 7919) for n in range(5000))


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.jsonl.zst", zstandard.compress(LINES)[:9000], "truncated"),
        ("a.jsonl.zst", LINES, ":1: broken compressed"),
        ("a.jsonl.gz", gzip.compress(LINES)[:3000], "truncated"),
        ("a.jsonl", b'{"text": "\\ud800"}', ":1: half of a surrogate"),
        ("a.jsonl", b'{"text": "a"}\n' + b"[" * 99999, ":2: not usable JSON"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", ":1: not usable JSON"),
        ("a.jsonl", b"\n\xff\n", ":2: not UTF-8"),
        ("a.json", b'[{"text": "a"},\n\n3]', ":3: a JSON int"),
        ("a.json", b'[{"text": "a"}\n{"text": "b"}]', ":2: not JSON"),
        ("a.json", b'[{"text": "a"},\n', ":2: not JSON"),
        ("a.json", b"3", "not a JSON list"),
        ("a.parquet", b"PAR1", ":1: not readable as parquet"),
        ("a.txt", b"ok\n\xff\xfe", ":2: not UTF-8"),
        ("a.csv", b"x", "unknown format"),
    ],
)
def test_broken_files_are_named(tmp_path, name, data, says):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        list(corpus.read_texts(path))
    assert str(caught.value).startswith(str(path)) and says in str(caught.value)


def test_good_files_of_every_format(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES) + zstandard.compress(b'{"text": "end"}'))
    texts = list(corpus.read_texts(tmp_path / "a.jsonl.zst"))
    assert len(texts) == 5001 and texts[-1] == "end"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["p", None]}), tmp_path / "b.parquet")
    report: list[str] = []
    assert list(corpus.read_texts(tmp_path / "b.parquet", on_bad_row="skip", report=report)) == ["p"]
    assert "b.parquet:2: 'text' is a NoneType" in report[0]
    (tmp_path / "c.json").write_text('\ufeff[{"text": "c",\n"n": 1},\n{"text": "d"}]', encoding="utf-8")
    assert [w.rsplit(":", 1)[1] for w, _ in corpus.read_rows(tmp_path / "c.json")] == ["1", "3"]
    (tmp_path / "d.json").write_text('{"text": "one"}\n{"text": "two"}')
    assert list(corpus.read_texts(tmp_path / "d.json")) == ["one", "two"]
    (tmp_path / "e.txt").write_bytes("第一\r\n***\r\n第二".encode())
    assert list(corpus.read_texts(tmp_path / "e.txt", separator="\n***\n")) == ["第一", "第二"]
    with pytest.raises(ConfigError):
        list(corpus.read_texts(tmp_path / "e.txt", "page"))


def test_documents_marked_in_blocks(tok, tmp_path):
    shards.write_shards(tmp_path / "s", [[5] * 3, [6] * 4, [7] * 5], tok, shard_tokens=5)
    blocks = loader.BlockLoader(shards.TokenShards(tmp_path / "s"), 2, 6, mark_documents=True, epochs=1)
    batch = next(blocks)
    row = int(batch["input_ids"][:, 0].argmin())  # the block that begins with the first document
    assert batch["input_ids"][row].tolist() == [5, 5, 5, 6, 6, 6]
    assert batch["document_ids"][row].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["position_ids"][row].tolist() == [0, 1, 2, 0, 1, 2]
    assert batch["labels"][row].tolist() == [-100, 5, 5, -100, 6, 6]
    assert batch["document_ids"][1 - row].tolist() == [0, 1, 1, 1, 1, 1]
    with pytest.raises(StopIteration):
        next(blocks)


def test_every_rank_takes_every_step(tok, tmp_path):
    shards.write_shards(tmp_path / "s", [list(range(25))], tok)
    data = shards.TokenShards(tmp_path / "s")
    ranks = [list(loader.BlockLoader(data, 4, 5, rank=r, world_size=4, epochs=1)) for r in range(4)]
    assert [len(r) for r in ranks] == [2] * 4
    real = np.concatenate([b["input_ids"][(b["labels"] != -100).all(1)].numpy() for r in ranks for b in r])
    assert sorted(real.ravel().tolist()) == list(range(25))
    rows = [{"input_ids": [n, n], "labels": [n, n]} for n in range(1, 6)]
    for step in zip(*(loader.RowLoader(rows, batch_size=4, rank=r, world_size=2, epochs=1) for r in range(2))):
        assert all(b["input_ids"].shape[0] >= 1 for b in step)
    with pytest.raises(ConfigError):
        loader.BlockLoader(data, 3, 5, world_size=2)


def test_rows_refused():
    row = {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}
    for bad in ({"batch_size": 1, "token_budget": 9}, {}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            loader.RowLoader([row], **bad)
    with pytest.raises(DataError, match="token_budget"):
        loader.RowLoader([row], token_budget=2)
    with pytest.raises(DataError, match="no rows"):
        loader.RowLoader([], batch_size=1)
    with pytest.raises(DataError, match="labels"):
        loader.RowLoader([{"input_ids": [1], "labels": []}], batch_size=1)
    with pytest.raises(DataError, match="row 0 has 3"):
        loader.pack_rows([row], 2)


def test_packing_is_tight():
    lengths = [6, 5, 4, 3, 2]
    packed = loader.pack_rows([{"input_ids": [n] * n, "labels": [n] * n} for n in lengths], 10)
    assert sorted(len(p["input_ids"]) for p in packed) == [10, 10]


def test_writers_that_failed_leave_nothing(tok, tmp_path, monkeypatch):
    dead = tmp_path / ".s.999999999.part"
    dead.mkdir()
    shards.write_shards(tmp_path / "s", [[1, 2]], tok)

    def documents():
        yield [3]
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left"):
        shards.write_shards(tmp_path / "s", documents(), tok)
    with pytest.raises(DataError, match="id 9999"):
        shards.write_shards(tmp_path / "s", [[9999]], tok)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert shards.TokenShards(tmp_path / "s").read(0, 2).tolist() == [1, 2]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("dear")
    with pytest.raises(DataError, match="not a folder of token shards"):
        shards.write_shards(tmp_path / "other", [[1]], tok)


def test_broken_shard_folders(tok, tmp_path):
    with pytest.raises(DataError, match="no token shards"):
        shards.TokenShards(tmp_path)
    shards.write_shards(tmp_path / "s", [[1, 2], [3]], tok)
    opened = shards.TokenShards(tmp_path / "s")
    with pytest.raises(DataError, match="hold 3"):
        opened.read(2, 2)
    index = tmp_path / "s" / "index.json"
    good = json.loads(index.read_text())
    for bad in ({**good, "format": 9}, {**good, "dtype": "f8"}, [], {**good, "sizes": [0]}, {**good, "sizes": [4]}):
        index.write_text(json.dumps(bad))
        with pytest.raises(DataError):
            shards.TokenShards(tmp_path / "s")
    index.write_text(json.dumps(good))
    (tmp_path / "s" / "documents.npy").write_bytes(b"")
    with pytest.raises(DataError, match="documents.npy"):
        shards.TokenShards(tmp_path / "s")


def test_wide_vocabularies_take_four_bytes(tok, tmp_path):
    class Wide:
        backend_tokenizer = tok.backend_tokenizer

        def __len__(self):
            return 70_000

    info = shards.write_shards(tmp_path / "s", [[69_999, 1]], Wide())
    assert info.dtype == "uint32" and shards.TokenShards(tmp_path / "s", tok).read(0, 2).tolist() == [69_999, 1]


def test_many_chats_equal_one_by_one(tok):
    chats = [TURNS, TURNS[1:3], [{"role": "user", "content": ""}]]
    assert chat.encode_chats(tok, chats, 9) == [chat.encode_chat(tok, c, 9) for c in chats]
    assert chat.encode_chats(tok, []) == []
    with pytest.raises(DataError, match="empty"):
        chat.encode_chat(tok, [])
    seed = {"instruction": "do", "instances": [{"input": "", "output": "done"}]}
    assert chat.as_messages(seed)[-1] == {"role": "assistant", "content": "done"}
