"The reader of pixels is exact on every caption; masks, orders, cache and costs of the two-way model; contrastive loss."

import math

import pytest
import torch
import torch.nn.functional as F

from densegen.families.captions import (
    KINDS,
    PLACES,
    WORDS,
    Pair,
    SceneCodes,
    TwoWay,
    contrastive_loss,
    every_caption,
    from_words,
    parse,
    random_captions,
    render,
    sentence,
    slots,
    stamps,
    to_words,
)
from densegen.workbench.training import fit

g = lambda seed=0: torch.Generator().manual_seed(seed)
ALL = torch.cat([every_caption(n) for n in (1, 2, 3)])
TEXTS = torch.cartesian_prod(*[torch.arange(3)] * 2)
PICTURES = torch.cartesian_prod(*[torch.arange(2)] * 3)


def tiny(seed=0):
    "Three words, two codes, texts of two, images of three; weights large enough to make a difference."
    torch.manual_seed(seed)
    model = TwoWay(3, 2, text=2, image=3, width=16).double()
    for p in model.parameters():
        p.data = p.data + 0.3 * torch.randn_like(p)
    return model


def test_every_caption_is_read_from_its_image():
    assert len(ALL) == 4 * 24 + 2 * 24**2 + 2 * 24**3 and len(set(map(tuple, ALL.tolist()))) == len(ALL)
    for part in ALL.split(4000):
        assert torch.equal(parse(render(part, g())), part)


def test_every_caption_is_read_from_its_text():
    words = to_words(ALL)
    assert torch.equal(from_words(words), ALL) and len(set(map(tuple, words.tolist()))) == len(ALL)


def test_sentences_mean_what_they_say():
    "By hand: which colours stand where, in pixels."
    caption = torch.tensor([[7, 0, 9, 19]])
    assert sentence(to_words(caption)[0]) == "red circle above blue square left of purple cross"
    seen = set()
    for seed in range(20):
        v = render(caption, g(seed))[0]
        where = {}
        for name, paint in [("red", (230, 30, 30)), ("blue", (40, 60, 230)), ("purple", (200, 60, 220))]:
            where[name] = torch.nonzero((v == torch.tensor(paint)[:, None, None]).all(0)).double().mean(0)
        assert where["red"][0] < 16 < where["blue"][0] and where["blue"][1] < 16 < where["purple"][1]
        assert abs(where["purple"][0] - where["blue"][0]) < 2
        seen.add(bool(where["red"][1] < 16))
    assert seen == {True, False}


def test_what_is_open_is_drawn_in_all_ways():
    images = {v.numpy().tobytes() for v in render(torch.tensor([[4, 1, 2, -1]]).expand(200, -1), g())}
    assert len(images) == 2  # the upper row, or the lower one


def test_the_reader_forgives_pale_and_noisy_images():
    c = random_captions(200, g())
    v = render(c, g()).float()
    pale = 128 + 0.7 * (v - 128) + 12 * torch.randn(v.shape, generator=g(1))
    assert torch.equal(parse(pale), c)


def test_scenes_without_a_caption_are_refused():
    quarter = lambda k: stamps()[k]
    for kinds in [(24, 24, 24, 24), (0, 1, 2, 3), (0, 24, 24, 5), (24, 0, 5, 24)]:
        top, bottom = (torch.cat([quarter(a), quarter(b)], 2) for a, b in (kinds[:2], kinds[2:]))
        assert (parse(torch.cat([top, bottom], 1)[None]) == -1).all()


def test_texts_that_are_no_captions_are_refused():
    "Changing one word of a caption gives another caption or none, and never a mistaken one."
    words = to_words(random_captions(300, g()))
    for place in range(8):
        for word in range(len(WORDS)):
            changed = words.clone()
            changed[:, place] = word
            c = from_words(changed)
            fine = c[:, 0] >= 0
            assert torch.equal(to_words(c[fine]), changed[fine]) and (c[~fine] == -1).all()
            if place % 3 == 0 and word > 6:
                assert not fine.any()


def test_random_captions_have_one_two_and_three_objects():
    c = random_captions(6000, g())
    assert ((c[:, 1:] >= 0).sum(1).bincount() / 6000 - torch.tensor([0, 1, 1, 1]) / 3).abs().max() < 0.03
    assert torch.equal((c[:, 1:] >= 0).sum(1), torch.tensor([len(p[0]) for p in PLACES])[c[:, 0]])
    assert c[:, 0].bincount(minlength=8).min() > 300 and c[:, 1].max() == KINDS - 1


def test_slots_name_layout_colours_and_shapes():
    assert slots(torch.tensor([[5, 6, 23, -1]])).tolist() == [[5, 1, 2, 5, 3, -1, -1]]


def test_codes_return_the_shape_they_got():
    torch.manual_seed(0)
    codes, v = SceneCodes(8, 4), render(random_captions(3, g()), g())
    t = codes.encode(v)
    assert t.shape == (3, 16) and t.max() < 8 and codes.decode(t).shape == v.shape
    folded = codes.vq.decode(t.reshape(3, 4, 4))
    assert torch.equal(F.pixel_unshuffle(codes.decode(t), 2), folded)
    _, log_scale = codes.vq.decoder(torch.randn(1, 16, 4, 4)).chunk(2, 1)
    assert (log_scale == -1).all() and codes.loss(v)["reconstruction"].requires_grad


def test_each_order_adds_up_to_one_over_its_modality():
    model = tiny()
    with torch.no_grad():
        for text in TEXTS:
            p = model.log_probs(text.expand(8, -1), PICTURES, torch.ones(8).bool())[1].sum(1).exp()
            assert abs(p.sum() - 1) < 1e-9 and p.std() > 1e-3
        for picture in PICTURES:
            p = model.log_probs(TEXTS, picture.expand(9, -1), torch.zeros(9).bool())[0].sum(1).exp()
            assert abs(p.sum() - 1) < 1e-9 and p.std() > 1e-3


def test_in_both_orders_the_whole_adds_up_to_one():
    "Text, then image given text; image, then text given image: two factorizations of a joint distribution."
    model, texts, pictures = tiny(), TEXTS.repeat_interleave(8, 0), PICTURES.repeat(9, 1)
    for drawing in (True, False):
        with torch.no_grad():
            words, tokens = model.log_probs(texts, pictures, torch.full((72,), drawing))
        p = (words.sum(1) + tokens.sum(1)).exp()
        assert abs(p.sum() - 1) < 1e-9


def test_orders_see_what_is_given_and_nothing_else():
    "A first token knows the words if it draws and nothing if it comes first; a word knows the image only if told last."
    model, texts, pictures = tiny(), TEXTS[:2], PICTURES[[3, 3]]
    first = lambda drawing, w, t: [x[:, 0] for x in model.log_probs(w, t, torch.full((len(w),), drawing))]
    assert first(True, texts, pictures)[1].diff().abs() > 1e-3 and first(False, texts, pictures)[1].diff() == 0
    texts, pictures = TEXTS[[4, 4]], PICTURES[[0, 1]]
    assert first(False, texts, pictures)[0].diff().abs() > 1e-3 and first(True, texts, pictures)[0].diff() == 0


def test_draws_stay_in_their_modality_follow_the_density_and_need_no_cache():
    model, n = tiny(1), 4000
    for ask, given, options, sizes in [(model.draw, TEXTS[7], PICTURES, 2), (model.describe, PICTURES[5], TEXTS, 3)]:
        drawn = ask(given.expand(n, -1), g())
        assert torch.equal(drawn, ask(given.expand(n, -1), g(), cached=False))
        assert drawn.min() >= 0 and drawn.max() < sizes
        front = torch.full((len(options),), ask == model.draw)
        pair = (given.expand(len(options), -1), options)
        with torch.no_grad():
            p = model.log_probs(*(pair if front[0] else pair[::-1]), front)[1 if front[0] else 0].sum(1).exp()
        seen = (drawn[:, None] == options).all(2).double().mean(0)
        assert ((seen - p) / (p * (1 - p) / n).sqrt()).abs().max() < 4.5


def test_who_knows_nothing_pays_for_the_modality():
    model = TwoWay(17, 128)
    for p in model.sequence.net.head.parameters():
        p.data.zero_()
    batch = (to_words(random_captions(10, g())), torch.randint(128, (10, 16), generator=g()))
    costs = model.loss(batch)
    assert abs(2 * costs["image"] - 7) < 1e-5 and abs(2 * costs["text"] - math.log2(17)) < 1e-5
    words, tokens = model.log_probs(*batch, torch.arange(10) < 5)
    assert torch.allclose(words, torch.tensor(-math.log(17.0))) and torch.allclose(tokens, torch.tensor(-math.log(128.0)))


def test_the_loss_scores_each_half_of_the_batch_in_its_order():
    model = tiny()
    batch = (TEXTS[:4], PICTURES[:4])
    draw, tell = (model.log_probs(*batch, torch.full((4,), front)) for front in (True, False))
    costs = model.loss(batch)
    assert torch.allclose(costs["image"], -draw[1][::2].mean() / (2 * math.log(2)))
    assert torch.allclose(costs["text"], -tell[0][1::2].mean() / (2 * math.log(2)))


def test_it_learns_to_translate_in_both_directions():
    texts = torch.randint(0, 4, (2000, 3), generator=g())
    images = texts.flip(1)  # the image says the text backwards
    torch.manual_seed(0)
    model = TwoWay(4, 4, text=3, image=3, width=32)
    fit(model, (texts, images), steps=150, batch_size=64, lr=1e-2, clip=1.0, seed=0)
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert (model.draw(every, g()) == every.flip(1)).double().mean() > 0.97
    assert (model.describe(every, g()) == every.flip(1)).double().mean() > 0.97


def test_contrastive_loss_in_closed_form():
    a, b = F.normalize(torch.randn(2, 6, 8, dtype=torch.float64, generator=g()), dim=2)
    same = lambda x: x[:1].expand(6, -1)
    assert abs(contrastive_loss(same(a), same(b), 5.0) - math.log(6)) < 1e-9
    assert abs(contrastive_loss(a, b, 5.0) - contrastive_loss(b, a, 5.0)) < 1e-12
    assert abs(contrastive_loss(a, same(b), 5.0) - (math.log(6) - torch.log_softmax(5 * a @ b[0], 0).mean()) / 2) < 1e-9
    corners = torch.eye(6, dtype=torch.float64)
    for s in (0.0, 1.0, 5.0):
        assert abs(contrastive_loss(corners, corners, s) - math.log(1 + 5 * math.exp(-s))) < 1e-12
    assert contrastive_loss(corners, corners.roll(1, 0), 5.0) > math.log(6)


def test_pairs_embed_on_the_sphere_and_find_each_other():
    torch.manual_seed(0)
    c = random_captions(64, g())
    v, words = render(c, g()), to_words(c)
    pair = Pair(len(WORDS), width=8)
    assert torch.allclose(pair.embed_images(v).norm(dim=1), torch.ones(64))
    assert torch.allclose(pair.embed_texts(words).norm(dim=1), torch.ones(64))
    fit(pair, (v, words), steps=60, batch_size=32, lr=1e-2, seed=0)
    with torch.no_grad():
        found = (pair.embed_images(v) @ pair.embed_texts(words).T).argmax(1)
    assert (found == torch.arange(64)).double().mean() > 0.5
