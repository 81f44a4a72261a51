"""`tutelage label report|export|key|forget`."""

import json

import pytest
from typer.testing import CliRunner

from tutelage.cli import app
from tutelage.core.errors import ConfigError, DataError
from tutelage.feedback.store import Store
from tutelage.train.sources import rankings


@pytest.fixture
def path(tmp_path):
    store = Store(str(tmp_path / "labels.db"))
    store.add_batch("b", overlap=1.0)
    store.add_items("b", [{"prompt": f"q{n}", "responses": ["x", "y"]} for n in range(6)])
    for name in ("Ann", "Bob"):
        who = store.person_of(store.add_person(name)).id
        while item := store.next_item("b", who):
            store.record(who, item.id, "ranking", [[a.id] for a in item.answers], seconds=2)
    store.close()
    return str(tmp_path / "labels.db")


def label(*words):
    done = CliRunner().invoke(app, ["label", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_report(path):
    words = label("report", path)
    assert "batch b: 6 of 6 items done" in words and "12 rankings of 6 items by 2 people" in words
    assert "Krippendorff's alpha" in words and "Kendall's tau" in words and "1.000" in words
    assert "Ann" in words and "Bob" in words
    assert json.loads(label("report", path, "json=true"))["b"]["agreement"] == 1.0
    with pytest.raises(DataError, match="no batch 'c'"):
        label("report", path, "batch=c")


def test_export(path, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert "12 rankings" in label("export", path, f"out={out}")
    assert len(out.read_text().splitlines()) == 12 and "Ann" not in out.read_text()
    with pytest.raises(DataError, match="no prompts to export"):
        label("export", path, f"out={out}", "kind=prompts", "split=train")
    with pytest.raises(ConfigError, match="no out="):
        label("export", path)
    with pytest.raises(ConfigError, match="'rankings', 'demonstrations' or 'prompts'"):
        label("export", path, f"out={out}", "kind=all")
    with pytest.raises(ConfigError, match="split= goes with kind=prompts"):
        label("export", path, f"out={out}", "split=train")
    assert len(out.read_text().splitlines()) == 12
    with pytest.raises(DataError, match="tutelage label export .*labels.db out=rankings.jsonl"):
        rankings(path)  # a store given to `reward` as it is


def test_keys(path):
    key = label("key", path, "name=Eve").splitlines()[0]
    store = Store(path)
    assert store.person_of(key).name == "Eve"
    with pytest.raises(DataError, match="exists"):
        label("key", path, "name=eve")
    newer = label("key", path, "name=Eve", "new=true").splitlines()[0]
    assert store.person_of(newer).name == "Eve" and store.person_of(key) is None
    assert store.person_of(label("key", path, "name=007").splitlines()[0]).name in ("7", "007")


def test_forget(path):
    words = label("forget", path, "person=Ann", "reason=asked")
    assert "6 judgements" in words and "person-" in words
    assert [person.name for person in Store(path).people()] == ["Bob"]
    with pytest.raises(DataError, match="there are: Bob"):
        label("forget", path, "person=Ann")


def test_mistakes_name_the_fix(path, tmp_path):
    with pytest.raises(ConfigError, match="unknown key 'nmae'; did you mean 'name'"):
        label("key", path, "nmae=Ann")
    with pytest.raises(ConfigError, match="expected one store"):
        label("report")
    with pytest.raises(DataError, match="no such store"):
        label("report", str(tmp_path / "nothing.db"))
    with pytest.raises(DataError, match="cannot be opened"):
        label("report", "postgresql+psycopg://127.0.0.1:1/x?connect_timeout=2")
