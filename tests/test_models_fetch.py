"""`speakerkit models fetch` against servers that cut, lie and refuse, and `verify` against files that changed."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml

from speakerkit.zoo import download as downloading
from speakerkit.zoo.store import fetched_models, model_folder
from tests.command import Ran, speakerkit
from tests.conftest import speech_like
from tests.test_no_torch import run_blocked
from tests.web import Page, Site, serving

WEIGHTS = bytes((7 * number + number // 251) % 256 for number in range(700_000))
CONFIG = b"model: ResNet34\n"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        running.pages["/w.pt"] = Page(WEIGHTS)
        running.pages["/c.yaml"] = Page(CONFIG)
        yield running


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no waiting between attempts, and no proxy before 127.0.0.1."""
    for name in ("SPEAKERKIT_MIRROR", "SPEAKERKIT_OFFLINE", "SPEAKERKIT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPEAKERKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloading, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(downloading, "TIMEOUT", 5.0)
    return tmp_path / "home"


class Shelf:
    """A registry file of the test's own."""

    def __init__(self, folder: Path, site: Site) -> None:
        self.path, self.site, self.models = folder / "registry.yaml", site, {}  # type: ignore[var-annotated]

    def add(self, name: str = "tiny.test", layout: str = "wespeaker", **changed: Any) -> None:
        """Register a model of two files, the second with its hash."""
        files = [
            {"name": "config.yaml", "url": self.site.url("/c.yaml")},
            {"name": "avg_model.pt", "url": self.site.url("/w.pt"), "sha256": _sha256(WEIGHTS)},
        ]
        card = {
            "about": "a model for tests",
            "layout": layout,
            "page": "https://example.org/tiny",
            "license": "CC0-1.0",
            "commercial_use": True,
            "files": files,
        }
        self.models[name] = {**card, **changed}
        self.path.write_text(yaml.safe_dump({"models": self.models}))

    def add_file(self, path: str, **facts: Any) -> None:
        """Register a model of one file, by default without hash and size."""
        file = {"name": "config.yaml", "url": self.site.url(path), **facts}
        self.add(layout="speakerkit", files=[file])


@pytest.fixture
def shelf(tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    shelf = Shelf(tmp_path, site)
    monkeypatch.setenv("SPEAKERKIT_REGISTRY", str(shelf.path))
    shelf.add()
    return shelf


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetch(*options: object, code: int = 0) -> Ran:
    ran = speakerkit("models", "fetch", "tiny.test", *options)
    assert ran.code == code, ran
    assert "%|" not in ran.err, "a progress bar that no terminal shows"
    assert len(ran.errors) == (code != 0), ran.err
    return ran


def fetched_bytes(name: str = "avg_model.pt") -> bytes:
    return (model_folder("tiny.test") / name).read_bytes()


def remains(home: Path) -> set[str]:
    """Names of what lies below the cache."""
    return {path.relative_to(home / "models").as_posix() for path in (home / "models").rglob("*")}


def test_fetches_whole(shelf: Shelf, home: Path) -> None:
    ran = fetch()
    folder = home / "models" / "tiny.test"
    assert ran.out == f"{folder}\n"
    assert "commercial use: yes" in ran.err
    assert fetched_bytes() == WEIGHTS
    assert fetched_bytes("config.yaml") == CONFIG
    manifest = json.loads((folder / "fetched.json").read_text())
    assert manifest["license"] == "CC0-1.0"
    assert {file["name"]: file["sha256"] for file in manifest["files"]} == {
        "config.yaml": _sha256(CONFIG),
        "avg_model.pt": _sha256(WEIGHTS),
    }
    whole = {"tiny.test", *(f"tiny.test/{name}" for name in ("config.yaml", "avg_model.pt", "fetched.json"))}
    assert remains(home) == whole
    assert not any(path.is_symlink() for path in home.rglob("*"))


def test_what_is_there_is_not_fetched_again(shelf: Shelf) -> None:
    fetch()
    asked = len(shelf.site.requests)
    ran = fetch()
    assert "here already" in ran.err
    assert len(shelf.site.requests) == asked


def test_elsewhere(shelf: Shelf, home: Path, tmp_path: Path) -> None:
    ran = fetch("--out", tmp_path / "there")
    assert ran.out == f"{tmp_path / 'there'}\n"
    assert (tmp_path / "there" / "avg_model.pt").read_bytes() == WEIGHTS
    assert not home.exists()
    assert "--model " + str(tmp_path / "there") in ran.err


def test_folders_of_others_are_left_alone(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "notes.txt").write_text("x")
    ran = fetch("--out", tmp_path / "precious", code=2)
    assert "precious: is there and was not made by `models fetch`" in ran.errors[0]
    shelf.add("other.test")
    assert speakerkit("models", "fetch", "other.test", "--out", tmp_path / "taken").code == 0
    assert "holds the model 'other.test'" in fetch("--out", tmp_path / "taken", code=2).errors[0]
    (tmp_path / "empty").mkdir()
    fetch("--out", tmp_path / "empty")


def test_goes_on_where_the_line_was_cut(shelf: Shelf) -> None:
    shelf.site.pages["/w.pt"].cuts = [300_000, 100_000]
    fetch()
    assert fetched_bytes() == WEIGHTS
    assert shelf.site.ranges()[1:] == [None, "bytes=300000-", "bytes=400000-"]
    assert shelf.site.requests[2][1]["If-Range"] == '"1"'


def test_goes_on_where_an_earlier_call_ended(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.site.pages["/w.pt"].cuts = [300_000]
    monkeypatch.setattr(downloading, "ATTEMPTS", 1)
    ran = fetch(code=2)
    assert "the connection closed after 300000 of 700000 bytes" in ran.errors[0]
    assert "tiny.test" not in remains(home), "half a model"
    fetch()
    assert fetched_bytes() == WEIGHTS
    assert shelf.site.ranges() == [None, None, "bytes=300000-"], "config.yaml was fetched twice, or the weights whole"


def test_without_ranges_it_starts_again(shelf: Shelf) -> None:
    shelf.site.pages["/w.pt"] = Page(WEIGHTS, ranges=False, cuts=[300_000])
    fetch()
    assert fetched_bytes() == WEIGHTS


def test_a_file_that_was_replaced_meanwhile_is_not_glued_on(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    other = WEIGHTS[::-1] + b"longer"
    shelf.add_file("/w.pt")
    shelf.site.pages["/w.pt"].cuts = [300_000]
    monkeypatch.setattr(downloading, "ATTEMPTS", 1)
    fetch(code=2)
    shelf.site.pages["/w.pt"] = Page(other, etag='"2"')
    fetch()
    assert fetched_bytes("config.yaml") == other
    assert shelf.site.ranges() == [None, "bytes=300000-"]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_anything_that_tells_versions_apart_nothing_is_resumed(shelf: Shelf, etag: str) -> None:
    shelf.add_file("/w.pt")
    shelf.site.pages["/w.pt"] = Page(WEIGHTS, etag=etag, cuts=[300_000])
    fetch()
    assert fetched_bytes("config.yaml") == WEIGHTS
    assert shelf.site.ranges() == [None, None]


def test_a_known_hash_is_enough_to_resume(shelf: Shelf) -> None:
    shelf.site.pages["/w.pt"] = Page(WEIGHTS, etag="", cuts=[300_000])
    fetch()
    assert fetched_bytes() == WEIGHTS
    assert shelf.site.ranges()[2] == "bytes=300000-"


def test_a_part_from_another_place_than_asked_for(shelf: Shelf) -> None:
    shelf.site.pages["/w.pt"] = Page(WEIGHTS, shift=5, cuts=[300_000])
    fetch()
    assert fetched_bytes() == WEIGHTS
    assert shelf.site.ranges()[1:] == [None, "bytes=300000-", None]


def test_a_spoilt_part_is_fetched_whole_once(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.site.pages["/w.pt"].cuts = [300_000]
    with monkeypatch.context() as context:
        context.setattr(downloading, "ATTEMPTS", 1)
        fetch(code=2)
    (part,) = home.rglob("*.part")
    part.write_bytes(b"\0" * part.stat().st_size)
    fetch()
    assert fetched_bytes() == WEIGHTS
    assert shelf.site.ranges()[-2:] == ["bytes=300000-", None]


def test_a_whole_part_only_wants_its_name(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill leaves it between the last byte and the renaming."""
    shelf.site.pages["/w.pt"].cuts = [300_000]
    with monkeypatch.context() as context:
        context.setattr(downloading, "ATTEMPTS", 1)
        fetch(code=2)
    (part,) = home.rglob("*.part")
    part.write_bytes(WEIGHTS)
    asked = len(shelf.site.requests)
    fetch()
    assert len(shelf.site.requests) == asked


def test_a_part_longer_than_the_file(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.site.pages["/w.pt"].cuts = [300_000]
    with monkeypatch.context() as context:
        context.setattr(downloading, "ATTEMPTS", 1)
        fetch(code=2)
    (part,) = home.rglob("*.part")
    part.write_bytes(b"\0" * 800_000)
    fetch()
    assert fetched_bytes() == WEIGHTS


def test_wrong_hash(shelf: Shelf, home: Path) -> None:
    shelf.site.pages["/w.pt"] = Page(WEIGHTS[:-1] + b"?")
    ran = fetch(code=2)
    assert _sha256(WEIGHTS) in ran.errors[0]
    assert _sha256(WEIGHTS[:-1] + b"?") in ran.errors[0]
    assert not list(home.rglob("avg_model*"))
    assert len(shelf.site.requests) == 2


def test_wrong_size_is_seen_before_the_download(shelf: Shelf, home: Path) -> None:
    shelf.add_file("/w.pt", size=12)
    ran = fetch(code=2)
    assert "has 700000 bytes, 12 are registered" in ran.errors[0]
    assert not list(home.rglob("config.yaml*"))


def test_wrong_size_of_a_body_without_a_length(shelf: Shelf) -> None:
    shelf.add_file("/w.pt", size=12)
    shelf.site.pages["/w.pt"].declared = -1
    assert "has 700000 bytes, 12 are registered" in fetch(code=2).errors[0]


def test_a_web_page_instead_of_a_model(shelf: Shelf) -> None:
    shelf.site.pages["/w.pt"] = Page(b"<!DOCTYPE html><html>log in</html>")
    assert "it is a web page" in fetch(code=2).errors[0]
    shelf.add(files=[{"name": "m.zip", "url": shelf.site.url("/w.pt"), "unpack": True}])
    assert "is neither zip nor tar; a web page" in fetch(code=2).errors[0]


def test_not_there(shelf: Shelf, home: Path) -> None:
    shelf.add_file("/nowhere.bin")
    ran = fetch(code=2)
    assert "/nowhere.bin: the server answers 404" in ran.errors[0]
    assert not list(home.glob("models/.*partial")), "nothing came, and nothing is left"
    assert len(shelf.site.requests) == 1, "404 will not pass"


def test_a_fault_that_passes(shelf: Shelf) -> None:
    shelf.site.pages["/w.pt"].statuses = [500, 503, 429]
    fetch()
    assert fetched_bytes() == WEIGHTS


def test_a_fault_that_stays(shelf: Shelf) -> None:
    shelf.add_file("/w.pt")
    shelf.site.pages["/w.pt"].statuses = [503] * 100
    ran = fetch(code=2)
    assert f"could not be downloaded in {downloading.ATTEMPTS} attempts: the server answers 503" in ran.errors[0]
    assert len(shelf.site.requests) == downloading.ATTEMPTS


def test_shorter_than_it_says(shelf: Shelf, home: Path) -> None:
    shelf.add_file("/w.pt")
    shelf.site.pages["/w.pt"] = Page(WEIGHTS, declared=len(WEIGHTS) + 10)
    assert "the connection closed after 700000 of 700010 bytes" in fetch(code=2).errors[0]
    assert "tiny.test" not in remains(home)


def test_a_server_that_says_nothing(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "TIMEOUT", 0.1)
    monkeypatch.setattr(downloading, "ATTEMPTS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        shelf.add(files=[{"name": "config.yaml", "url": f"http://127.0.0.1:{silent.getsockname()[1]}/x"}])
        assert "in 2 attempts: timed out" in fetch(code=2).errors[0]


def test_nobody_listens(shelf: Shelf) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    shelf.add(files=[{"name": "config.yaml", "url": f"http://127.0.0.1:{port}/x"}])
    assert "Connection refused" in fetch(code=2).errors[0]


def test_redirects_are_followed(shelf: Shelf) -> None:
    shelf.site.pages["/moved"] = Page(location="/w.pt")
    shelf.site.pages["/w.pt"].cuts = [300_000]
    shelf.add_file("/moved", sha256=_sha256(WEIGHTS))
    fetch()
    assert fetched_bytes("config.yaml") == WEIGHTS
    assert shelf.site.ranges() == [None, None, "bytes=300000-", "bytes=300000-"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_leave_the_web_never(shelf: Shelf, target: str) -> None:
    shelf.site.pages["/moved"] = Page(location=target)
    shelf.add_file("/moved")
    (error,) = fetch(code=2).errors
    assert "redirect" in error.lower()
    assert target in error


def test_redirects_in_a_circle(shelf: Shelf) -> None:
    shelf.site.pages["/moved"] = Page(location="/moved")
    shelf.add_file("/moved")
    assert "the server answers 302" in fetch(code=2).errors[0]


def test_encryption_is_not_given_up() -> None:
    handler = downloading._Redirects()
    request = downloading.urllib.request.Request("https://example.org/a")
    arguments = io.BytesIO(), 302, "Found", {}
    assert handler.redirect_request(request, *arguments, "https://example.org/b") is not None
    with pytest.raises(downloading.BundleError, match=r"redirects to http://example\.org/b"):
        handler.redirect_request(request, *arguments, "http://example.org/b")


@pytest.mark.parametrize("by_option", [False, True])
def test_mirror(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, by_option: bool) -> None:
    shelf.site.pages["/copies/org/w.pt?x=1"] = Page(WEIGHTS)
    file = {"name": "config.yaml", "url": "https://unreachable.invalid/org/w.pt?x=1", "sha256": _sha256(WEIGHTS)}
    shelf.add(layout="speakerkit", files=[file])
    base = shelf.site.url("/copies/")
    monkeypatch.setenv("SPEAKERKIT_MIRROR", "ftp://wrong" if by_option else base)
    fetch(*(["--mirror", base] if by_option else []))
    assert fetched_bytes("config.yaml") == WEIGHTS
    assert json.loads(fetched_bytes("fetched.json"))["downloads"][0]["url"] == file["url"]


@pytest.mark.parametrize(
    "base", ["ftp://x", "127.0.0.1:80", "http://", "file:///tmp", "http://me:secret@host", "http://h:x"]
)
def test_mirrors_that_are_none(shelf: Shelf, base: str) -> None:
    assert f"--mirror: is {base!r}" in fetch("--mirror", base, code=2).errors[0]
    assert not shelf.site.requests


def test_offline(shelf: Shelf, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SPEAKERKIT_OFFLINE nothing as much as opens a socket; what is here can be used, listed and verified."""
    shelf.add("here.test")
    assert speakerkit("models", "fetch", "here.test").code == 0

    def no_network(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("SPEAKERKIT_OFFLINE", "1")
    message = fetch(code=2).errors[0]
    for part in (str(home / "models" / "tiny.test"), shelf.site.url("/w.pt"), _sha256(WEIGHTS), "sha256 unknown"):
        assert part in message
    assert speakerkit("models", "fetch", "here.test").code == 0
    for command in (["list"], ["list", "--json"], ["show", "tiny.test"], ["verify"], ["verify", "here.test"]):
        ran = speakerkit("models", *command)
        assert ran.code == 0, ran


def test_nothing_but_fetch_opens_a_socket(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (["list"], ["show", "tiny.test"], ["verify"]):
        assert speakerkit("models", *command).code == 0
    assert speakerkit("embed", "-m", "tiny.test", "a.wav").code == 2
    assert not shelf.site.requests


def test_a_disk_that_is_too_small(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert "has 1 MB free, 67 MB are needed" in fetch(code=2).errors[0]


def test_a_disk_that_fills_up(shelf: Shelf, home: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    partial = home / "models" / ".tiny.test.partial"
    partial.mkdir(parents=True)
    (partial / "avg_model.pt.part").symlink_to("/dev/full")
    ran = fetch(code=2)
    assert "avg_model.pt.part: cannot be written (No space left on device)" in ran.errors[0]
    assert "tiny.test" not in remains(home)
    assert len(shelf.site.requests) == 2, "a full disk is not tried again"


def test_two_at_once(shelf: Shelf, home: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (home / "models").mkdir(parents=True)
    with (home / "models" / ".tiny.test.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process fetches this model" in fetch(code=2).errors[0]
    fetch()


def test_progress_counts_from_where_it_resumes(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[dict[str, Any]] = []
    tqdm = downloading.tqdm

    def bar(**settings: Any) -> Any:
        bars.append(settings)
        return tqdm(**settings)

    monkeypatch.setattr(downloading, "tqdm", bar)
    shelf.site.pages["/w.pt"].cuts = [300_000]
    fetch()
    assert [(each["desc"], each["initial"], each["total"]) for each in bars] == [
        ("config.yaml", 0, len(CONFIG)),
        ("avg_model.pt", 0, 700_000),
        ("avg_model.pt", 300_000, 700_000),
    ]
    assert all(each["disable"] for each in bars)


def test_unknown_places(shelf: Shelf) -> None:
    shelf.add(files=[])
    assert "download it from https://example.org/tiny" in fetch(code=2).errors[0]
    assert "files: unknown" in speakerkit("models", "show", "tiny.test").out


def test_verify(shelf: Shelf) -> None:
    fetch()
    folder = model_folder("tiny.test")
    for arguments in (["tiny.test"], [folder], []):
        ran = speakerkit("models", "verify", *arguments)
        assert (ran.code, ran.out.splitlines()[0]) == (0, f"{folder}: ok")
    weights = folder / "avg_model.pt"
    weights.write_bytes(b"?" + WEIGHTS[1:])
    (folder / "config.yaml").unlink()
    (folder / "calibration.json").write_text("{}")
    ran = speakerkit("models", "verify", "tiny.test", "--json")
    assert ran.code == 2
    states = {file["name"]: file["state"] for file in json.loads(ran.out)[0]["files"]}
    assert states == {"avg_model.pt": "changed", "config.yaml": "missing"}
    assert _sha256(WEIGHTS) in ran.errors[0]
    assert _sha256(b"?" + WEIGHTS[1:]) in ran.errors[0]
    fetch()
    assert fetched_bytes() == WEIGHTS
    assert fetched_bytes("calibration.json") == b"{}", "what was made of the model is kept"
    assert speakerkit("models", "verify").code == 0


def test_verify_what_is_not_here(shelf: Shelf, tmp_path: Path) -> None:
    ran = speakerkit("models", "verify", "tiny.test")
    assert ran.code == 2
    assert f"tiny.test: has not been fetched to {model_folder('tiny.test')}" in ran.errors[0]
    assert "has no fetched.json" in speakerkit("models", "verify", tmp_path).errors[0]


def test_verify_several(shelf: Shelf) -> None:
    shelf.add("other.test")
    fetch()
    assert speakerkit("models", "fetch", "other.test").code == 0
    assert list(fetched_models()) == ["other.test", "tiny.test"]
    (model_folder("other.test") / "config.yaml").write_text("changed")
    ran = speakerkit("models", "verify")
    assert ran.code == 3
    assert "config.yaml: is changed" in ran.errors[0]


def test_verify_against_a_registry_that_moved_on(shelf: Shelf) -> None:
    shelf.add_file("/w.pt")
    fetch()
    shelf.add_file("/w.pt", sha256="0" * 64)
    (model_folder("tiny.test") / "calibration.json").write_text("{}")
    ran = speakerkit("models", "verify", "tiny.test")
    assert ran.code == 2
    assert f"is not as registered (SHA-256 {_sha256(WEIGHTS)}, {'0' * 64} is expected)" in ran.errors[0]
    shelf.site.pages["/w.pt"] = Page(WEIGHTS[::-1])
    shelf.add_file("/w.pt", sha256=_sha256(WEIGHTS[::-1]))
    fetch()
    assert not (model_folder("tiny.test") / "calibration.json").exists(), "it was another model's"


def test_verify_of_nothing(home: Path) -> None:
    ran = speakerkit("models", "verify")
    assert (ran.code, ran.out) == (0, "")
    assert f"no models below {home / 'models'}" in ran.err
    assert speakerkit("models", "verify", "--json").out == "[]\n"


def test_archive(shelf: Shelf) -> None:
    """What WeSpeaker's hub serves: a zip with one folder, its checkpoint under another name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("voxceleb_x/", "")
        archive.writestr("voxceleb_x/final_model.pt", WEIGHTS)
        archive.writestr("voxceleb_x/train.yaml", CONFIG)
    shelf.site.pages["/m.zip"] = Page(stream.getvalue())
    shelf.add(files=[{"name": "m.zip", "url": shelf.site.url("/m.zip"), "unpack": True}])
    fetch()
    assert fetched_bytes() == WEIGHTS
    assert fetched_bytes("config.yaml") == CONFIG
    assert not (model_folder("tiny.test") / "m.zip").exists()
    assert json.loads(fetched_bytes("fetched.json"))["downloads"][0]["sha256"] == _sha256(stream.getvalue())


def test_archive_that_lacks_something(shelf: Shelf, home: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x/avg_model.pt", WEIGHTS)
    shelf.site.pages["/m.zip"] = Page(stream.getvalue())
    shelf.add(files=[{"name": "m.zip", "url": shelf.site.url("/m.zip"), "unpack": True}])
    assert "holds avg_model.pt, and no config.yaml" in fetch(code=2).errors[0]
    assert "tiny.test" not in remains(home)


def test_model_by_name(shelf: Shelf, small_bundle: Path, tmp_path: Path) -> None:
    """Not fetched: one line with place, hash and command. Fetched: the same embedding as from the folder itself."""
    import soundfile

    wav = tmp_path / "a.wav"
    soundfile.write(wav, speech_like(1.0), 16000)
    files = []
    for path in sorted(small_bundle.iterdir()):
        shelf.site.pages[f"/{path.name}"] = Page(path.read_bytes())
        digest = _sha256(path.read_bytes())
        files.append({"name": path.name, "url": shelf.site.url(f"/{path.name}"), "sha256": digest})
    shelf.add(layout="speakerkit", files=files, aliases=["tiny"])
    ran = speakerkit("embed", "-m", "tiny", wav)
    assert ran.code == 2
    (error,) = ran.errors
    for part in (str(model_folder("tiny.test")), files[0]["sha256"], "`speakerkit models fetch tiny.test`"):
        assert part in error
    fetch()
    by_name = json.loads(speakerkit("embed", "-m", "tiny", wav).out)["embedding"]
    by_path = json.loads(speakerkit("embed", "-m", small_bundle, wav).out)["embedding"]
    np.testing.assert_array_equal(by_name, by_path)


def test_a_folder_comes_before_a_name(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.test").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "tiny.test: has no config.yaml" in speakerkit("embed", "-m", "tiny.test", "a.wav").errors[0]


def test_names_that_are_nearly_right(shelf: Shelf) -> None:
    for command in ("models show", "models fetch", "models verify", "embed a.wav --model"):
        ran = speakerkit(*command.split(), "tiny.tets")
        assert ran.code == 2
        assert "did you mean 'tiny.test'?" in ran.errors[0]


def test_onnx_is_made_a_bundle_without_torch(shelf: Shelf, onnx_bundle: Path, tmp_path: Path) -> None:
    """A published graph is usable by name right after it is fetched, in an installation without torch."""
    import soundfile

    wav = tmp_path / "a.wav"
    soundfile.write(wav, speech_like(1.0), 16000)
    graph = (onnx_bundle / "model.onnx").read_bytes()
    shelf.site.pages["/m.onnx"] = Page(graph)
    file = {"name": "model.onnx", "url": shelf.site.url("/m.onnx"), "sha256": _sha256(graph)}
    shelf.add(layout="wespeaker-onnx", files=[file])
    code = """
        import json
        from tests.command import speakerkit as run
        by_name, wav, bundle = sys.argv[1:]
        fetched = run("models", "fetch", by_name)
        assert fetched.code == 0 and "not imported" not in fetched.err, fetched
        assert run("models", "list").code == run("models", "verify").code == 0
        vectors = [json.loads(run("embed", "-m", model, wav).out)["embedding"] for model in (by_name, bundle)]
        assert vectors[0] == vectors[1]
        assert not BLOCKED & {name.partition(".")[0] for name in sys.modules}
        print("done")
    """
    done = run_blocked(code, "tiny.test", wav, onnx_bundle)
    assert done.stdout.endswith("done\n"), done.stderr
    shutil.rmtree(model_folder("tiny.test") / "bundle")
    ran = speakerkit("embed", "-m", "tiny.test", wav)
    assert "is of the layout wespeaker-onnx; run `speakerkit import " in ran.errors[0]


def test_what_cannot_be_imported_is_fetched_all_the_same(shelf: Shelf) -> None:
    shelf.add(layout="3d-speaker", files=[{"name": "x.bin", "url": shelf.site.url("/w.pt")}])
    ran = fetch()
    assert "not imported yet (" in ran.err
    assert "then run `speakerkit import " in ran.err
    assert speakerkit("models", "verify", "tiny.test").code == 0
