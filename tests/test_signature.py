"Exactly the pixels that were signed, by whoever holds the key, and nothing else."

import subprocess
import sys

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from densegen.families.signature import PURPOSE, new_key, pixel_digest, sign_pixels, verify_pixels

SECRET, PUBLIC = new_key()
P = 2**255 - 19


def picture():
    return torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64])
def test_round_trip(dtype):
    image = picture().to(dtype)
    signature = sign_pixels(image, SECRET)
    assert len(signature) == 64 and verify_pixels(image, signature, PUBLIC) is True


def test_a_known_key_and_image_give_a_known_signature():
    "The format is a promise: a signature of today must verify tomorrow, and on a machine of the other byte order."
    image = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    assert pixel_digest(image).hex() == "60da078481058f2fe80584d6a4cb96a9b9f81555a5de2bfcdbd6b4416c8f6977"
    assert sign_pixels(image, bytes(range(32))).hex() == (
        "0dac79e2bc8041c4c48132bfc85c547b0f86de909f1f0b261322ffad9d6513c3"
        "5d034b02c603236a02b0676aa5915fb43d0f2189b9f7ccc30f809c3391081605"
    )


def test_each_flipped_bit_is_seen():
    image = picture()
    signature = sign_pixels(image, SECRET)
    for place in (0, 1, 34, 57, image.numel() - 1):
        for bit in range(8):
            other = image.clone()
            other.view(-1)[place] ^= 1 << bit
            assert not verify_pixels(other, signature, PUBLIC), (place, bit)


def test_each_flipped_bit_of_the_signature_is_seen():
    image = picture()
    signature = sign_pixels(image, SECRET)
    for place in range(0, 512, 13):
        other = bytearray(signature)
        other[place // 8] ^= 1 << place % 8
        assert not verify_pixels(image, bytes(other), PUBLIC), place


def test_the_same_bytes_as_something_else_are_refused():
    image = torch.zeros(4, 6, dtype=torch.uint8)
    signature = sign_pixels(image, SECRET)
    others = [image.reshape(6, 4), image.reshape(24), image.reshape(1, 4, 6), image.reshape(4, 6, 1),
              image.view(torch.int16), image.view(torch.int16).reshape(12), torch.zeros(6, dtype=torch.float32),
              image.to(torch.int16), torch.zeros(4, 7, dtype=torch.uint8), torch.zeros(46, dtype=torch.uint8)]
    for other in others:
        assert not verify_pixels(other, signature, PUBLIC), (other.shape, other.dtype)


def test_digests_of_neighbouring_shapes_differ():
    shapes = [(1, 11), (11, 1), (11,), (1, 1, 11), (111,), (1, 111), (11, 11)]
    assert len({pixel_digest(torch.zeros(s, dtype=torch.uint8)) for s in shapes}) == len(shapes)


def test_strides_gradients_and_views_do_not_matter():
    image = picture()
    turned = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous() and pixel_digest(turned) == pixel_digest(image)
    assert pixel_digest(image.float().requires_grad_()) == pixel_digest(image.float())
    assert pixel_digest(image[:, ::2]) == pixel_digest(image[:, ::2].clone())


def test_floats_are_signed_to_the_bit():
    zero = torch.zeros(3)
    assert not verify_pixels(-zero, sign_pixels(zero, SECRET), PUBLIC)
    odd = torch.tensor([float("nan"), float("inf")])
    assert verify_pixels(odd, sign_pixels(odd, SECRET), PUBLIC)


def test_another_key_is_refused():
    image = picture()
    other_secret, other_public = new_key()
    assert not verify_pixels(image, sign_pixels(image, SECRET), other_public)
    assert not verify_pixels(image, sign_pixels(image, other_secret), PUBLIC)
    assert len({new_key() for _ in range(20)}) == 20


@pytest.mark.parametrize("cut", [0, 1, 32, 63, 65, 128])
def test_pieces_of_a_signature_are_none(cut):
    signature = sign_pixels(picture(), SECRET)
    assert verify_pixels(picture(), (signature * 2)[:cut], PUBLIC) is False


def test_a_signature_of_the_bytes_or_of_the_digest_alone_is_none():
    "What the same key signed for another purpose is no signature of pixels."
    image, key = picture(), Ed25519PrivateKey.from_private_bytes(SECRET)
    for message in (image.numpy().tobytes(), pixel_digest(image), PURPOSE, PURPOSE + image.numpy().tobytes(), b""):
        assert not verify_pixels(image, key.sign(message), PUBLIC)
    text = b"I owe the bearer 1,000 E"
    promise = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(Exception):
        Ed25519PublicKey.from_public_bytes(PUBLIC).verify(sign_pixels(promise, SECRET), text)


def square_root(a):
    "Modulo p = 5 mod 8; None if there is none."
    roots = (pow(a, (P + 3) // 8, P) * pow(2, k * (P - 1) // 4, P) % P for k in (0, 1))
    return next((r for r in roots if (r * r - a) % P == 0), None)


def small_order_keys():
    "All encodings of points whose order divides eight: y from the equation of order eight, both signs, y + p."
    d = -121665 * pow(121666, -1, P) % P
    halves = [square_root((s * square_root(1 + d) - 1) * pow(d, -1, P)) for s in (1, -1)]
    (y,) = [h for h in halves if h is not None]
    assert (d * y**4 + 2 * y**2 - 1) % P == 0
    return [(v + (sign << 255)).to_bytes(32, "little") for v in (0, 1, P - 1, y, P - y, P, P + 1) for sign in (0, 1)]


def test_the_library_would_accept_a_key_that_fits_every_image():
    weak = bytes([1]) + bytes(31)
    Ed25519PublicKey.from_public_bytes(weak).verify(bytes([1]) + bytes(63), PURPOSE + pixel_digest(picture()))


@pytest.mark.parametrize("public", small_order_keys(), ids=lambda k: k[:2].hex() + k[-2:].hex())
def test_a_key_that_fits_every_image_is_refused(public):
    with pytest.raises(ValueError, match="public: expected a key of `new_key`; got one that fits every image"):
        verify_pixels(picture(), bytes([1]) + bytes(63), public)


@pytest.mark.parametrize("image, got", [
    (None, "NoneType"), ([[1, 2]], "list"), (picture().numpy(), "ndarray"), (torch.zeros(0, 3), "[0, 3] of torch.float32"),
    (torch.zeros(2, dtype=torch.bool), "[2] of torch.bool"), (torch.zeros(2, dtype=torch.bfloat16), "torch.bfloat16"),
    (torch.zeros(2, dtype=torch.complex64), "torch.complex64"),
])
def test_what_is_no_image_is_an_error(image, got):
    for call in (lambda: sign_pixels(image, SECRET), lambda: verify_pixels(image, bytes(64), PUBLIC)):
        with pytest.raises(ValueError) as error:
            call()
        assert "image: expected a tensor" in str(error.value) and got in str(error.value)


@pytest.mark.parametrize("key, got", [(b"", "0 bytes"), (bytes(31), "31 bytes"), (bytes(64), "64 bytes"), ("a" * 32, "str"),
                                      (None, "NoneType"), (bytearray(32), "bytearray")])
def test_what_is_no_key_is_an_error(key, got):
    for name, call in [("secret", lambda: sign_pixels(picture(), key)), ("public", lambda: verify_pixels(picture(), bytes(64), key))]:
        with pytest.raises(ValueError, match=f"{name}: expected the 32 bytes of an Ed25519 key; got {got}"):
            call()


@pytest.mark.parametrize("signature", ["00" * 64, None, 5, [0] * 64])
def test_what_is_no_bytes_is_an_error(signature):
    with pytest.raises(ValueError, match="signature: expected bytes; got"):
        verify_pixels(picture(), signature, PUBLIC)


def test_no_message_holds_the_secret():
    for bad in (SECRET[:-1], SECRET.hex()):
        with pytest.raises(ValueError) as error:
            sign_pixels(picture(), bad)
        assert str(bad) not in str(error.value) and repr(bad) not in str(error.value)


def test_random_bytes_are_no_signature():
    g = torch.Generator().manual_seed(1)
    for _ in range(200):
        length = int(torch.randint(0, 130, (), generator=g))
        junk = bytes(torch.randint(0, 256, (length,), generator=g).tolist())
        assert verify_pixels(picture(), junk, PUBLIC) is False


def test_random_bytes_as_a_public_key_verify_nothing():
    g = torch.Generator().manual_seed(2)
    signature = sign_pixels(picture(), SECRET)
    for _ in range(200):
        junk = bytes(torch.randint(0, 256, (32,), generator=g).tolist())
        assert verify_pixels(picture(), signature, junk) is False


def test_the_module_loads_no_plots():
    script = "import sys, densegen.families.signature; print([m for m in ('matplotlib', 'sklearn', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
