"""How voices enter layers, against formulas."""

import pytest
import torch

from speakerkit.errors import ConfigError
from speakerkit.nn.conditioning import KINDS, Conditioning, for_each_voice


def random_layer(kind: str, features: int = 3, voice_size: int = 5) -> Conditioning:
    torch.manual_seed(0)
    layer = Conditioning(kind, features, voice_size).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 7), (2, 3, 4, 6)])
def test_formula_at_every_position(kind, shape):
    layer = random_layer(kind)
    x, voice = torch.randn(shape, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    with torch.no_grad():
        out = layer(x, voice)
        assert out.shape == (2, layer.out_features, *shape[2:])
        column = x.reshape(2, 3, -1)[1, :, -1]
        m, a = (
            part.weight @ voice[1] + part.bias if (part := getattr(layer, name, None)) is not None else None
            for name in ("scale", "shift")
        )
    expected = {
        "concatenate": lambda: torch.cat([column, voice[1]]),
        "add": lambda: column + a,
        "multiply": lambda: m * column,
        "film": lambda: m * column + a,
    }[kind]()
    assert torch.allclose(out.reshape(2, layer.out_features, -1)[1, :, -1], expected)


@pytest.mark.parametrize("kind", ["add", "multiply", "film"])
def test_new_layers_leave_features_alone_where_the_voice_is_zero(kind):
    x = torch.randn(2, 3, 4)
    assert torch.equal(Conditioning(kind, 3, 5)(x, torch.zeros(2, 5)), x)


def test_voices_of_a_mixture_stand_side_by_side():
    x, voices = torch.randn(2, 3, 4), torch.randn(2, 5, 6)
    repeated, flat = for_each_voice(x, voices)
    assert repeated.shape == (10, 3, 4)
    for mixture in range(2):
        for k in range(5):
            assert torch.equal(repeated[5 * mixture + k], x[mixture])
            assert torch.equal(flat[5 * mixture + k], voices[mixture, k])


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ConfigError, match="'concat': is not known; did you mean 'concatenate'"):
        Conditioning("concat", 3, 5)
    with pytest.raises(ConfigError, match="voice_size: is 0"):
        Conditioning("add", 3, 0)
