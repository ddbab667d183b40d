"""SpEx+: published size, scales that stand together, and a speaker encoder that hears no padding."""

import pytest
import torch

from speakerkit.errors import ConfigError
from speakerkit.extraction.filters import Decoder, Encoder
from speakerkit.extraction.registry import build_extractor
from speakerkit.extraction.spex_plus import MaskedBatchNorm, SpeakerEncoder, SpExPlus

SMALL = {"filters": 8, "features": 6, "hidden": 10, "blocks": 2, "stacks": 1}
CLASSIFIER = 101 * 257  # of the 101 training speakers of WSJ0-2mix, part of the published counts
BIASES = 3 * 256 + 3  # of the published filters, which have none here


@pytest.mark.parametrize(("stacks", "millions"), [(4, 11.139), (8, 20.207)])
def test_published_number_of_parameters(stacks, millions):
    with torch.device("meta"):
        model = build_extractor("spex_plus", stacks=stacks)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round((count + CLASSIFIER + BIASES) / 1e6, 3) == millions


def test_parts_have_the_sizes_of_the_published_ones():
    with torch.device("meta"):
        model = SpExPlus()
    sizes = {key: sum(each.numel() for each in part.parameters()) for key, part in model.named_children()}
    assert sizes == {
        "encoder": 67_328 - 768,
        "bottleneck": 198_400,
        "stacks": 4 * 2_267_152,
        "masks": 197_376,
        "decoder": 66_563 - 3,
        "speaker_encoder": 1_514_502,
    }


@pytest.mark.parametrize("samples", [20, 21, 29, 30, 31, 163])
def test_scales_of_the_encoder_stand_together_and_cover_the_end(samples):
    torch.manual_seed(0)
    encoder = Encoder(3, (20, 30, 70)).double()
    wave = torch.randn(1, samples, dtype=torch.float64)
    frames = encoder(wave)
    total = -(-(samples - 20) // 10) + 1
    padded = torch.cat([wave[0], torch.zeros(100, dtype=torch.float64)])
    for kernel, scale, encoded in zip((20, 30, 70), encoder.scales, frames, strict=True):
        assert encoded.shape == (1, 3, total)
        expected = scale.weight[:, 0] @ torch.stack([padded[10 * t : 10 * t + kernel] for t in range(total)], dim=1)
        assert torch.allclose(encoded[0], expected.clamp_min(0))
    assert int(encoder.whole_frames(torch.tensor(samples))) == sum(10 * t + 20 <= samples for t in range(total))


def test_decoder_adds_masked_filters_up():
    torch.manual_seed(0)
    decoder = Decoder(3, (4, 6)).double()
    frames = [torch.randn(2, 3, 5, dtype=torch.float64) for _ in range(2)]
    masks = [torch.randn(2, 4, 3, 5, dtype=torch.float64) for _ in range(2)]
    for kernel, scale, encoded, mask, out in zip(
        (4, 6), decoder.scales, frames, masks, decoder(frames, masks, 11), strict=True
    ):
        assert out.shape == (2, 4, 11)
        expected = torch.zeros(2 * 4 + kernel, dtype=torch.float64)
        for t in range(5):
            expected[2 * t : 2 * t + kernel] += (mask[1, 2, :, t] * encoded[1, :, t]) @ scale.weight[:, 0]
        assert torch.allclose(out[1, 2], expected[:11])


@pytest.mark.parametrize("kernels", [(), (21, 80), (80, 20), (0,)])
def test_filters_that_cannot_be_used_are_refused(kernels):
    with pytest.raises(ConfigError, match="samples cannot be used"):
        Encoder(4, kernels)


def test_masked_batch_norm_is_that_of_the_real_frames():
    torch.manual_seed(0)
    layer, reference = MaskedBatchNorm(3).double(), torch.nn.BatchNorm1d(3).double()
    x = 4 + torch.randn(2, 3, 6, dtype=torch.float64)
    real = torch.arange(6) < torch.tensor([[6], [2]])
    rows = torch.cat([x[0].T, x[1, :, :2].T])
    expected = reference(rows)
    out = layer(x, real)
    assert torch.allclose(torch.cat([out[0].T, out[1, :, :2].T]), expected)
    assert not out[1, :, 2:].any()
    assert torch.allclose(layer.norm.running_mean, reference.running_mean)
    assert torch.allclose(layer.norm.running_var, reference.running_var)
    assert torch.allclose(layer.eval()(x, real)[0].T, reference.eval()(x[0].T))


def test_padding_changes_nothing_in_training_either():
    lengths = torch.tensor([1400, 733])
    enrolments = 0.1 * torch.randn(2, 1400, generator=torch.Generator().manual_seed(0))
    results = []
    for filling, extra in ((0.0, 0), (7.0, 300)):
        torch.manual_seed(1)
        model = build_extractor("spex_plus", **SMALL).train()
        padded = torch.cat([enrolments, torch.zeros(2, extra)], dim=1)
        padded[1, 733:] = filling
        voices = model.enrol(padded, lengths)
        voices.square().sum().backward()
        tensors = dict(model.speaker_encoder.named_buffers())
        tensors |= {key: each.grad for key, each in model.speaker_encoder.named_parameters()}
        results.append({"voices": voices.detach(), **tensors})
    assert len(results[0]) > 30
    for key, value in results[0].items():
        assert torch.allclose(results[1][key], value, rtol=1e-4, atol=1e-6 * float(value.abs().max())), key


def test_voice_is_the_mean_over_real_frames():
    torch.manual_seed(0)
    encoder = SpeakerEncoder(4, 6, (6, 10, 10)).double().eval()
    encoded = torch.randn(1, 4, 27 * 3 + 5, dtype=torch.float64)
    x = encoder.bottleneck(encoded)
    for block in encoder.blocks:
        x = block(x, torch.ones(1, x.shape[-1], dtype=torch.bool))
    frames = encoder.last(x)[0]
    assert frames.shape == (6, 3)
    for count in (1, 2, 3):
        assert torch.allclose(encoder(encoded, torch.tensor([27 * count]))[0], frames[:, :count].mean(1))


def test_enrolment_shorter_than_the_shortest_is_heard_with_zeros():
    model = build_extractor("spex_plus", **SMALL).eval()
    assert model.min_enrolment == 20 + 26 * 10
    short = 0.1 * torch.randn(1, 50)
    with torch.no_grad():
        voice = model.enrol(short, torch.tensor([50]))
        filled = torch.nn.functional.pad(short, (0, model.min_enrolment - 50))
        assert torch.equal(voice, model.enrol(filled, torch.tensor([model.min_enrolment])))
    assert voice.isfinite().all()


def test_embeddings_from_elsewhere_leave_no_speaker_encoder():
    model = build_extractor("spex_plus", **SMALL, voice_size=192)
    assert (model.voice_size, model.min_enrolment, model.speaker_encoder) == (192, 0, None)
    with pytest.raises(NotImplementedError):
        model.enrol(torch.zeros(1, 400), torch.tensor([400]))
    with pytest.raises(ConfigError, match="stacks: are 0"):
        build_extractor("spex_plus", stacks=0)
