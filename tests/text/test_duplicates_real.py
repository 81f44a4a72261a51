"""Duplicates and contamination in real novels, English and Chinese."""

import json

import pytest

from tutelage.pipeline.stages import launch, read_summary
from tutelage.text.corpus import read_texts
from tutelage.text.tokenizer import train_tokenizer

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    "book", ["text/english_novels_100/Doyle_Hound_1902.txt", "text/chinese_novels/聊斋志异.txt"]
)
def test_an_edition_with_misprints_is_found_and_a_quotation_too(real_data, tmp_path, book):
    """A book and a second edition of its long paragraphs, each with a few letters missing at the end; an exam quotes
    one."""
    texts = list(read_texts(real_data / book, "paragraph"))[:1500]
    train_tokenizer(texts, 1000).save_pretrained(tmp_path / "tokenizer")
    second = [text[:-6] for text in texts if len(text) > 600]
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "1.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "2.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in second))
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": second[3][:400]}))
    launch("prepare", {
        "data": str(folder), "tokenizer": str(tmp_path / "tokenizer"), "out": str(tmp_path / "out"), "split": "hash",
        "duplicates": "near", "evaluation": [str(tmp_path / "exam.jsonl")], "contaminated": "remove", "workers": 2,
    })  # fmt: skip
    found = read_summary(tmp_path / "out")
    assert len(second) > 20 and found["near_duplicates"] >= len(second)
    assert found["near_duplicates"] <= len(second) + 0.05 * len(texts)  # few paragraphs of one book are alike
    kept = found["train_documents"] + found["validation_documents"]
    lost = sum(found[k] for k in ("exact_duplicates", "near_duplicates", "contaminated_removed", "over_limit"))
    assert kept + lost == found["documents"] >= len(texts) + len(second)
    assert found["contaminated"] <= 1
