"""Models that other toolkits publish, made into bundles: recognised, renamed, checked, written.

Kinds: ``wespeaker`` (folder), ``onnx`` (WeSpeaker's exports), ``3dspeaker``, ``speechbrain`` and ``taoruijie``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from speakerkit.bundle import CONFIG, FORMAT, Bundle, BundleConfig, parse_config, write_bundle, write_graph_bundle
from speakerkit.config import read_yaml
from speakerkit.embedding.importers.layouts import Tensors, Translated
from speakerkit.embedding.importers.onnx import describe_graph
from speakerkit.embedding.importers.speechbrain import ECAPA_MARK, HYPERPARAMS, from_speechbrain
from speakerkit.embedding.importers.taoruijie import TAORUIJIE_MARK, from_taoruijie
from speakerkit.embedding.importers.three_d_speaker import CAMPPLUS_MARK, ERES2NET_MARK, from_3d_speaker
from speakerkit.errors import BundleError, ConfigError
from speakerkit.registry import suggest
from speakerkit.weights import published_tensors, require_finite
from speakerkit.wespeaker import CHECKPOINT, is_wespeaker, read_wespeaker, wespeaker_tensors

TRANSLATORS: dict[str, Callable[[Tensors, Path, int | None], Translated]] = {
    "3dspeaker": from_3d_speaker,
    "speechbrain": from_speechbrain,
    "taoruijie": from_taoruijie,
}
KINDS = ("wespeaker", "onnx", *TRANSLATORS)
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".model", ".onnx")
PREFERRED = "embedding_model.ckpt"  # SpeechBrain's folders hold other checkpoints beside it
LICENCE = re.compile(r"\A---\s*\n(?:.*\n)*?license:\s*(\S+)\s*\n(?:.*\n)*?---\s*\n")  # front matter of a model card


@dataclass(frozen=True)
class Wishes:
    """What the user says of a model that its files leave open; ``None`` for what they do not."""

    window: str | None = None
    scale: str | None = None
    num_mels: int | None = None


@dataclass(frozen=True)
class Imported:
    """A model that was imported.

    Attributes:
        bundle: where to, and its configuration.
        kind: what it was recognised as.
        source: the file of its weights.
        matched: tensors taken, or ``None`` where an ONNX file was taken whole.
        dropped: names of tensors that are no part of the model.
    """

    bundle: Bundle
    kind: str
    source: Path
    matched: int | None
    dropped: tuple[str, ...]

    def to_lines(self) -> list[str]:
        """What was made of what, in words."""
        config, frontend = self.bundle.config, self.bundle.config.frontend
        lines = [
            f"{self.bundle.path}: {config.model.name}, embeddings of {config.embedding_size}",
            f"from: {self.source} ({self.kind}), sha256 {config.provenance['source_sha256']}",
        ]
        if self.matched is not None:
            named = f" ({', '.join(self.dropped)})" if self.dropped else ""
            lines.append(f"tensors: {self.matched} matched, {len(self.dropped)} dropped{named}, 0 missing")
        return [
            *lines,
            f"front-end: {frontend.filterbank}, {frontend.num_mels} mels, {frontend.window} window, {frontend.scale} "
            f"scale, {frontend.sample_rate} Hz, mean norm {'on' if frontend.mean_norm else 'off'}",
            f"licence: {config.provenance.get('licence', 'not stated by its files')}",
        ]


def import_model(
    source: Path,
    out: Path,
    *,
    kind: str | None = None,
    wishes: Wishes = Wishes(),
    licence: str | None = None,
) -> Imported:
    """Write a bundle of a published model; nothing is written unless every tensor has found its place.

    Args:
        source: a file or folder.
        out: the folder to write; it must not be there, or be empty.
        kind: one of ``KINDS``; by default what the content looks like.
        wishes: fields of the front-end that the files leave open.
        licence: of the weights; by default what a model card (README.md) beside them states.

    Raises:
        BundleError: no model that is known, a model that its files do not fully describe, or tensors that do not fit.
        ConfigError: an unknown kind, or a wish that the kind has no room for.
        MissingExtraError: weights that need torch, where it is not installed.
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"kind {kind!r}", "is not known", suggest(kind, list(KINDS)))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(out, "is there already", "name a new folder")
    weights = _weights_file(source)
    if weights.suffix == ".onnx" and kind in (None, "onnx"):
        config = describe_graph(weights, wishes.window, wishes.scale, wishes.num_mels)
        config = replace(config, provenance={**config.provenance, **_origin(weights, "onnx", licence)})
        return Imported(write_graph_bundle(out, config, weights), "onnx", weights, None, ())
    if kind == "onnx":
        raise BundleError(weights, "is no ONNX file", "name one that ends in .onnx, or another kind")
    if kind == "wespeaker" or (kind is None and _is_wespeaker_folder(weights)):
        return _import_weights(weights, out, "wespeaker", _read_wespeaker(weights, wishes), licence)
    tensors = published_tensors(weights)
    kind = kind or _recognise(tensors, weights)
    translated = TRANSLATORS[kind](tensors, weights, wishes.num_mels)
    if wishes.window or wishes.scale:
        if translated.frontend.filterbank != "kaldi":
            raise ConfigError("--window, --scale", f"do not go with {kind}, whose front-end is known", "leave them out")
        changes = {name: value for name in ("window", "scale") if (value := getattr(wishes, name))}
        translated = replace(translated, frontend=replace(translated.frontend, **changes))
    return _import_weights(weights, out, kind, translated, licence)


def _weights_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise BundleError(source, "no such file or folder", "check the path")
    found = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if (source / CONFIG).is_file():
        values = read_yaml(source / CONFIG)
        if values.get("format") == FORMAT:
            raise BundleError(source, "is a bundle already", "use it as it is")
        if is_wespeaker(values):
            if (source / CHECKPOINT).is_file():
                return source / CHECKPOINT
            raise BundleError(source, f"has WeSpeaker's {CONFIG} but no {CHECKPOINT}", "give the checkpoint this name")
    preferred = [path for path in found if path.name == PREFERRED] or found
    if len(preferred) == 1:
        return preferred[0]
    fault = f"holds {len(found)} files that may be the model" if found else "holds no model file"
    raise BundleError(source, fault, f"name one that ends in {', '.join(SUFFIXES)}")


def _recognise(tensors: Tensors, path: Path) -> str:
    """The kind of a checkpoint, by the names of its tensors and the files beside it.

    Raises:
        BundleError: none that is known, or one that several toolkits publish.
    """
    if TAORUIJIE_MARK in tensors:
        return "taoruijie"
    if ECAPA_MARK in tensors:
        if path.with_name(HYPERPARAMS).is_file():
            return "speechbrain"
        fault = f"is an ECAPA-TDNN of SpeechBrain or of 3D-Speaker, and no {HYPERPARAMS} beside it tells"
        raise BundleError(path, fault, "say --kind speechbrain or --kind 3dspeaker")
    if CAMPPLUS_MARK in tensors or ERES2NET_MARK in tensors:
        if path.name == CHECKPOINT or any(name.startswith("projection") for name in tensors):
            raise BundleError(path, "is WeSpeaker's, without its config.yaml", "import the folder that holds both")
        return "3dspeaker"
    raise BundleError(path, "is of no published layout that is known", "give its whole folder, or say --kind")


def _is_wespeaker_folder(weights: Path) -> bool:
    settings = weights.parent / CONFIG
    return weights.name == CHECKPOINT and settings.is_file() and is_wespeaker(read_yaml(settings))


def _read_wespeaker(weights: Path, wishes: Wishes) -> Translated:
    settings = weights.parent / CONFIG
    if not settings.is_file():
        raise BundleError(weights, f"has no {CONFIG} of WeSpeaker beside it", "copy it from where the weights are from")
    values = read_yaml(settings)
    if not is_wespeaker(values):
        raise BundleError(settings, "is no configuration of WeSpeaker", "check --kind")
    read = read_wespeaker(settings, values, window=wishes.window, scale=wishes.scale)
    if wishes.num_mels is not None:
        read["frontend"]["num_mels"] = wishes.num_mels
    config = parse_config({**read, "format": FORMAT}, settings)
    tensors, dropped = wespeaker_tensors(weights)
    return Translated(config.model, config.frontend, tensors, tuple(dropped), config.provenance)


def _import_weights(weights: Path, out: Path, kind: str, found: Translated, licence: str | None) -> Imported:
    from speakerkit.embedding.model import backbone_for, load_tensors

    try:
        backbone = backbone_for(found.model, found.frontend)
    except ConfigError as error:
        raise BundleError(weights, f"{error.subject} {error.fault}", error.remedy) from None
    load_tensors(backbone, found.tensors, weights)
    require_finite(found.tensors, weights)
    config = BundleConfig(
        model=found.model,
        frontend=found.frontend.with_minimum(backbone.min_frames),
        embedding_size=backbone.embed_dim,
        provenance={**found.provenance, **_origin(weights, kind, licence)},
    )
    bundle = write_bundle(out, config, backbone.state_dict())
    return Imported(bundle, kind, weights, len(found.tensors), found.dropped)


def _origin(weights: Path, kind: str, licence: str | None) -> dict[str, str]:
    """What a bundle says of where it comes from."""
    licence = licence or _licence_beside(weights)
    origin = {
        "imported_from": weights.name,
        "source_kind": kind,
        "source_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    return {**origin, "licence": licence} if licence else origin


def _licence_beside(weights: Path) -> str | None:
    card = weights.with_name("README.md")
    if not card.is_file():
        return None
    stated = LICENCE.match(card.read_text(encoding="utf-8", errors="replace")[:20_000])
    return stated[1] if stated else None
