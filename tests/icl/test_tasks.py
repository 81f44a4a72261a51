"""Task descriptions and their files: what is read, and what a bad one is told."""

import json

import pytest

from tutelage.core.errors import ConfigError, DataError
from tutelage.icl.tasks import files_of, load_task

HEAD = 'name = "reviews"\ntrain = "train.jsonl"\ntest = "test.jsonl"\ntext = "{title} {body}"\nlabel = "stars"\n'
LABELS = 'labels = { "1" = "bad", "5" = "good" }\n'
ROW = {"title": "Tea", "body": "is hot", "stars": 5}


@pytest.fixture
def write(tmp_path):
    """write(description, train rows, test rows) -> path of the description."""

    def of(text, train=(ROW,), test=(ROW,), suffix=".jsonl"):
        for name, rows in (("train", train), ("test", test)):
            (tmp_path / (name + suffix)).write_text("".join(json.dumps(r) + "\n" for r in rows))
        (tmp_path / "task.toml").write_text(text)
        return str(tmp_path / "task.toml")

    return of


def test_a_description_reads_its_files(write):
    task = load_task(write(HEAD + LABELS + '[format]\ninput = "{body}"\noutput = " -> {answer}"\n'))
    (found,) = task.examples("test")
    assert (found.text, found.options, found.gold, found.answer) == ("Tea is hot", ("bad", "good"), 1, "good")
    assert task.format.demonstration(found) == "is hot -> good"
    assert not task.open


@pytest.mark.parametrize(
    ("extra", "row", "message"),
    [
        (LABELS, {"title": "Tea", "stars": 5}, r"test.jsonl:1: no column 'body'"),
        (LABELS, {"title": "Tea", "body": "x"}, r"test.jsonl:1: no column 'stars'"),
        (LABELS, {**ROW, "stars": 3}, r"test.jsonl:1: stars is '3'; the task's labels are 1, 5"),
        (LABELS, {"title": " ", "body": "", "stars": 5}, r"test.jsonl:1: the input is empty"),
        ('choices = "stars"\n', ROW, r"test.jsonl:1: stars is int, expected a list"),
    ],
)
def test_a_row_that_does_not_fit_names_its_line(write, extra, row, message):
    with pytest.raises(DataError, match=message):
        load_task(write(HEAD + extra, test=[row])).examples("test")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ('labels = { "1" = "bad", "5" = "bad" }\n', "'bad' stands for more than one label"),
        ('labels = { "1" = "bad", "5" = " " }\n', "empty word"),
        (LABELS + 'choices = "a"\n', "exclude each other"),
        (LABELS + 'lables = "a"\n', "did you mean 'labels'"),
        (LABELS + '[format]\noutput = "no slot"\n', "must hold {answer}"),
    ],
)
def test_a_faulty_description_says_so(write, labels, message):
    with pytest.raises(ConfigError, match=message):
        load_task(write(HEAD + labels))


def test_choices_by_number_letter_or_text(write):
    head = 'name = "x"\ntest = "test.jsonl"\ntext = "{q}"\nlabel = "a"\nchoices = "c"\n'
    rows = [{"q": "?", "c": ["(A) tea", "(B) milk"], "a": a} for a in (1, "B", "milk", "b", "1")]
    assert [e.answer for e in load_task(write(head, test=rows)).examples("test")] == ["milk"] * 5
    lettered = load_task(write(head + "letters = true\n", test=rows)).examples("test")[0]
    assert lettered.options == ("A", "B") and lettered.answer == "B"
    assert lettered.fields["choices"] == "(A) tea\n(B) milk"
    with pytest.raises(DataError, match="none of the 2 choices"):
        load_task(write(head, test=[{"q": "?", "c": ["tea", "milk"], "a": "E"}])).examples("test")


def test_csv_and_parallel_text_files(tmp_path):
    (tmp_path / "t.csv").write_text('question,a,b,answer\n"one, two",x,y,1\n')
    head = 'test = "t.csv"\ntext = "{question}"\nlabel = "answer"\nchoices = ["a", "b"]\n'
    (tmp_path / "t.toml").write_text(head)
    (found,) = load_task(str(tmp_path / "t.toml")).examples("test")
    assert (found.text, found.answer) == ("one, two", "y")
    (tmp_path / "bad.csv").write_text("question,a,b,answer\nonly,two\n")
    (tmp_path / "t.toml").write_text(head.replace("t.csv", "bad.csv"))
    with pytest.raises(DataError, match="bad.csv:2: fewer cells"):
        load_task(str(tmp_path / "t.toml")).examples("test")
    (tmp_path / "x.txt").write_text("hello\nbye\n")
    (tmp_path / "y.txt").write_text("0\n1\n")
    (tmp_path / "t.toml").write_text('test = "x.txt+y.txt"\nlabels = { 0 = "hi", 1 = "ho" }\n')
    assert [e.answer for e in load_task(str(tmp_path / "t.toml")).examples("test")] == ["hi", "ho"]
    (tmp_path / "y.txt").write_text("0\n")
    with pytest.raises(DataError, match="2 texts and 1 labels"):
        load_task(str(tmp_path / "t.toml")).examples("test")


def test_one_file_for_both_is_split_by_the_text(write, tmp_path):
    rows = [{**ROW, "title": f"number {i}"} for i in range(200)]
    text = (HEAD + LABELS).replace("train.jsonl", "test.jsonl")
    task = load_task(write(text, test=rows))
    train, test = task.examples("train"), task.examples("test")
    assert len(train) + len(test) == 200 and 20 < len(train) < 90
    assert not {e.text for e in train} & {e.text for e in test}


def test_unknown_names_and_missing_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("TUTELAGE_DATA", raising=False)
    with pytest.raises(ConfigError, match="did you mean 'sst2'"):
        load_task("sts2")
    with pytest.raises(ConfigError, match="data=FOLDER"):
        load_task("sst2")
    with pytest.raises(ConfigError, match="is not under"):
        load_task("sst2", str(tmp_path))


def test_sources_and_the_files_they_are(tmp_path):
    assert files_of("a.txt+b.txt") == ["a.txt", "b.txt"] and files_of("c+d.jsonl") == ["c+d.jsonl"]
    assert files_of("") == [] and files_of("hf:squad:plain:test") == []
    assert files_of(f"hf:{tmp_path}:train") == [str(tmp_path)]


HUB = 'train = "hf:set:train"\ntest = "hf:set"\nlabel = "label"\nlabels = { 0 = "bad", 1 = "good" }\n'


@pytest.mark.parametrize("form", ["save_to_disk", "one split", "parquet", "jsonl", "configurations"])
def test_folders_of_the_datasets_library(tmp_path, form, monkeypatch):
    """Local folders in the forms that a hub's set has: what `hf:` loads without a network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {split: [{"text": f"{split} {i}", "label": i % 2} for i in range(3)] for split in ("train", "test")}
    sets = {split: datasets.Dataset.from_list(found) for split, found in rows.items()}
    folder, text = tmp_path / "set", HUB
    if form == "save_to_disk":
        datasets.DatasetDict(sets).save_to_disk(folder)
    elif form == "one split":
        sets["test"].save_to_disk(folder)
        text = HUB.replace('train = "hf:set:train"\n', "")
    elif form == "configurations":
        for name in ("small", "large"):
            for split, found in sets.items():
                (folder / name).mkdir(parents=True, exist_ok=True)
                found.to_parquet(folder / name / f"{split}-00000-of-00001.parquet")
        head = "---\nconfigs:\n- config_name: small\n  data_dir: small\n- config_name: large\n  data_dir: large\n---\n"
        (folder / "README.md").write_text(head)
        text = HUB.replace('"hf:set:train"', '"hf:set:small:train"').replace('"hf:set"', '"hf:set:large:test"')
    else:
        (folder / "data").mkdir(parents=True)
        for split, found in sets.items():
            getattr(found, {"parquet": "to_parquet", "jsonl": "to_json"}[form])(folder / "data" / f"{split}.{form}")
    (tmp_path / "t.toml").write_text(text)
    task = load_task(str(tmp_path / "t.toml"))
    for split in ("train", "test") if form != "one split" else ("test",):
        found = task.examples(split)
        assert [(e.text, e.answer) for e in found] == [(r["text"], ("bad", "good")[r["label"]]) for r in rows[split]]
    (tmp_path / "t.toml").write_text(HUB.replace('"hf:set"', '"hf:set:validation"'))
    if form != "one split":
        with pytest.raises(DataError, match="hf:.*set:validation: (KeyError|ValueError)"):
            load_task(str(tmp_path / "t.toml")).examples("test")
