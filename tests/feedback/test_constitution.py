"""Constitution files: ours, the world's, the paper's format, one's own; and how they are put into words."""

import json
import random

import pytest

from tutelage.core.errors import ConfigError
from tutelage.feedback.constitution import (
    Constitution,
    Principle,
    choice_examples,
    example_text,
    fill,
    load_constitution,
    question_text,
    transcript,
)

ASKED = [{"role": "user", "content": "How do I {x}?"}]


@pytest.mark.parametrize("name", ["general", "schoolroom"])
def test_built_in_constitutions_have_sixteen_different_principles_of_each_sort(name):
    c = load_constitution(name)
    for texts in ([p.critique for p in c.principles], [p.revision for p in c.principles], c.preferences):
        assert len(set(texts)) == 16 and all(text.strip() == text and text for text in texts)
    assert len({p.name for p in c.principles}) == 16


def test_worked_examples_of_ours_quote_its_own_principles():
    c = load_constitution("general")
    pairs = {(p.critique, p.revision) for p in c.principles}
    assert c.examples and all((e.request, e.revision_request) in pairs for e in c.examples)
    assert all(e.reasoning for e in c.reasonings) and c.choices


def paper(folder):
    """Files of the paper's shape, in our words."""
    files = {
        "CritiqueRevisionInstructions.json": {
            "harmful0": {
                "prompt": ["\n\nCritiqueRequest: What is wrong?\n\nCritique:"],
                "edit_request": "\n\nRevisionRequest: Make it right.\n\nRevision:",
            }
        },
        "CritiqueRevisionFewShotPrompts.json": ["\n\nHuman: a\n\nAssistant: b\n\nRevision: c\n\nHuman:"],
        "RLMadisonInstructions.json": ["\nWhich is better? Options:"],
        "RLMadisonFewShotPrompts.json": [
            {"prompt": "\n\nHuman: q\n\nAssistant:", "corrects": ["good"], "incorrects": ["bad"]}
        ],
        "RLMadisonPrecogFewShotPrompts.json": [{"prompt": "\n\nHuman: Consider\n\n{}\n (A) x\nSo the answer is: (A)"}],
    }
    folder.mkdir()
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def test_the_papers_folder_loads(tmp_path):
    c = load_constitution(str(paper(tmp_path / "p")))
    assert c.principles == [Principle(name="harmful0", critique="What is wrong?", revision="Make it right.")]
    assert c.preferences == ["Which is better?"]
    assert c.examples == ["Human: a\n\nAssistant: b\n\nRevision: c"]
    assert (c.choices[0].human, c.choices[0].better, c.choices[0].worse) == ("q", "good", "bad")
    rng = random.Random(0)
    assert choice_examples(c, ["Which?"], rng, True) == ["Human: Consider\n\nWhich?\n (A) x\nSo the answer is: (A)\n\n"]
    assert load_constitution(str(tmp_path / "p/CritiqueRevisionInstructions.json")).principles == c.principles


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[principel]]\nname = "a"\n', "'principel' is unknown"),
        ('[[principle]]\nname = "a"\ncritique = "b"\n', "principles.0.revision"),
        ('[[principle]]\nname="a"\ncritique="b"\nrevision="c"\n[format]\nchoice="{a} {b}"\n', "hold {conversation}"),
        ("", "principles"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, words):
    file = tmp_path / "my.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="my.toml") as error:
        load_constitution(str(file))
    assert words in str(error.value)


def test_a_wrong_json_file_is_named_with_its_entry(tmp_path):
    folder = paper(tmp_path / "p")
    (folder / "CritiqueRevisionInstructions.json").write_text('{"harmful3": {"prompt": []}}')
    with pytest.raises(ConfigError, match="CritiqueRevisionInstructions.json: harmful3"):
        load_constitution(str(folder))
    with pytest.raises(ConfigError, match="expected general, schoolroom"):
        load_constitution("generel")


def test_texts_are_the_papers():
    form = Constitution(principles=[Principle(name="p", critique="c?", revision="r.")]).format
    said = transcript(form, ASKED, "Like {text}.")
    assert said == "\n\nHuman: How do I {x}?\n\nAssistant: Like {text}."
    assert said + fill(form.critique, request="c?") == said + "\n\nCritiqueRequest: c?\n\nCritique:"
    asked = question_text(form, "Which?", ASKED, "one {b}", "two", False)
    assert asked == (
        "Consider the following conversation between a human and an assistant:\nHuman: How do I {x}?\n\nWhich? "
        "Options:\n (A) [[[one {b}]]]\n (B) [[[two]]]\n\nThe answer is:"
    )
    example = load_constitution("general").examples[0]
    assert example_text(form, example).count("Request: ") == 2


def test_worked_choices_show_either_letter():
    c = load_constitution("general")
    shown = [choice_examples(c, c.preferences, random.Random(i), False) for i in range(8)]
    assert {text.rstrip()[-3:] for texts in shown for text in texts} == {"(A)", "(B)"}
    for texts in shown:
        for text, example in zip(texts, c.choices):
            letter = "A" if text.index(example.better) < text.index(example.worse) else "B"
            assert text.rstrip().endswith(f"({letter})")
