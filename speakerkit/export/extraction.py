"""An extraction model to its ONNX files: mixture and voices in, waveforms out, and enrolments to voices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from speakerkit.bundle import GRAPH
from speakerkit.errors import BundleError
from speakerkit.export.bundle import export_bundle
from speakerkit.export.onnx import OPSET, quiet_exporter
from speakerkit.extraction.bundle import ENROL_GRAPH, VOICE, ExtractionBundle, read_extractor
from speakerkit.extraction.model import Conditioned, open_conditioned
from speakerkit.files import atomic_path

LEAST_DB, MOST_DB = 60.0, 200.0  # of what torch gives over its difference to onnxruntime: needed, and shown
SECONDS = (0.5, 1.7)  # of what is compared, besides the shortest
LEVEL = 0.1  # of the noise that is compared


@dataclass(frozen=True)
class ExtractionParity:
    """How near an ONNX file is to torch at one shape of its first input, (B, S) or (N, S).

    Attributes:
        graph: name of the file.
        shape: of the first input.
        voices: K, where the file hears voices.
        decibels: energy of torch's output over that of the difference.
    """

    graph: str
    shape: tuple[int, int]
    voices: int
    decibels: float


def export_extractor(path: str | Path) -> tuple[ExtractionParity, ...]:
    """Write ``model.onnx``, and ``enrol.onnx`` of a model with a speaker encoder of its own, into a model's folder.

    ``model.onnx``: ``mixture (B, S)`` and ``voices (B, K, D)``, as the embedding model or ``enrol.onnx`` gives them,
    to ``waveform (B, K, S)``; a model that can use that voices are all that is heard is told so by ``complete (B)``, 1
    or 0, and a blind separator takes the mixture alone. ``enrol.onnx``: ``enrolment (N, S)``, of which
    the first ``lengths (N)`` samples are real, to ``voices (N, D)``. All of B, K, S and N are free. Their metadata hold
    ``sample_rate``, ``voice_size``, ``sources``, ``min_samples``, ``min_enrolment`` and ``weights_sha256``. An
    embedding model in ``voice`` without an ONNX file gets its own. All or none of this model's files are replaced.

    Raises:
        BundleError: no weights, or files that are less than 60 dB near to torch.
    """
    bundle = read_extractor(path)
    if not bundle.has_weights:
        raise BundleError(path, "has no weights to export", f"this model runs from its {GRAPH} as it is")
    model = open_conditioned(bundle).cpu().float()
    graphs: dict[str, _Waveform | _Enrol] = {GRAPH: _Waveform(model, bundle.config.sample_rate)}
    if bundle.config.voices == "joint":
        graphs[ENROL_GRAPH] = _Enrol(model, bundle.config.sample_rate)
    metadata = _metadata(bundle, model)
    rows: list[ExtractionParity] = []
    with ExitStack() as stack:
        for name, graph in graphs.items():
            temporary = stack.enter_context(atomic_path(bundle.path / name))
            _export(graph, temporary, metadata)
            rows.extend(_compared(graph, temporary, bundle.path / name))
    if bundle.config.voices == "embedding" and bundle.voice().graph is None:
        export_bundle(bundle.path / VOICE)
    return tuple(rows)


def _metadata(bundle: ExtractionBundle, model: Conditioned) -> dict[str, str]:
    extractor = model.extractor
    return {
        "framework": "speakerkit",
        "model": bundle.config.model.name,
        "sample_rate": str(bundle.config.sample_rate),
        "voice_size": str(extractor.voice_size),
        "sources": str(extractor.sources),
        "min_samples": str(extractor.min_samples),
        "min_enrolment": str(extractor.min_enrolment),
        "weights_sha256": bundle.digest(),
    }


class _Waveform(nn.Module):
    """What ``model.onnx`` computes."""

    output = "waveform"

    def __init__(self, model: Conditioned, rate: int) -> None:
        super().__init__()
        self.model, self.rate = model, rate
        self.blind = not model.extractor.voice_size

    def forward(self, mixture: Tensor, voices: Tensor | None = None, complete: Tensor | None = None) -> Tensor:
        waveform: Tensor = self.model(mixture, voices, complete).waveform
        return waveform

    def inputs(self, batch: int, count: int, samples: int, random: torch.Generator) -> dict[str, Tensor]:
        mixture = LEVEL * torch.randn(batch, samples, generator=random)
        if self.blind:
            return {"mixture": mixture}
        feeds = {
            "mixture": mixture,
            "voices": torch.randn(batch, count, self.model.extractor.voice_size, generator=random),
        }
        if self.model.extractor.can_complete:
            feeds["complete"] = torch.arange(batch).remainder(2).float()
        return feeds

    @property
    def shortest(self) -> int:
        return self.model.extractor.min_samples


class _Enrol(nn.Module):
    """What ``enrol.onnx`` computes."""

    output = "voices"

    def __init__(self, model: Conditioned, rate: int) -> None:
        super().__init__()
        self.model, self.rate = model, rate

    def forward(self, enrolment: Tensor, lengths: Tensor) -> Tensor:
        return self.model.extractor.enrol(enrolment, lengths)

    def inputs(self, batch: int, count: int, samples: int, random: torch.Generator) -> dict[str, Tensor]:
        lengths = torch.linspace(samples, max(self.shortest, samples // 2), batch).long()
        return {"enrolment": LEVEL * torch.randn(batch, samples, generator=random), "lengths": lengths}

    @property
    def shortest(self) -> int:
        return self.model.extractor.min_enrolment


def _export(graph: _Waveform | _Enrol, path: Path, metadata: Mapping[str, str]) -> None:
    samples = graph.shortest + round(SECONDS[0] * graph.rate) + 1
    example = graph.inputs(2, 3, samples, torch.Generator().manual_seed(0))
    free = {key: dict.fromkeys(range(min(value.ndim, 2)), torch.export.Dim.DYNAMIC) for key, value in example.items()}
    with quiet_exporter(), sdpa_kernel(SDPBackend.MATH):  # other kernels leave memory layouts that ONNX has no view of
        program = torch.onnx.export(
            graph.eval(),
            tuple(example.values()),
            input_names=list(example),
            output_names=[graph.output],
            opset_version=OPSET,
            dynamic_shapes=tuple(free.values()),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    proto = program.model_proto
    onnx.helper.set_model_props(proto, dict(metadata))
    onnx.save(proto, path)


def _shapes(graph: _Waveform | _Enrol) -> Sequence[tuple[int, int, int]]:
    """(batch, voices, samples) that are compared."""
    short, long = (graph.shortest + round(seconds * graph.rate) for seconds in SECONDS)
    return (1, 1, graph.shortest), (2, 3, graph.shortest + 7), (1, 2, short), (3, 1, long + 1)


def _compared(graph: _Waveform | _Enrol, path: Path, name: Path) -> Iterator[ExtractionParity]:
    """Torch with onnxruntime on noise; both on the CPU in float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(1)
    for batch, count, samples in _shapes(graph):
        feeds = graph.inputs(batch, count, samples, random)
        with torch.inference_mode():
            expected = graph(**feeds).numpy()
        (actual,) = session.run([graph.output], {key: value.numpy() for key, value in feeds.items()})
        decibels = _decibels(expected, np.asarray(actual))
        voices = feeds["voices"].shape[1] if "voices" in feeds else 0
        if not decibels >= LEAST_DB:
            shape = f"B={batch}, K={voices}, S={samples}"
            fault = f"is only {decibels:.1f} dB near its torch model at {shape}"
            raise BundleError(name, fault, f"at least {LEAST_DB:g} dB are needed; do not ship it")
        yield ExtractionParity(name.name, (batch, samples), voices, decibels)


def _decibels(expected: np.ndarray, actual: np.ndarray) -> float:
    if expected.shape != actual.shape:
        return float("-inf")
    exact = expected.astype(np.float64)
    energies = np.square(exact).sum(), np.square(exact - actual).sum()
    tiny = np.finfo(np.float64).tiny
    return min(MOST_DB, float(10 * (np.log10(energies[0] + tiny) - np.log10(energies[1] + tiny))))
