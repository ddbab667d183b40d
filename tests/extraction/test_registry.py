"""Every registered extraction model: shapes, gradients, voices in one pass, batches, lengths, silence, level, ONNX."""

from typing import Any

import pytest
import torch

from speakerkit.errors import ConfigError
from speakerkit.extraction.registry import (
    EXTRACTORS,
    Extracted,
    Extractor,
    build_extractor,
    extractor_names,
    register_extractor,
)

VOICE = {"voice_size": 8}
TCN = {"filters": 16, "features": 12, "hidden": 20, "blocks": 3, "stacks": 2}
DUAL = {"filters": 16, "features": 12, "hidden": 10, "blocks": 2, "segment": 20}
SPECTRUM = {"n_fft": 64, "window": 50, "hop": 20}
BANDS = {"n_fft": 64, "window": 64, "hop": 16, "rate": 8000, "features": 6, "hidden": 5, "mask_hidden": [7]}
BAND_MLP = {"band_mlp": 9, "local_norm": True, "power": 0.3, "log_magnitude": True}

SLOTS = {"count": 3, "res_channels": [10, 12], "frame_kernel": 8}
GALR = {"filters": 16, "window": 16, "features": 12, "segment": 20, "reduced": 4, "hidden": 10, "heads": 2}

# Arguments that make small models, one for each way to use them.
SMALL: dict[str, list[dict[str, Any]]] = {
    "spex_plus": [TCN, TCN | VOICE | {"conditioning": "film"}],
    "conv_tasnet": [TCN | {"skip": 6}, TCN | VOICE | {"skip": 6, "causal": True}],
    "dprnn": [DUAL | {"sources": 3}, DUAL | VOICE],
    "voicefilter": [SPECTRUM | VOICE | {"channels": 4, "bottleneck": 2, "dilations": [1, 2], "lstm": 6, "hidden": 7}],
    "atss_net": [
        SPECTRUM | VOICE | {"channels": 4, "dilations": [1, 2], "blocks": 2, "head_channels": 4},
        SPECTRUM | {"voice_size": 0, "channels": 4, "dilations": [1, 2], "attention": False, "power": 0.3},
    ],
    "bsrnn": [
        BANDS | VOICE | {"repeats": 1},
        BANDS
        | VOICE
        | BAND_MLP
        | {"repeats": 3, "join": [1, 2], "conditioning": "film", "voice_hidden": 5}
        | {"exchange": True, "dropout": 0.1},
    ],
    "used": [TCN | SLOTS, TCN | SLOTS | VOICE | {"residual": False, "conditioning": "film"}],
    "tune_in": [
        GALR | {"mode": mode, "generic": 2, "knowledge": 1, "stimuli": 2} for mode in ("autopilot", "online", "offline")
    ],
}

# How far, relative to its largest sample, the output may be off level when the input is 20 dB lower.
LEVEL_TOLERANCE = {name: 1e-3 for name in ("spex_plus", "conv_tasnet", "dprnn", "used", "tune_in")}
LEVEL_TOLERANCE |= {name: 1e-5 for name in ("voicefilter", "atss_net", "bsrnn")}

CASES = {f"{name}-{i}": (name, args) for name, variants in SMALL.items() for i, args in enumerate(variants)}
BLIND = ("conv_tasnet-0", "dprnn-0", "atss_net-1", "tune_in-0", "tune_in-1")
HEARING = [case for case in CASES if case not in BLIND]
TOGETHER = ("used-0", "used-1")  # in which voices hear of each other
JOINT = ["spex_plus-0", "used-0", "tune_in-2"]  # with a speaker encoder of their own


@pytest.fixture(scope="module", params=CASES)
def model(request: pytest.FixtureRequest) -> Extractor:
    """Each model in eval mode, with random weights."""
    name, args = CASES[request.param]
    torch.manual_seed(0)
    model = build_extractor(name, **args).eval()
    model.name = name
    return model


def waveforms(count: int, samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(count, samples, generator=torch.Generator().manual_seed(seed))


def voices_for(model: Extractor, batch: int, count: int) -> torch.Tensor | None:
    """Voices (batch, count, D); None for a blind separator."""
    if not model.voice_size:
        return None
    return torch.randn(batch, count, model.voice_size, generator=torch.Generator().manual_seed(1))


def extract(model: Extractor, mixture: torch.Tensor, voices: torch.Tensor | None) -> Extracted:
    with torch.no_grad():
        return model(mixture, voices)


def outputs(extracted: Extracted) -> list[torch.Tensor]:
    magnitude = [] if extracted.magnitude is None else [extracted.magnitude]
    return [extracted.waveform, *extracted.scales, *magnitude, *getattr(extracted, "logits", ())]


def samples_for(model: Extractor) -> int:
    """Some odd length that is more than the shortest."""
    return 3 * model.min_samples + 1501


def test_every_name_has_small_arguments():
    assert sorted(SMALL) == extractor_names()


def test_outputs_are_as_long_as_the_mixture(model):
    assert (model.sources > 0) == (model.voice_size == 0)
    count = model.sources or 3
    samples = samples_for(model)
    mixture = waveforms(2, samples)
    extracted = extract(model, mixture, voices_for(model, 2, count))
    for waveform in (extracted.waveform, *extracted.scales):
        assert waveform.shape == (2, count, samples)
    if extracted.magnitude is not None:
        assert extracted.magnitude.shape == (2, count, *model.magnitudes(mixture).shape[1:])
    assert all(out.isfinite().all() for out in outputs(extracted))
    assert (extracted.waveform[:, 0] - extracted.waveform[:, 1]).abs().max() > 1e-5  # voices differ


def test_every_parameter_gets_a_finite_gradient(model):
    torch.manual_seed(0)
    model.train().zero_grad()
    voices = voices_for(model, 2, 2)
    if model.min_enrolment:
        enrolments = waveforms(4, 9 * model.min_enrolment, seed=2)
        voices = model.enrol(enrolments, torch.full((4,), enrolments.shape[1])).unflatten(0, (2, 2))
    told = [torch.tensor([0.0, 1.0])] if model.can_complete else []
    extracted = model(waveforms(2, samples_for(model)), voices, *told)
    sum((out * torch.randn_like(out)).sum() for out in outputs(extracted)).backward()
    model.eval()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("model", [case for case in HEARING if case not in TOGETHER], indirect=True)
def test_voices_in_one_pass_are_those_of_several(model):
    mixture, voices = waveforms(2, samples_for(model)), voices_for(model, 2, 3)
    together = outputs(extract(model, mixture, voices))
    alone = [outputs(extract(model, mixture, voices[:, k : k + 1])) for k in range(3)]
    for i, out in enumerate(together):
        assert (out - torch.cat([each[i] for each in alone], dim=1)).abs().max() < 1e-5 * out.abs().max()


def test_output_does_not_depend_on_its_batch_or_on_calls_before(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    mixture, voices = waveforms(3, samples_for(model)), voices_for(model, 3, 2)
    rows = [extract(model, mixture[i : i + 1], None if voices is None else voices[i : i + 1]) for i in range(3)]
    together = extract(model, mixture, voices).waveform
    alone = torch.cat([row.waveform for row in rows])
    assert (alone - together).abs().max() < 1e-5 * alone.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_any_length_from_the_shortest(model):
    voices = voices_for(model, 1, 2)
    for samples in [*range(model.min_samples, model.min_samples + 12), 5 * model.min_samples + 3]:
        extracted = extract(model, waveforms(1, samples), voices)
        assert extracted.waveform.shape[-1] == samples
        assert extracted.waveform.isfinite().all()


def test_silence_stays_silent_and_its_gradient_finite(model):
    model.train().zero_grad()
    extracted = model(torch.zeros(2, samples_for(model)), voices_for(model, 2, 2))
    for waveform in (extracted.waveform, *extracted.scales):
        assert not waveform.any()
    sum((out + 1).square().sum() for out in outputs(extracted)).backward()
    model.eval()
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)


def test_level_of_the_output_is_that_of_the_input(model):
    mixture, voices = waveforms(2, samples_for(model)), voices_for(model, 2, 2)
    loud, quiet = (extract(model, gain * mixture, voices).waveform for gain in (1.0, 0.1))
    assert (10 * quiet - loud).abs().max() < LEVEL_TOLERANCE[model.name] * loud.abs().max()


@pytest.mark.parametrize("model", JOINT, indirect=True)
def test_enrolment_is_heard_to_its_length_and_no_further(model):
    shortest = model.min_enrolment
    enrolments = waveforms(4, 6 * shortest, seed=3)
    lengths = torch.tensor([6 * shortest, 4 * shortest + 7, 2 * shortest - 1, shortest])
    with torch.no_grad():
        together = model.enrol(enrolments, lengths)
        for row, length, voice in zip(enrolments, lengths, together, strict=True):
            alone = model.enrol(row[None, :length], length[None])[0]
            assert (alone - voice).abs().max() < 1e-5 * voice.abs().max()
    assert together.shape == (4, model.voice_size)
    assert (together[0] - together[1]).abs().max() > 1e-4


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="'spexplus': is not known; did you mean 'spex_plus'"):
        build_extractor("spexplus")
    with pytest.raises(ConfigError, match="'spex_plus': has no argument 'stack'; did you mean 'stacks'"):
        build_extractor("spex_plus", stack=2)
    with pytest.raises(ConfigError, match="'film'"):
        build_extractor("conv_tasnet", voice_size=4, conditioning="filme")


@pytest.mark.parametrize("name", ["conv_tasnet", "dprnn"])
def test_a_separator_is_blind_or_hears_voices(name):
    with pytest.raises(ConfigError, match="sources: cannot be given with a voice_size"):
        build_extractor(name, sources=2, voice_size=8)
    with pytest.raises(ConfigError, match="sources: are 0"):
        build_extractor(name, sources=0)


def test_a_name_is_registered_once():
    assert "spex_plus" in EXTRACTORS
    with pytest.raises(ValueError, match="registered twice"):
        register_extractor("spex_plus")(Extractor)
