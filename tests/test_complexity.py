"""Compressed lengths against the files themselves, the corrected score, and the flow's view of hidden channels."""
import io

import pytest
import torch
from PIL import Image

from densegen.anomaly.complexity import CODECS, ComplexityScore, _file, compressed_bits
from densegen.anomaly.reality_check import bits_of, guess_hidden, small_glow

ALL = [*CODECS, "zlib"]


def grey(n=3, side=28):
    return torch.randint(0, 256, (n, 1, side, side), dtype=torch.uint8)


@pytest.mark.parametrize("codec", ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_constants_cost_nothing_and_noise_eight_bits(codec, channels):
    flat = torch.full((1, channels, 32, 32), 90, dtype=torch.uint8)
    noise = torch.randint(0, 256, (1, channels, 32, 32), dtype=torch.uint8)
    assert 0 <= compressed_bits(flat, codec).item() < 0.3
    assert 7.5 < compressed_bits(noise, codec).item() < 9.5


@pytest.mark.parametrize("codec", CODECS)
def test_the_codecs_are_lossless(codec):
    for pixels in (grey(1)[0].permute(1, 2, 0).numpy(), torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()):
        stream = io.BytesIO()
        picture = Image.fromarray(pixels.squeeze())
        picture.save(stream, codec, **CODECS[codec])
        assert stream.tell() == _file(pixels, codec)
        back = Image.open(io.BytesIO(stream.getvalue())).convert(picture.mode)
        assert back.tobytes() == picture.tobytes()


def test_length_is_in_bits_per_dimension_without_the_header():
    x = grey(2)
    files = [_file(p, "png") for p in x.permute(0, 2, 3, 1).contiguous().numpy()]
    header = _file(x[0, :, :1, :1].permute(1, 2, 0).numpy(), "png")
    expected = torch.tensor([8 * (f - header) / 784 for f in files])
    torch.testing.assert_close(compressed_bits(x), expected)
    assert compressed_bits(x[:0]).shape == (0,)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="codec: expected one of .*flif"):
        compressed_bits(grey(), "flif")
    for wrong in (grey().float(), grey()[0], grey().expand(-1, 2, -1, -1)):
        with pytest.raises(ValueError, match="uint8"):
            compressed_bits(wrong)


def test_the_score_is_cost_minus_length():
    x = grey(5)
    glow = small_glow(grey(16), steps=1, width=4)
    expected = bits_of(glow, x) - compressed_bits(x, "zlib")
    torch.testing.assert_close(ComplexityScore(glow, "zlib").anomaly_score(x), expected)


def test_costs_come_with_the_same_noise_each_time():
    glow, x = small_glow(grey(16), steps=1, width=4), grey(5)
    state = torch.get_rng_state()
    assert torch.equal(bits_of(glow, x), bits_of(glow, x)) and torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(bits_of(glow, x), bits_of(glow, x, seed=1))


class Oracle(torch.nn.Module):
    "A coupling network that knows the hidden channels."

    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden

    def forward(self, kept):
        return torch.cat([torch.zeros_like(self.hidden), -self.hidden], 1)


@pytest.mark.parametrize("step", [0, 2])
def test_the_guess_is_a_fixed_point(step):
    # the image made of the guess has the guess in its hidden channels, and the same kept ones
    glow = small_glow(grey(16), steps=3, width=8).double().eval()
    with torch.no_grad():
        for p in glow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    x = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    hidden, guess, image = guess_hidden(glow, x, step)
    again = guess_hidden(glow, image, step)
    torch.testing.assert_close(again[0], guess)
    torch.testing.assert_close(again[1], guess)
    assert (hidden - guess).abs().max() > 1e-2


def test_a_perfect_guess_gives_the_image_back():
    glow = small_glow(grey(16), steps=2, width=8).double().eval()
    x = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    hidden = guess_hidden(glow, x, 1)[0]
    coupling = glow.bijection.bijections[1].bijections[1].bijections[2]
    coupling.net = Oracle(hidden)
    torch.testing.assert_close(guess_hidden(glow, x, 1)[2], x)
