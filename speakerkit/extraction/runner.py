"""A finished extraction model at work, on onnxruntime, or on torch without ONNX file or with a GPU of torch alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from speakerkit.audio import Samples
from speakerkit.bundle import CONFIG, GRAPH, WEIGHTS
from speakerkit.embedding.embedder import Embedder, needs_torch, open_session
from speakerkit.errors import BundleError, MissingExtraError, first_line
from speakerkit.extraction.bundle import ENROL_GRAPH, ExtractionBundle

if TYPE_CHECKING:
    import onnxruntime

Vectors = npt.NDArray[np.float32]
Compute = Callable[..., npt.NDArray[np.float32]]


class Runner(Protocol):
    """What :class:`speakerkit.extraction.pipeline.VoiceExtractor` asks of a model.

    Attributes:
        rate: Hz of mixtures and estimates.
        enrolment_rate: Hz of enrolments.
        shortest_part: seconds of the shortest enrolment that means something.
        can_complete: whether it can use that voices are complete.
        device: what it runs on, in words.
        bundle: its folder.
    """

    rate: int
    enrolment_rate: int
    shortest_part: float
    can_complete: bool
    device: str
    bundle: ExtractionBundle

    def voice(self, enrolment: Samples) -> Vectors:
        """(D,) of one enrolment (samples,) at ``enrolment_rate``; zero or NaN is an error."""

    def run(self, mixture: Samples, voices: Vectors, complete: bool = False) -> Vectors:
        """Estimates (K, S) of a mixture (S,) of at least one sample, for voices (K, D), which may be all there is."""


class ExtractionRunner:
    """A model ready for use; nothing is kept between calls.

    Args:
        bundle: the model.
        device: "cpu", "cuda", or "auto", which takes CUDA where the runtime offers it. For "cuda", a model with weights
            is run by torch where onnxruntime has no CUDA.
        threads: of onnxruntime for one call, 0 for one a core; torch has its own setting.

    Raises:
        BundleError: a blind separator; ONNX files that are missing, damaged or of other weights.
        ConfigError: ``device="cuda"`` where it cannot be used.
    """

    def __init__(self, bundle: ExtractionBundle, device: str = "auto", threads: int = 0) -> None:
        if bundle.config.voices == "none":
            raise BundleError(bundle.path, "separates blindly, it cannot be told a voice", "train one with an embedder")
        self.bundle, self.rate = bundle, bundle.config.sample_rate
        cores = threads or os.cpu_count() or 1
        by_torch = needs_torch(bundle.graph, bundle.has_weights, device)
        opened = _torch(bundle, device) if by_torch else _onnx(bundle, device, cores)
        self.device, self._min_samples, self._run, self._enrol, min_enrolment, self.can_complete = opened
        self._embedder = None
        self.enrolment_rate, self.shortest_part = self.rate, min_enrolment / self.rate
        if bundle.config.voices == "embedding":
            self._embedder = Embedder(bundle.voice(), device, 1)
            frontend = self._embedder.frontend
            self.enrolment_rate, self.shortest_part = frontend.sample_rate, frontend.min_duration

    def voice(self, enrolment: Samples) -> Vectors:
        """The voice (D,) of an enrolment (samples,) at ``enrolment_rate``, which is repeated where it is too short.

        Raises:
            AudioError: silence.
            BundleError: the model gives nothing, or NaN.
        """
        if self._embedder is not None:
            return self._embedder.embed(enrolment, rate=self.enrolment_rate, short="pad")
        least = round(self.shortest_part * self.rate)
        heard = np.resize(enrolment, max(len(enrolment), least)).astype(np.float32)
        voice = self._enrol(enrolment=heard[None], lengths=np.array([len(heard)], dtype=np.int64))[0]
        if not np.isfinite(voice).all() or not voice.any():
            raise BundleError(self.bundle.path, "gives a voice that is zero or not finite", "check the model")
        return voice

    def run(self, mixture: Samples, voices: Vectors, complete: bool = False) -> Vectors:
        """Estimates (K, S) of a mixture (S,) of any length from 1 on, for voices (K, D).

        ``complete``, where the model can use it: the voices are all that is heard in the mixture.

        Silence gives silence, whatever the model makes of it. What is too short for the model has zeros put after it.

        Raises:
            BundleError: the model fails, or gives NaN.
        """
        if not mixture.any():
            return np.zeros((len(voices), len(mixture)), dtype=np.float32)
        heard = np.pad(mixture, (0, max(0, self._min_samples - len(mixture))))
        told = {"complete": np.array([complete], dtype=np.float32)} if self.can_complete else {}
        found = self._run(mixture=heard[None], voices=voices[None], **told)[0][:, : len(mixture)]
        if found.shape != (len(voices), len(mixture)) or not np.isfinite(found).all():
            fault = f"gives samples that are not finite, or of shape {found.shape}, for {len(mixture)} of a mixture"
            raise BundleError(self.bundle.path, fault, "check the model, or export it again")
        return found


# Device, fewest samples, model, encoder, fewest samples of an enrolment, whether it uses that voices are complete.
Opened = tuple[str, int, Compute, Compute, int, bool]


def _onnx(bundle: ExtractionBundle, device: str, threads: int) -> Opened:
    graph = bundle.path / GRAPH
    session, used = open_session(graph, device, threads)
    can_complete = any(node.name == "complete" for node in session.get_inputs())
    inputs = ["mixture", "voices", *(["complete"] if can_complete else [])]
    numbers = _checked(bundle, graph, session, inputs, ["waveform"])
    enrol: Compute = _no_encoder
    if bundle.config.voices == "joint":
        path = bundle.path / ENROL_GRAPH
        if not path.is_file():
            raise BundleError(path, "no such file", "copy the whole folder, or run `speakerkit export`")
        encoder, _ = open_session(path, device, threads)
        _checked(bundle, path, encoder, ["enrolment", "lengths"], ["voices"])
        enrol = _computed(encoder, path)
    return used, numbers["min_samples"], _computed(session, graph), enrol, numbers["min_enrolment"], can_complete


def _checked(
    bundle: ExtractionBundle, path: Path, session: onnxruntime.InferenceSession, inputs: list[str], outputs: list[str]
) -> dict[str, int]:
    """The numbers in an ONNX file's metadata, if it is a file of this model."""
    names = [node.name for node in session.get_inputs()], [node.name for node in session.get_outputs()]
    if names != (inputs, outputs):
        raise BundleError(path, f"has inputs and outputs {names}", f"{inputs} and {outputs} are expected")
    told = session.get_modelmeta().custom_metadata_map
    made_from = told.get("weights_sha256")
    if made_from and bundle.has_weights and made_from != bundle.digest():
        fault = f"was exported from other weights than {WEIGHTS} beside it"
        raise BundleError(path, fault, "run `speakerkit export`")
    numbers = {name: told.get(name, "0") for name in ("sample_rate", "min_samples", "min_enrolment")}
    wrong = next((name for name, value in numbers.items() if not value.isdecimal()), None)
    if wrong is not None:
        raise BundleError(path, f"says that {wrong} is {numbers[wrong]!r}", "export it again")
    if numbers["sample_rate"] != str(bundle.config.sample_rate):
        fault = f"is for {numbers['sample_rate']} Hz, its {CONFIG} says {bundle.config.sample_rate}"
        raise BundleError(path, fault, "export it again")
    return {name: int(value) for name, value in numbers.items()}


def _computed(session: onnxruntime.InferenceSession, path: Path) -> Compute:
    def compute(**feeds: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        try:
            return np.asarray(session.run(None, feeds)[0], dtype=np.float32)
        except Exception as error:  # onnxruntime raises several classes of its own without a common base
            raise _failed(path, feeds, error) from None

    return compute


def _no_encoder(**feeds: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    raise NotImplementedError


def _failed(path: Path, feeds: dict[str, npt.NDArray[Any]], error: Exception) -> BundleError:
    shapes = " and ".join(str(value.shape) for value in feeds.values())
    return BundleError(path, f"fails on inputs of shape {shapes} ({first_line(error)})", "give shorter audio or blocks")


def _torch(bundle: ExtractionBundle, device: str) -> Opened:
    try:
        import torch
    except ImportError:
        raise MissingExtraError(f"{bundle.path}: running a model without model.onnx", "train") from None
    from speakerkit.extraction.model import open_conditioned
    from speakerkit.nn.device import usable_device

    chosen = usable_device(device)
    model = open_conditioned(bundle).to(chosen)

    def computed(function: Callable[..., Any]) -> Compute:
        def compute(**feeds: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
            try:
                with torch.inference_mode():
                    found = function(*(torch.from_numpy(value).to(chosen) for value in feeds.values()))
                    return np.asarray(found.float().cpu().numpy())
            except RuntimeError as error:
                raise _failed(bundle.path, feeds, error) from None

        return compute

    extractor = model.extractor
    waveform, enrol = computed(lambda *feeds: model(*feeds).waveform), computed(extractor.enrol)
    name = f"{chosen.type} (torch)"
    return name, extractor.min_samples, waveform, enrol, extractor.min_enrolment, extractor.can_complete
