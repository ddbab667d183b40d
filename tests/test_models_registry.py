"""What the registry of public models says, and how it is listed and shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from speakerkit.errors import ConfigError
from speakerkit.zoo.registry import ModelCard, find_model, known_models, read_registry
from speakerkit.zoo.store import IMPORT_KINDS, NEEDED
from tests.command import speakerkit

MODELS = known_models()
CARD = """
    about: x
    layout: wespeaker
    page: https://example.org
    license: null
    commercial_use: null
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEAKERKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPEAKERKIT_REGISTRY", raising=False)


@pytest.mark.parametrize(("name", "card"), MODELS.items(), ids=list(MODELS))
def test_entry(name: str, card: ModelCard) -> None:
    assert "." in name, "architecture.training"
    assert card.about
    assert urlsplit(card.page).scheme == "https"
    assert card.training_data or name == "campplus.3d-speaker-zh-en", "say what it was trained on"
    assert bool(card.eer) == bool(card.eer_source), "figures need a source, and a source figures"
    assert all(0 < value < 20 for value in card.eer.values()), "percent"
    assert card.license is not None or card.commercial_use is not True
    assert card.commercial_use is None or card.license_note, "say who says so"
    for file in card.files:
        assert urlsplit(file.url).scheme == "https"
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.size is None or file.size > 0
        assert (file.size is None) or (file.about_mb is None), "one of the two"
        commit = re.search(r"huggingface\.co/[^/]+/[^/]+/resolve/([^/]+)/", file.url)
        assert commit is None or commit[1] == "main" or re.fullmatch("[0-9a-f]{40}", commit[1])
    if card.files and not any(file.unpack for file in card.files):
        assert {file.name for file in card.files} >= set(NEEDED[card.layout])
        assert all(file.about_mb != 0 for file in card.files)


def test_names_and_hashes_are_told_apart() -> None:
    names = [each for name, card in MODELS.items() for each in (name, *card.aliases)]
    assert len(names) == len(set(names))
    places: dict[str, str] = {}
    for card in MODELS.values():
        for file in card.files:
            if file.sha256:
                assert places.setdefault(file.sha256, file.url) == file.url, "one hash, two files"


def test_what_is_covered() -> None:
    assert {card.layout for card in MODELS.values()} == {"wespeaker", *IMPORT_KINDS}
    for hub_name in ("chinese", "english", "campplus", "eres2net", "vblinkp", "vblinkf", "w2vbert2_mfa"):
        assert find_model(hub_name)[0] in MODELS


@pytest.mark.parametrize(
    ("name", "license", "commercial"),
    [
        ("resnet34.voxceleb-lm", "CC-BY-4.0", True),  # WeSpeaker, docs/pretrained.md
        ("vblinkf", None, False),  # VoxBlink2/ScriptsForVoxBlink2, issue 1
        ("ecapa.speechbrain-voxceleb", "Apache-2.0", True),  # its model card
        ("ecapa1024.taoruijie-voxceleb", "MIT", None),  # its repository, which says nothing of weights
        ("resnet34.cnceleb", None, None),  # two statements that differ
    ],
)
def test_licences(name: str, license: str | None, commercial: bool | None) -> None:
    card = find_model(name)[1]
    assert (card.license, card.commercial_use) == (license, commercial)


def test_damo_models_have_another_front_end() -> None:
    """In WeSpeaker's own tools the window and scale of these depend on how one loads them."""
    for name in ("campplus", "eres2net"):
        front_end = find_model(name)[1].front_end
        assert "povey" in front_end
        assert "[-1, 1]" in front_end
    assert "hamming" in find_model("english")[1].front_end


def test_list() -> None:
    ran = speakerkit("models", "list")
    assert ran.code == 0
    head, *rows = ran.out.splitlines()
    assert head.split()[:3] == ["name", "layout", "MB"]
    assert [row.split()[0] for row in rows] == sorted(MODELS)
    (row,) = [row for row in rows if row.startswith("resnet34.voxceleb-lm-onnx ")]
    assert row.split() == [
        "resnet34.voxceleb-lm-onnx",
        "wespeaker-onnx",
        "27",
        "0.80",
        "Vox1-O",
        "CC-BY-4.0",
        "yes",
        "no",
    ]


def test_list_some() -> None:
    rows = speakerkit("models", "list", "resnet34.*cnceleb*").out.splitlines()[1:]
    assert len(rows) == 4
    assert all("cnceleb" in row for row in rows)
    assert "resnet221.voxceleb-lm " in speakerkit("models", "list", "ENGLISH").out
    ran = speakerkit("models", "list", "nothing*")
    assert (ran.code, ran.out) == (2, "")
    assert "'nothing*': matches no registered model" in ran.errors[0]
    assert speakerkit("models", "list", "nothing*", "--json").out == "[]\n"


def test_list_json() -> None:
    listed = json.loads(speakerkit("models", "list", "--json").out)
    assert [each["name"] for each in listed] == sorted(MODELS)
    for each in listed:
        assert each["here"] is False
        assert {"license", "commercial_use", "files", "folder", "command", "eer"} <= each.keys()


def test_show(tmp_path: Path) -> None:
    ran = speakerkit("models", "show", "resnet34.voxceleb-lm-onnx")
    assert ran.code == 0
    lines = ran.out.splitlines()
    for line in (
        "license: CC-BY-4.0",
        "commercial_use: yes",
        "eer: Vox1-O 0.797, Vox1-E 0.937, Vox1-H 1.695",
        f"folder: {tmp_path}/home/models/resnet34.voxceleb-lm-onnx",
        "here: no",
        "command: speakerkit models fetch resnet34.voxceleb-lm-onnx",
    ):
        assert line in lines
    assert "size 26530309, sha256 7bb2f06e9df17cdf1ef14ee8a15ab08ed28e8d0ef5054ee135741560df2ec068" in ran.out


def test_what_is_unknown_is_said_to_be() -> None:
    out = speakerkit("models", "show", "campplus.3d-speaker-voxceleb").out
    for line in ("license: unknown", "commercial_use: unknown", "eer: unknown", "size unknown, sha256 unknown"):
        assert line in out
    shown = json.loads(speakerkit("models", "show", "campplus.3d-speaker-voxceleb", "--json").out)
    assert shown["license"] is None
    assert shown["files"][0]["sha256"] is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"models:\n  'Up':{CARD}", "models.Up is 'Up'"),
        (f"models:\n  '../a':{CARD}", "is '../a'"),
        (f"models:\n  a:{CARD}    alias: [b]\n", "did you mean 'aliases'"),
        (f"models:\n  a:{CARD}    aliases: [B C]\n", "models.a is 'B C'"),
        (f"models:\n  a:{CARD}    files: [{{name: x, url: 'ftp://h/x'}}]\n", "is 'ftp://h/x'"),
        (f"models:\n  a:{CARD}    files: [{{name: x, url: 'file:///etc/passwd'}}]\n", "is 'file:///etc/passwd'"),
        (f"models:\n  a:{CARD}    files: [{{name: x, url: 'http://h/a b'}}]\n", "is 'http://h/a b'"),
        (f"models:\n  a:{CARD}    files: [{{name: ../x, url: 'http://h/x'}}]\n", "is '../x'"),
        (f"models:\n  a:{CARD}    files: [{{name: .x, url: 'http://h/x'}}]\n", "is '.x'"),
        (f"models:\n  a:{CARD}    files: [{{name: x, url: 'http://h/x', sha256: abc}}]\n", "is 'abc'"),
        (
            f"models:\n  a:{CARD}    files: [{{name: x, url: 'http://h/x'}}, {{name: x, url: 'http://h/y'}}]\n",
            "own name",
        ),
        ("models:\n  a: {about: x, layout: wespeaker, page: x, license: null}\n", "commercial_use is missing"),
        ("models:\n  a: {about: x, layout: tarball, page: x, license: x, commercial_use: true}\n", "choose from"),
        ("models: []\n", "models is"),
    ],
)
def test_registries_that_are_refused(text: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "further.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(fault)):
        read_registry(path)
    monkeypatch.setenv("SPEAKERKIT_REGISTRY", str(path))
    ran = speakerkit("models", "list")
    assert ran.code == 2
    assert str(path) in ran.errors[0]


def test_further_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "further.yaml"
    path.write_text(f"models:\n  ours.internal:{CARD}  resnet34.voxceleb:{CARD}")
    monkeypatch.setenv("SPEAKERKIT_REGISTRY", str(path))
    assert find_model("ours.internal")[1].about == "x"
    assert find_model("resnet34.voxceleb")[1].about == "x", "an entry of the same name takes the place of ours"
    assert len(known_models()) == len(MODELS) + 1
    monkeypatch.setenv("SPEAKERKIT_REGISTRY", str(tmp_path / "none.yaml"))
    assert "none.yaml: no such file" in speakerkit("models", "list").errors[0]
    assert "none.yaml: no such file" in speakerkit("embed", "a.wav", "--model", "ours.internal").errors[0]


def test_nearest_name() -> None:
    for wrong, near in (("resnet34.voxcelb-lm", "resnet34.voxceleb-lm"), ("Englisch", "english")):
        ran = speakerkit("models", "show", wrong)
        assert ran.code == 2
        assert f"model {wrong!r}: is not known; did you mean {near!r}?" in ran.errors[0]
    assert "see `speakerkit models list`" in speakerkit("models", "show", "zzz").errors[0]
