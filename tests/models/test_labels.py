"""Names of classes in every form people have them; a class found by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from camray.errors import ModelError
from camray.models.labels import (
    imagenet_names,
    label_lookup,
    names_of_folders,
    read_class_names,
    target_by_index,
)

TWO = ("tench", "goldfish")
FORMS = {
    "lines.txt": "tench\n\ngoldfish\n",
    "crlf.txt": "\ufefftench\r\ngoldfish\r\n",
    "synsets.txt": "n01440764 tench\nn01443537 goldfish\n",
    "list.json": '["tench", "goldfish"]',
    "pairs.json": '[["n01440764", "tench"], ["n01443537", "goldfish"]]',
    "index.json": '{"1": "goldfish", "0": "tench"}',
    "torchvision.json": '{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}',
    "class_to_idx.json": '{"goldfish": 1, "tench": 0}',
    "wnid.json": '{"n01443537": "goldfish", "n01440764": "tench"}',
    "header.csv": 'index,wnid,name,synonyms\n1,n01443537,goldfish,"goldfish, x"\n0,n01440764,tench,tench\n',
    "names.csv": "name\ntench\ngoldfish\n",
    "bare.csv": "tench\ngoldfish\n",
    "two.csv": "goldfish,1\ntench,0\n",
    "tabs.tsv": "class_id\tlabel\n0\ttench\n1\tgoldfish\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    assert read_class_names(str(tmp_path / name), 2) == TWO


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "one\n", "1 names for 2 classes"),
        ("a.txt", "", "0 names for 2 classes"),
        ("a.json", '{"0": "a", "2": "b"}', "none for class 1"),
        ("a.json", '{"0": {"name": "a"}, "1": "b"}', "is no name"),
        ("a.json", "3", "neither a list nor a dict"),
        ("a.json", "[1, 2]", "is no name"),
        ("a.json", "{", "Expecting"),
        ("a.csv", "x,y,z\n1,2,3\n", "no column is named"),
        ("a.csv", "index,name\n0,a\n5,b\n", "none for class 1"),
        ("a.csv", "index,name\n0\n", "too few cells"),
        ("a.csv", "0,1\n2\n", "too few cells"),
    ],
)
def test_refusals(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError) as caught:
        read_class_names(str(tmp_path / name), 2)
    assert str(caught.value).startswith("--class-names: ")
    assert said in str(caught.value)
    assert caught.value.fix


def test_timms_tables() -> None:
    assert read_class_names("imagenet", 1000) == imagenet_names()
    assert len(read_class_names("imagenet-12k", 11821)) == 11821


def test_hostile_names_are_kept_as_they_are(tmp_path: Path) -> None:
    names = ["<script>", "=1+1", "\u202e rtl \x1b[31m"]
    (tmp_path / "n.json").write_text(json.dumps(names))
    assert read_class_names(str(tmp_path / "n.json"), 3) == tuple(names)


def test_folders_name_the_classes_only_where_they_fit() -> None:
    assert names_of_folders(["tuberculosis", "normal"], 2) == ("normal", "tuberculosis")
    assert names_of_folders(["tuberculosis", "normal"], 3) == ()
    assert names_of_folders(["train", "val"], 2) == ()


def test_imagenet_is_known_by_whatever_table_named_it() -> None:
    short = tuple(n.partition(",")[0].replace(" ", "_") for n in imagenet_names())
    assert label_lookup(short)["n01440764"] == 0
    assert "n01440764" not in label_lookup(tuple(reversed(short)))


def test_a_target_by_name() -> None:
    names = ("cat, house cat", "dog", "crane", "crane")
    assert target_by_index("dog", names) == "1"
    assert target_by_index("Cat", names) == "0"
    for rule in ("predicted", "label", "2", "top:5", "above:0.5", "nonsense"):
        assert target_by_index(rule, names) == rule
    with pytest.raises(ModelError, match=r"2 classes are named 'crane'. Fix: give an index: 2, 3"):
        target_by_index("crane", names)
    assert target_by_index("n01440764", imagenet_names()) == "0"
