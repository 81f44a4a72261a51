"""prepare on text from outside: the same bits for any number of workers and after any kill; what is left out."""

import hashlib
import json
import random
import signal
import sys

import pytest

from tutelage.core import atomic
from tutelage.core.errors import ConfigError, DataError
from tutelage.pipeline.stages import launch, read_summary
from tutelage.text import parts
from tutelage.text.corpus import read_texts
from tutelage.text.duplicates import compared, digest, shingles
from tutelage.text.shards import TokenShards
from tutelage.text.split import divide, held_by_hash
from tutelage.text.tokenizer import train_tokenizer

WORDS = "the old clock on a wall said that it was time to go and so two of them went home".split()


class Dies(BaseException):
    """Stands for SIGKILL."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    made = train_tokenizer([" ".join(WORDS)] * 3, 320)
    made.save_pretrained(folder)
    return folder, made


def sentence(words=30):
    return " ".join(random.choice(WORDS) + str(random.randrange(40)) for _ in range(words))


@pytest.fixture
def corpus(tmp_path):
    """Six files of several kinds."""
    random.seed(5)
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.txt").write_text("\n\n".join(sentence() for _ in range(30)))
    (folder / "deep/rows.jsonl").write_text("".join(json.dumps({"text": sentence()}) + "\n" for _ in range(40)))
    (folder / "empty.txt").write_text("\n\n")
    return folder


def prepared(tokenizer, data, out, **more):
    launch("prepare", {"tokenizer": str(tokenizer[0]), "data": str(data), "out": str(out), **more})
    return read_summary(out)


def texts_of(tokenizer, out, side):
    shards = TokenShards(out / side, tokenizer[1])
    return [tokenizer[1].decode(shards.document(n)[:-1].tolist()) for n in range(len(shards.documents) - 1)]


def bits(out):
    files = [f for side in ("train", "validation") for f in sorted((out / side).iterdir())]
    return {str(f.relative_to(out)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_sides_are_those_of_divide(tokenizer, corpus, tmp_path):
    found = prepared(tokenizer, corpus, tmp_path / "out")
    every = list(read_texts(corpus, "paragraph"))
    for side, part in (("train", "train"), ("validation", "heldout")):
        texts = list(divide(every, part))
        assert texts_of(tokenizer, tmp_path / "out", side) == texts
        assert found[f"{side}_documents"] == len(texts)
        assert found[f"{side}_bytes"] == sum(len(t.encode()) for t in texts)
    assert found["documents"] == len(every) and not (tmp_path / "out/parts").exists()


EVERYTHING = {"duplicates": "near", "documents": 120, "split": "hash"}


def test_any_number_of_workers_makes_the_same_bits(tokenizer, corpus, tmp_path):
    one = prepared(tokenizer, corpus, tmp_path / "one", **EVERYTHING)
    three = prepared(tokenizer, corpus, tmp_path / "three", **EVERYTHING, workers=3)
    assert one == three and bits(tmp_path / "one") == bits(tmp_path / "three")
    assert one["train_documents"] == 120 and one["over_limit"] > 0
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("one", "three")]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]
    assert manifests[0]["prepared"]["documents"] == one["documents"]


def test_killed_at_any_part_it_goes_on_with_the_finished_ones(tokenizer, corpus, tmp_path, monkeypatch):
    whole = prepared(tokenizer, corpus, tmp_path / "whole", **EVERYTHING)
    made = []
    write = atomic.write_folder

    def dies(target, fill):
        if len(made) % 2 and made[-1] != "died":
            made.append("died")
            raise Dies
        made.append(target.name)
        return write(target, fill)

    monkeypatch.setattr(parts, "write_folder", dies)
    out, deaths = tmp_path / "out", 0
    for _ in range(30):
        try:
            found = prepared(tokenizer, corpus, out, **EVERYTHING)
            break
        except Dies:
            deaths += 1
    assert deaths > 4 and found == whole and bits(out) == bits(tmp_path / "whole")
    folders = [name for name in made if name != "died"]
    assert len(folders) == 12 and sorted(set(folders)) == [f"{n:05d}" for n in range(6)]  # each scanned, encoded once


def test_a_killed_command_goes_on_with_other_workers(command, tokenizer, corpus, tmp_path):
    for number in range(4, 40):
        (corpus / f"{number}.txt").write_text("\n\n".join(sentence() for _ in range(60)))
    whole = prepared(tokenizer, corpus, tmp_path / "whole", duplicates="near")
    out = tmp_path / "out"
    words = ["prepare", f"tokenizer={tokenizer[0]}", f"data={corpus}", "duplicates=near", f"out={out}"]
    process = command(*words, "workers=2")
    process.until(lambda: len(list(out.glob("parts/scan/0*"))) > 2)
    process.kill()
    process = command(*words, "workers=1")
    process.until(lambda: len(list(out.glob("parts/scan/0*"))) > 8)
    process.send(signal.SIGINT)
    assert process.wait(60) == 130 and "finished parts are kept" in process.text(), process.text()
    process = command(*words)
    assert process.wait(60) == 0, process.text()
    assert read_summary(out) == whole and bits(out) == bits(tmp_path / "whole")


def jaccard(a, b):
    one, two = (set(shingles(compared(t)).tolist()) for t in (a, b))
    return len(one & two) / len(one | two)


def test_no_near_duplicate_stands_on_the_other_side(tokenizer, tmp_path):
    random.seed(2)
    texts = [sentence(60) for _ in range(60)]
    for text in texts[:50]:  # a word of 60 changed: 5 of 56 shingles, similarity 51/61
        words = text.split()
        words[30] = "changed"
        texts.append(" ".join(words))
    texts += [text.upper() + "!" for text in texts[:7]]
    random.shuffle(texts)
    (tmp_path / "d.txt").write_text("\n\n".join(texts))
    kept = prepared(tokenizer, tmp_path / "d.txt", tmp_path / "keep", split="hash")
    assert kept["train_documents"] + kept["validation_documents"] == len(texts)
    exact = prepared(tokenizer, tmp_path / "d.txt", tmp_path / "exact", split="hash", duplicates="exact")
    assert exact["exact_duplicates"] == 7
    found = prepared(tokenizer, tmp_path / "d.txt", tmp_path / "near", split="hash", duplicates="near", similarity=0.7)
    assert (found["exact_duplicates"], found["near_duplicates"]) == (7, 50)
    train, held = (texts_of(tokenizer, tmp_path / "near", side) for side in ("train", "validation"))
    assert len(train) + len(held) == 60
    assert max(jaccard(a, b) for a in held for b in train) < 0.3
    assert all(held_by_hash(digest(compared(t))) for t in held)
    firsts = [t for t in texts if t in {*train, *held}]
    assert all(jaccard(t, early) < 0.7 for t in firsts for early in texts[: texts.index(t)])  # the first one stays


def test_a_document_keeps_its_side_when_files_are_added(tokenizer, corpus, tmp_path):
    prepared(tokenizer, corpus, tmp_path / "before", split="hash")
    (corpus / "00.txt").write_text("\n\n".join(sentence() for _ in range(50)))
    prepared(tokenizer, corpus, tmp_path / "after", split="hash")
    for side in ("train", "validation"):
        assert set(texts_of(tokenizer, tmp_path / "before", side)) <= set(texts_of(tokenizer, tmp_path / "after", side))


def test_validation_text_of_its_own_comes_first(tokenizer, tmp_path):
    random.seed(3)
    texts = [sentence() for _ in range(20)]
    (tmp_path / "held.txt").write_text("\n\n".join(texts[:5]))
    (tmp_path / "d.txt").write_text("\n\n".join(texts))
    found = prepared(tokenizer, tmp_path / "d.txt", tmp_path / "out", held_out=str(tmp_path / "held.txt"),
                     duplicates="exact")  # fmt: skip
    assert found["exact_duplicates"] == 5
    assert texts_of(tokenizer, tmp_path / "out", "validation") == texts[:5]
    assert texts_of(tokenizer, tmp_path / "out", "train") == texts[5:]


def test_contaminated_documents_are_counted_and_go_on_request(tokenizer, corpus, tmp_path):
    train = list(divide(list(read_texts(corpus, "paragraph")), "train"))
    asked = " ".join(train[3].split()[5:20]).upper()
    rows = [{"question": asked, "n": 1}, {"question": "Why?"}, {"question": sentence(20), "choices": [sentence(15)]}]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exam = str(tmp_path / "exam.jsonl")
    given = {"evaluation": [exam]}
    kept = prepared(tokenizer, corpus, tmp_path / "keep", **given)
    assert kept["contamination"] == {exam: {"examples": 3, "too_short": 1, "contaminated": 1}}
    assert (kept["contaminated"], kept["contaminated_removed"]) == (1, 0)
    assert texts_of(tokenizer, tmp_path / "keep", "train") == train
    gone = prepared(tokenizer, corpus, tmp_path / "gone", **given, contaminated="remove")
    assert gone["contaminated_removed"] == 1
    assert texts_of(tokenizer, tmp_path / "gone", "train") == train[:3] + train[4:]
    longer = prepared(tokenizer, corpus, tmp_path / "longer", **given, ngram=16)
    assert longer["contaminated"] == 0 and longer["contamination"][exam]["too_short"] == 2
    (tmp_path / "task.toml").write_text('test = "exam.jsonl"\nlabel = "n"\ntext = "{question}"\n')
    task = prepared(tokenizer, corpus, tmp_path / "task", evaluation=[str(tmp_path / "task.toml")])
    assert task["contaminated"] == 1


def test_a_hub_set_from_a_local_folder(tokenizer, corpus, tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(2):
        rows = [json.dumps({"text": sentence(), "url": f"u{n}"}) + "\n" for n in range(30)]
        (folder / f"train-{number}.jsonl").write_text("".join(rows))
    found = prepared(tokenizer, f"hf:{folder}:train", tmp_path / "streamed", workers=2)
    plain = prepared(tokenizer, folder, tmp_path / "files")
    assert found == plain and bits(tmp_path / "streamed") == bits(tmp_path / "files")
    datasets.Dataset.from_list([{"text": t} for t in read_texts(folder)]).save_to_disk(tmp_path / "saved")
    saved = prepared(tokenizer, f"hf:{tmp_path / 'saved'}", tmp_path / "out")
    assert saved == plain and bits(tmp_path / "out") == bits(tmp_path / "files")
    with pytest.raises(DataError, match=r"hf:.*:nowhere: ValueError: "):
        prepared(tokenizer, f"hf:{folder}:nowhere", tmp_path / "none")


def test_without_the_datasets_library(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="hf:some/set: needs the datasets library .pip install datasets"):
        prepared(tokenizer, "hf:some/set", tmp_path / "out")


def test_what_cannot_be(tokenizer, corpus, tmp_path):
    with pytest.raises(ConfigError, match="the embedded world schoolroom:demo divides itself"):
        prepared(tokenizer, "schoolroom:demo", tmp_path / "a", duplicates="exact")
    (tmp_path / "same.txt").write_text("\n\n".join([sentence()] * 30))
    with pytest.raises(DataError, match="same.txt: no document is left for validation .documents 30, exact_dup"):
        prepared(tokenizer, tmp_path / "same.txt", tmp_path / "b", duplicates="exact")
    with pytest.raises(DataError, match="nowhere.jsonl: no such file"):
        prepared(tokenizer, corpus, tmp_path / "c", evaluation=["nowhere.jsonl"])
    (corpus / "broken.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n' * 3)
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"broken.jsonl:2: no 'text'"):
            prepared(tokenizer, corpus, tmp_path / f"d{workers}", split="hash", workers=workers)
    found = prepared(tokenizer, corpus, tmp_path / "e", split="hash", workers=2, on_bad_row="skip")
    assert found["documents"] == 163
    bad = json.loads((tmp_path / "e/manifest.json").read_text())["bad_rows"]
    assert bad["count"] == 3 and "broken.jsonl:2" in bad["first"][0]
