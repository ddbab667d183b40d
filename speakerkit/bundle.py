"""Model bundles: a folder with configuration and weights, read strictly and without running code."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speakerkit.config import NamedConfig, parse, read_yaml, to_dict, write_yaml
from speakerkit.errors import BundleError, ConfigError, one_line
from speakerkit.features import FrontEnd
from speakerkit.files import write_json
from speakerkit.weights import require_finite
from speakerkit.wespeaker import CHECKPOINT, is_wespeaker, read_wespeaker, wespeaker_tensors

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "speakerkit-bundle-1"
CALIBRATION_FORMAT = "speakerkit-calibration-1"
CONFIG, WEIGHTS, GRAPH, CALIBRATION = "config.yaml", "model.safetensors", "model.onnx", "calibration.json"
NOTICES = ("LICENSE", "README.md")
GRAPH_ONLY = "onnx"  # model.name where there is a graph and no weights

# An entry of an ONNX file's metadata as protobuf writes it: name, tag of the value, its length, the value.
EXPORTED_FROM = rb"weights_sha256\x12\x40([0-9a-f]{64})"


@dataclass(frozen=True)
class BundleConfig:
    """``config.yaml`` of a bundle.

    Attributes:
        model: architecture.
        frontend: front-end, its dither as in training (inference uses none).
        embedding_size: D.
        provenance: data, recipe, git revision, versions.
        results: figures measured with this model, by test set.
    """

    model: NamedConfig
    frontend: FrontEnd
    embedding_size: int
    format: str = FORMAT
    provenance: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """``calibration.json`` of a bundle: what its cosines mean.

    Attributes:
        threshold: cosine from which on two recordings are taken for one speaker.
        source: where it came from, in words.
        model_sha256: digest of the model; "" in files that do not tell.
        scale: the log-likelihood ratio (natural logarithm) of a cosine is ``scale * cosine + offset``; ``None`` in
            files without.
        offset: see ``scale``.
        thresholds: for each asked rate ``rate`` ("far" or "frr"), ``asked``, ``threshold``, and what was measured
            there: ``far``, ``frr``, ``false_accepts``, ``misses``.
        data: what it was learnt from: trials, counts, EER, Cllr.
    """

    threshold: float
    source: str
    model_sha256: str = ""
    scale: float | None = None
    offset: float | None = None
    thresholds: tuple[dict[str, Any], ...] = ()
    data: dict[str, Any] = field(default_factory=dict)

    def llr(self, cosine: float) -> float | None:
        """Log-likelihood ratio (natural logarithm) of a cosine; ``None`` where the map is not known."""
        return None if self.scale is None or self.offset is None else self.scale * cosine + self.offset


@dataclass(frozen=True)
class Bundle:
    """A bundle folder whose configuration has been read.

    Attributes:
        path: the folder.
        config: what its ``config.yaml`` says.
        weights: name of the file of its weights: ``model.safetensors``, or ``avg_model.pt`` in WeSpeaker's folders.
    """

    path: Path
    config: BundleConfig
    weights: str = WEIGHTS

    @property
    def graph(self) -> Path | None:
        """The ONNX file, where there is one."""
        return self.path / GRAPH if (self.path / GRAPH).is_file() else None

    def digest(self) -> str:
        """SHA-256 of the weights: which model made an embedding.

        Without weights that of those the ONNX file was exported from, by its metadata: the same model, whichever of
        the two it is left with. Where they do not tell, that of the ONNX file.
        """
        content = (self.path / (self.weights if self.has_weights else GRAPH)).read_bytes()
        told = [] if self.has_weights else re.findall(EXPORTED_FROM, content)
        return str(told[-1], "ascii") if told else hashlib.sha256(content).hexdigest()

    @property
    def has_weights(self) -> bool:
        """Whether the file of the weights is there."""
        return (self.path / self.weights).is_file()

    def tensors(self) -> dict[str, Tensor]:
        """The backbone's state dictionary.

        Raises:
            BundleError: no weights, or damaged ones, or NaN among them.
        """
        path = self.path / self.weights
        if path.name == CHECKPOINT:
            tensors = wespeaker_tensors(path)[0]
            require_finite(tensors, path)
            return tensors
        if not path.is_file():
            raise BundleError(path, "no such file", "this bundle runs from its ONNX file only")
        return read_weights(path)

    def calibration(self) -> Calibration | None:
        """What ``calibration.json`` says; ``None`` where uncalibrated.

        Raises:
            BundleError: a damaged file, a threshold that is no cosine, or the calibration of other weights.
        """
        path = self.path / CALIBRATION
        if not path.is_file():
            return None
        try:
            calibration = _parse_calibration(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, OverflowError) as error:
            raise BundleError(path, f"holds no threshold ({error!r})", "calibrate the bundle again") from None
        if not -1 <= calibration.threshold <= 1:
            fault = f"holds a threshold of {calibration.threshold}"
            raise BundleError(path, fault, "a cosine lies in [-1, 1]; calibrate again")
        if calibration.model_sha256 not in ("", self.digest()):
            raise BundleError(path, "is the calibration of other weights", "run `speakerkit calibrate` again")
        return calibration

    def threshold(self) -> tuple[float, str] | None:
        """Cosine threshold and where it came from, out of ``calibration.json``; ``None`` where uncalibrated.

        Raises:
            BundleError: as :meth:`calibration`.
        """
        calibration = self.calibration()
        return None if calibration is None else (calibration.threshold, calibration.source)

    def write_calibration(self, calibration: Calibration) -> Path:
        """Write ``calibration.json``, atomically, and return its path."""
        values = asdict(calibration)
        scale, offset = values.pop("scale"), values.pop("offset")
        llr = {} if scale is None else {"llr": {"scale": scale, "offset": offset}}
        write_json(self.path / CALIBRATION, {"format": CALIBRATION_FORMAT, **values, **llr})
        return self.path / CALIBRATION


def _parse_calibration(values: dict[str, Any]) -> Calibration:
    """Values of ``calibration.json``; of the older form with ``threshold`` and ``source`` only, too."""
    if values.get("format", CALIBRATION_FORMAT) != CALIBRATION_FORMAT:
        raise ValueError(f"format {values['format']!r}")
    llr = values.get("llr")
    scale, offset = (None, None) if llr is None else (float(llr["scale"]), float(llr["offset"]))
    if scale is not None and not (0 < scale < 1e100 and abs(offset or 0.0) < 1e100):
        raise ValueError(f"a map to LLR with scale {scale} and offset {offset}")
    digest = str(values.get("model_sha256", ""))
    if not re.fullmatch("([0-9a-f]{64})?", digest):
        raise ValueError(f"model_sha256 {digest[:100]!r}")
    return Calibration(
        threshold=float(values["threshold"]),
        source=one_line(str(values["source"])),  # it is shown on terminals
        model_sha256=digest,
        scale=scale,
        offset=offset,
        thresholds=tuple(dict(row) for row in values.get("thresholds", ())),
        data=dict(values.get("data", {})),
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        BundleError: missing or damaged, or with NaN.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise BundleError(path, f"is damaged ({error})", "copy or train the bundle again") from None
    require_finite(tensors, path)
    return tensors


def read_bundle(path: str | Path) -> Bundle:
    """Open a bundle folder, or one of WeSpeaker's (``config.yaml`` and ``avg_model.pt``).

    Raises:
        BundleError: no folder, no configuration, no weights, or another format.
        ConfigError: unknown keys or wrong values in its configuration.
    """
    path = Path(path)
    if path.is_file():
        raise BundleError(path, "is a file, not a model folder", "make a folder of it with `speakerkit import`")
    if not path.is_dir():
        raise BundleError(path, "no such model folder", "train one with examples/voxceleb/run.sh, or check the path")
    if not (path / CONFIG).is_file():
        raise BundleError(path, f"has no {CONFIG}", "a bundle holds config.yaml with model.safetensors or model.onnx")
    values, weights = read_yaml(path / CONFIG), WEIGHTS
    if is_wespeaker(values):
        if not (path / CHECKPOINT).is_file():
            raise BundleError(path, f"has WeSpeaker's {CONFIG} but no {CHECKPOINT}", "give the checkpoint this name")
        values, weights = {**read_wespeaker(path / CONFIG, values), "format": FORMAT}, CHECKPOINT
    elif values.get("format") != FORMAT:
        raise BundleError(path / CONFIG, f"is of format {values.get('format')!r}", f"only {FORMAT!r} is read")
    config = parse_config(values, path / CONFIG)
    if not any((path / name).is_file() for name in (weights, GRAPH)):
        raise BundleError(path, f"has neither {WEIGHTS} nor {GRAPH}", "copy the whole folder")
    return Bundle(path, config, weights)


def parse_config(values: dict[str, Any], path: Path) -> BundleConfig:
    """The configuration in plain values.

    Raises:
        BundleError: unknown keys or wrong values; it names ``path``, which they are from.
    """
    try:
        config = parse(BundleConfig, values)
    except ConfigError as error:
        raise BundleError(path, f"{error.subject} {error.fault}", error.remedy) from None
    if config.embedding_size < 1:
        raise BundleError(path, f"embedding_size is {config.embedding_size}", "copy or make the bundle again")
    return config


def write_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file, atomically."""
    from safetensors.torch import save_file

    from speakerkit.files import atomic_path

    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def write_bundle(path: str | Path, config: BundleConfig, tensors: dict[str, Tensor]) -> Bundle:
    """Write configuration and weights; the ONNX file and the calibration of earlier weights are removed.

    The front-end's ``min_duration`` must be what the model needs; the caller sees to it.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for stale in (GRAPH, CALIBRATION):
        (path / stale).unlink(missing_ok=True)
    write_weights(path / WEIGHTS, tensors)
    write_yaml(path / CONFIG, to_dict(config))
    return Bundle(path, config)


def copy_bundle(bundle: Bundle, out: str | Path) -> Bundle:
    """The same bundle in another folder, byte for byte, so that embeddings of the two may be compared."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, bundle.weights, GRAPH, CALIBRATION, *NOTICES):
        (out / name).unlink(missing_ok=True)
        if (bundle.path / name).is_file():
            shutil.copyfile(bundle.path / name, out / name)
    return read_bundle(out)


def write_graph_bundle(path: str | Path, config: BundleConfig, graph: Path) -> Bundle:
    """Write configuration and a copy of an ONNX file: a bundle without weights, which runs as it is."""
    from speakerkit.files import atomic_path

    path = Path(path)
    with atomic_path(path / GRAPH) as temporary:
        temporary.write_bytes(graph.read_bytes())
    write_yaml(path / CONFIG, to_dict(config))
    return Bundle(path, config)
