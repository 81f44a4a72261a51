"""Text on real files: novels in two languages, instruction and preference sets, real tokenizers."""

import pytest

from tutelage.text import chat, corpus, loader, shards, tokenizer

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("book", "style", "most"),
    [
        ("text/chinese_novels/聊斋志异.txt", "bpe", 1.05),
        ("text/chinese_novels/聊斋志异.txt", "char", 1.0),
        ("text/english_novels_100/Doyle_Hound_1902.txt", "bpe", 0.32),
    ],
)
def test_novels_survive_tokenizer_and_shards(real_data, tmp_path, book, style, most):
    texts = list(corpus.read_texts(real_data / book, "paragraph"))
    tok = tokenizer.train_tokenizer(texts, 8192 if style == "char" else 4096, style)
    report = tokenizer.fertility(tok, texts)
    assert report["round_trip"] and report["tokens_per_character"] <= most
    info = shards.write_shards(tmp_path / "s", tokenizer.encode_documents(tok, texts), tok, shard_tokens=50_000)
    opened = shards.TokenShards(tmp_path / "s", tok)
    assert info.shards > 1 and len(opened.documents) == len(texts) + 1
    for number in range(0, len(texts), max(1, len(texts) // 50)):
        assert tok.decode(opened.document(number)[:-1].tolist()) == texts[number]
    assert next(loader.BlockLoader(opened, 4, 64))["input_ids"].shape == (4, 64)


@pytest.mark.parametrize(
    "name",
    [
        "instr/alpaca_zh/zh-data-part-00.json",
        "instr/llamafactory_demo/alpaca_en_demo.json",
        "instr/medicalgpt_sft/sharegpt_zh_1K_format.jsonl",
        "instr/alpaca_seed/seed_tasks.jsonl",
    ],
)
def test_instruction_sets_become_supervised_rows(real_data, name):
    rows = [chat.as_messages(row) for _, row in corpus.read_rows(real_data / name)]
    tok = tokenizer.train_tokenizer((m["content"] for row in rows[:300] for m in row), 1000)
    for messages, (ids, mask) in zip(rows[:300], chat.encode_chats(tok, rows[:300])):
        said = "".join(m["content"] + chat.TURN_END for m in messages if m["role"] == "assistant")
        assert said and tok.decode([i for i, kept in zip(ids, mask) if kept]) == said


def test_human_preference_pairs_are_conversations(real_data):
    count = 0
    for _, row in corpus.read_rows(real_data / "pref" / "hh_rlhf" / "split" / "dev.jsonl"):
        for key in ("chosen", "rejected"):
            messages = chat.as_messages(row[key])
            assert messages[0]["role"] == "user" and messages[-1]["role"] == "assistant"
        count += 1
    assert count > 100


@pytest.mark.parametrize("name", ["stories260K/hf", "zh_poem_0.75M/hf"])
def test_real_tokenizers_learn_to_chat(real_data, tmp_path, name):
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(real_data / "weights" / name)
    before = tokenizer.fingerprint(tok)
    assert chat.ensure_chat(tok) and tokenizer.ensure_pad(tok)
    tok.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.fingerprint(again) == before and again.pad_token_id != again.eos_token_id
    turns = [{"role": "user", "content": "Once upon 明月"}, {"role": "assistant", "content": "there was\n a 春."}]
    out = again.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    assert chat.encode_chat(again, turns) == (out["input_ids"], out["assistant_masks"])
