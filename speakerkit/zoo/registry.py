"""What is known of public speaker models: where their files lie, what they may be used for, what was measured."""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from speakerkit.config import parse, read_yaml, require
from speakerkit.errors import ConfigError
from speakerkit.registry import suggest

Layout = Literal["speakerkit", "wespeaker", "wespeaker-onnx", "3d-speaker", "speechbrain", "taoruijie"]

FURTHER = "SPEAKERKIT_REGISTRY"
NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model.

    Attributes:
        name: what it is called once fetched, which is what the loaders look for.
        url: where its authors keep it, with http or https.
        sha256: of the file there; ``None`` where nobody has stated it.
        size: exact bytes; ``None`` where unknown.
        about_mb: megabytes (10**6) as the page of the model rounds them, where the exact size is unknown.
        unpack: whether it is a zip or tar whose content counts, not the archive itself.
    """

    name: str
    url: str
    sha256: str | None = None
    size: int | None = None
    about_mb: float | None = None
    unpack: bool = False

    @property
    def megabytes(self) -> float | None:
        """How much there is to download, in 10**6 bytes."""
        return self.about_mb if self.size is None else self.size / 1e6


@dataclass(frozen=True)
class ModelCard:
    """A public model. ``None`` and empty values mean that it is not known, never that it is not so.

    Attributes:
        about: what it is, in a line.
        layout: how its files are laid out.
        page: where people read about it.
        license: of the weights (SPDX identifier where there is one).
        commercial_use: whether that licence allows it.
        license_note: who says so, and what speaks against it.
        files: empty where their addresses are not known.
        front_end: what its input features must be like.
        eer: published equal error rates in percent, by test set.
        eer_conditions: how they were scored.
        eer_source: who published them.
        aliases: names that others use for it.
        remarks: anything else that a user should know.
    """

    about: str
    layout: Layout
    page: str
    license: str | None
    commercial_use: bool | None
    license_note: str = ""
    files: list[RemoteFile] = field(default_factory=list)
    training_data: str | None = None
    languages: str | None = None
    embedding_size: int | None = None
    sample_rate: int | None = None
    front_end: str = ""
    eer: dict[str, float] = field(default_factory=dict)
    eer_conditions: str = ""
    eer_source: str = ""
    aliases: list[str] = field(default_factory=list)
    remarks: str = ""

    @property
    def megabytes(self) -> float | None:
        """Size of the whole download in 10**6 bytes, as far as the sizes of its large files are known."""
        sizes = [file.megabytes for file in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if known else None


@dataclass(frozen=True)
class _File:
    """The YAML file: ``templates`` only holds what several models share through YAML anchors."""

    models: dict[str, ModelCard]
    templates: dict[str, Any] = field(default_factory=dict)


def known_models() -> dict[str, ModelCard]:
    """Every registered model by name, those of the file that ``SPEAKERKIT_REGISTRY`` names included.

    Raises:
        ConfigError: that file cannot be used.
    """
    models = dict(_shipped())
    further = os.environ.get(FURTHER)
    if further:
        models.update(read_registry(further))
    return dict(sorted(models.items()))


@cache
def _shipped() -> dict[str, ModelCard]:
    with resources.as_file(resources.files("speakerkit.zoo") / "models.yaml") as path:
        return read_registry(path)


def read_registry(path: str | Path) -> dict[str, ModelCard]:
    """The models of a registry file, their names and addresses checked.

    Raises:
        ConfigError: no such file, an unknown key, or a name, address or hash that is none.
    """
    try:
        models = parse(_File, read_yaml(path)).models
        for name, card in models.items():
            _check(name, card)
    except ConfigError as error:
        if error.subject == str(path):
            raise
        raise ConfigError(path, f"{error.subject} {error.fault}", error.remedy) from None
    return models


def _check(name: Any, card: ModelCard) -> None:
    where = f"models.{name}"
    for each in (name, *card.aliases):
        good = isinstance(each, str) and NAME.fullmatch(each) is not None
        require(good, where, each, "names are of lower-case letters, digits and . _ + -")
    require(
        len({file.name for file in card.files}) == len(card.files), where, card.files, "give each file its own name"
    )
    for file in card.files:
        require(FILE_NAME.fullmatch(file.name) is not None, f"{where}.files.name", file.name, "give a plain file name")
        require_web(file.url, f"{where}.files.url")
        if file.sha256 is not None:
            hexadecimal = SHA256.fullmatch(file.sha256) is not None
            require(hexadecimal, f"{where}.files.sha256", file.sha256, "give 64 hexadecimal digits or null")


def require_web(url: str, subject: str) -> None:
    """Refuse an address that is not http or https, that names no host, or that holds a password.

    Raises:
        ConfigError: it is such an address.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        good = good and url.isascii() and url.isprintable() and " " not in url
    except ValueError:  # a port that is no number, brackets that do not close
        good = False
    require(good, subject, url, "an address starts with http:// or https:// and a host")
    require("@" not in parts.netloc, subject, url, "leave out user name and password")


def find_model(name: str) -> tuple[str, ModelCard]:
    """The registered name and the card of a model, by its name or one of its aliases.

    Raises:
        ConfigError: no such model; the message suggests the nearest name.
    """
    models = known_models()
    if name in models:
        return name, models[name]
    for known, card in models.items():
        if name in card.aliases:
            return known, card
    every = [*models, *(alias for card in models.values() for alias in card.aliases)]
    remedy = suggest(name, every)
    raise ConfigError(
        f"model {name!r}",
        "is not known",
        remedy if remedy.startswith("did you mean") else "see `speakerkit models list`",
    )


def matching(pattern: str | None) -> dict[str, ModelCard]:
    """The models whose name or an alias matches a shell pattern (``resnet*``, ``*voxceleb*``); all without one."""
    return {
        name: card
        for name, card in known_models().items()
        if pattern is None or any(fnmatch.fnmatchcase(each, pattern.lower()) for each in (name, *card.aliases))
    }
