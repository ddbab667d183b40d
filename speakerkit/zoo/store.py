"""Where fetched models lie: fetching a model whole or not at all, its manifest, and checking it again later."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from speakerkit.errors import BundleError, ConfigError
from speakerkit.files import write_json
from speakerkit.zoo.archives import unpack
from speakerkit.zoo.download import download, file_sha256
from speakerkit.zoo.registry import Layout, ModelCard, RemoteFile, find_model, known_models, require_web

MANIFEST = "fetched.json"
IMPORTED = "bundle"
HOME, MIRROR, OFFLINE = "SPEAKERKIT_HOME", "SPEAKERKIT_MIRROR", "SPEAKERKIT_OFFLINE"

# What a folder must hold to be of a layout.
NEEDED: dict[Layout, tuple[str, ...]] = {
    "speakerkit": ("config.yaml",),
    "wespeaker": ("config.yaml", "avg_model.pt"),
    "wespeaker-onnx": ("model.onnx",),
    "3d-speaker": (),
    "speechbrain": ("hyperparams.yaml", "embedding_model.ckpt"),
    "taoruijie": ("pretrain.model",),
}

# Layouts that must be imported before use, and what `speakerkit import --kind` calls them.
IMPORT_KINDS: dict[Layout, str] = {
    "wespeaker-onnx": "onnx",
    "3d-speaker": "3dspeaker",
    "speechbrain": "speechbrain",
    "taoruijie": "taoruijie",
}

State = Literal["ok", "changed", "missing", "not as registered"]


@dataclass(frozen=True)
class Fetched:
    """A model that is on this disk.

    Attributes:
        path: its folder.
        downloaded: whether it was fetched just now; otherwise it was there, and was checked.
    """

    path: Path
    downloaded: bool


@dataclass(frozen=True)
class FileState:
    """What checking one file of a fetched model found; hashes are SHA-256."""

    name: str
    state: State
    expected: str
    found: str | None


def models_home() -> Path:
    """``$SPEAKERKIT_HOME/models``, by default ``~/.cache/speakerkit/models``."""
    home = os.environ.get(HOME)
    return (Path(home).expanduser() if home else Path.home() / ".cache" / "speakerkit").absolute() / "models"


def model_folder(name: str) -> Path:
    """Where the model of that registered name lies, or would lie."""
    return models_home() / name


def is_offline() -> bool:
    """Whether ``SPEAKERKIT_OFFLINE`` forbids the network."""
    return os.environ.get(OFFLINE, "0").lower() not in ("", "0", "false", "no")


def mirrored(url: str, mirror: str | None = None) -> str:
    """The address of the same file on a mirror, whose base takes the place of scheme and host.

    Args:
        mirror: base address; by default that of ``SPEAKERKIT_MIRROR``, and without either, ``url`` as it is.

    Raises:
        ConfigError: the mirror is no http or https address.
    """
    base = mirror or os.environ.get(MIRROR)
    if not base:
        return url
    require_web(base, "--mirror" if mirror else MIRROR)
    rest = urlsplit(url)
    return base.rstrip("/") + rest.path + (f"?{rest.query}" if rest.query else "")


def fetch(name: str, out: Path | None = None, mirror: str | None = None) -> Fetched:
    """Bring a model onto this disk, where it is not there and sound already.

    Its folder appears whole, with a manifest of its hashes, or not at all. What an interrupted call got is kept beside
    it, and the next one goes on from there.

    Args:
        name: a registered name or alias.
        out: folder to make instead of the one below ``SPEAKERKIT_HOME``.
        mirror: see :func:`mirrored`.

    Raises:
        ConfigError: no such model, or a mirror that is none.
        BundleError: offline, not to be downloaded, not what was registered, or the folder is something else's.
    """
    name, card = find_model(name)
    path = (out or model_folder(name)).absolute()
    if _is_sound(name, card, path):
        return Fetched(path, downloaded=False)
    if not card.files:
        raise BundleError(
            name, "cannot be fetched: the addresses of its files are not known here", f"download it from {card.page}"
        )
    urls = [mirrored(file.url, mirror) for file in card.files]
    if is_offline():
        raise BundleError(
            path, f"is not there, and {OFFLINE} forbids to download it", f"get {_listed(card.files, urls)}, or unset it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(path.with_name(f".{path.name}.lock")):
        _fetch_to(path, name, card, urls)
    return Fetched(path, downloaded=True)


def _is_sound(name: str, card: ModelCard, path: Path) -> bool:
    """Whether the model is there with every file as it was; a folder of something else is refused."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return False
    if not path.is_dir() or not (path / MANIFEST).is_file():
        raise BundleError(path, "is there and was not made by `models fetch`", "name another folder with --out")
    if read_manifest(path)["name"] != name:
        raise BundleError(path, f"holds the model {read_manifest(path)['name']!r}", "name another folder with --out")
    return all(file.state == "ok" for file in check(path, card))


def _listed(files: list[RemoteFile], urls: list[str]) -> str:
    return " and ".join(
        f"{url} (as {file.name}, sha256 {file.sha256 or 'unknown'})" for file, url in zip(files, urls, strict=True)
    )


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Refuse where another process is fetching to the same place; a killed one leaves nothing behind that counts."""
    try:
        import fcntl
    except ImportError:  # not a system that has it; two at once would waste a download, and the hashes are checked
        yield
        return
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BundleError(lock, "is held: another process fetches this model", "wait for it") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _fetch_to(path: Path, name: str, card: ModelCard, urls: list[str]) -> None:
    partial, whole, old = (path.with_name(f".{path.name}.{kind}") for kind in ("partial", "whole", "old"))
    partial.mkdir(exist_ok=True)
    try:
        hashes = [download(file, url, partial / file.name) for file, url in zip(card.files, urls, strict=True)]
    finally:
        if not any(partial.iterdir()):
            partial.rmdir()
    for leftover in (whole, old):
        shutil.rmtree(leftover, ignore_errors=True)
    whole.mkdir()
    try:
        _assemble(partial, whole, card)
        manifest = _manifest(name, card, whole, hashes)
        write_json(whole / MANIFEST, manifest)
        mended = (path / MANIFEST).is_file() and read_manifest(path)["files"] == manifest["files"]
        if path.exists():
            path.replace(old)
        whole.replace(path)
    finally:
        shutil.rmtree(whole, ignore_errors=True)
    if mended:  # the same model again: what was made of it, such as a calibration, still holds
        for made in old.iterdir():
            if not (path / made.name).exists():
                made.replace(path / made.name)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _assemble(partial: Path, whole: Path, card: ModelCard) -> None:
    for file in card.files:
        if file.unpack:
            unpack(partial / file.name, whole)
    if card.layout == "wespeaker":
        _rename_only(whole, "*.pt", "avg_model.pt")
        _rename_only(whole, "*.yaml", "config.yaml")
    for file in card.files:
        if not file.unpack:
            (partial / file.name).replace(whole / file.name)
    for needed in NEEDED[card.layout]:
        if not (whole / needed).is_file():
            there = ", ".join(sorted(each.name for each in whole.iterdir()))
            raise BundleError(whole, f"holds {there}, and no {needed}", f"see {card.page} for what changed")


def _rename_only(folder: Path, pattern: str, name: str) -> None:
    """Give the only file of a kind the name that loaders look for."""
    found = list(folder.glob(pattern))
    if len(found) == 1:
        found[0].replace(folder / name)


def _manifest(name: str, card: ModelCard, folder: Path, hashes: list[str]) -> dict[str, Any]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "name": name,
        "layout": card.layout,
        "license": card.license,
        "commercial_use": card.commercial_use,
        "page": card.page,
        "downloads": [{"url": file.url, "sha256": sha256} for file, sha256 in zip(card.files, hashes, strict=True)],
        "files": [
            {"name": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in files
        ],
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``models fetch`` wrote down about a folder.

    Raises:
        BundleError: no such file, or not as it was written.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(folder, f"has no {MANIFEST}", "only folders that `models fetch` made can be verified")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        names = [PurePosixPath(file["name"]) for file in value["files"]]
        whole = isinstance(value["name"], str) and all(isinstance(file["sha256"], str) for file in value["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(path, f"is damaged ({error!r})", "fetch the model again") from None
    if not whole or not names or any(name.is_absolute() or ".." in name.parts for name in names):
        raise BundleError(path, "is damaged", "fetch the model again")
    return dict(value)


def check(folder: Path, card: ModelCard | None = None) -> list[FileState]:
    """Hash every file of a fetched model anew, against the manifest and against what is registered.

    Args:
        card: what is registered; by default that of the name in the manifest, where it is known.

    Raises:
        BundleError: the folder has no manifest, or a damaged one.
    """
    manifest = read_manifest(folder)
    card = card or known_models().get(manifest["name"])
    registered = {file.name: file.sha256 for file in card.files if not file.unpack} if card else {}
    states = []
    for file in manifest["files"]:
        path, expected = folder / file["name"], file["sha256"]
        found = file_sha256(path) if path.is_file() else None
        known = registered.get(file["name"])
        state: State = "ok"
        if found is None:
            state = "missing"
        elif found != expected:
            state = "changed"
        elif known is not None and found != known:
            state, expected = "not as registered", known
        states.append(FileState(file["name"], state, expected, found))
    return states


def fetched_models() -> dict[str, Path]:
    """The registered models below ``SPEAKERKIT_HOME`` that have a manifest."""
    return {name: path for name in known_models() if ((path := model_folder(name)) / MANIFEST).is_file()}


def open_name(path: Path) -> Path:
    """The folder of a model that was given by path or by registered name; a path that exists is taken as it is.

    Raises:
        BundleError: a registered model that has not been fetched, or that must be imported first.
        ConfigError: the file that ``SPEAKERKIT_REGISTRY`` names cannot be used.
    """
    if path.exists() or len(path.parts) != 1:
        return path
    known_models()  # a registry file that cannot be used is said as such
    try:
        name, card = find_model(path.name)
    except ConfigError as error:
        if error.remedy.startswith("did you mean"):
            raise BundleError(path, "no such model folder and no registered model", error.remedy) from None
        return path
    folder = model_folder(name)
    if not (folder / MANIFEST).is_file():
        hashes = ", ".join(f"{file.name} sha256 {file.sha256}" for file in card.files if file.sha256)
        raise BundleError(
            name, f"has not been fetched to {folder}{f' ({hashes})' if hashes else ''}", f"run `{fetch_command(name)}`"
        )
    if card.layout not in IMPORT_KINDS:
        return folder
    if not is_imported(folder):
        raise BundleError(name, f"is of the layout {card.layout}", f"run `{import_command(card, folder)}` once")
    return folder / IMPORTED


def is_imported(folder: Path) -> bool:
    """Whether a bundle of the fetched model lies beside its files."""
    return (folder / IMPORTED / "config.yaml").is_file()


def fetch_command(name: str) -> str:
    """What a user types to fetch the model."""
    return f"speakerkit models fetch {name}"


def import_command(card: ModelCard, folder: Path) -> str:
    """What a user types to make a bundle of a fetched model; ``--model NAME`` finds it there."""
    return f"speakerkit import {folder} {folder / IMPORTED} --kind {IMPORT_KINDS[card.layout]}"
