"The closed-set model over frozen features: maps and labels stay together, each crop is encoded once, only the ladder learns."
import pytest
import torch
from torch import nn

from densegen.dense import closed_set as module
from densegen.dense.closed_set import closed_set, encoded, frozen_ladder, train_frozen, trained_parts
from densegen.streets.scenes import streets


class Showing(nn.Module):
    "Its one map is the image itself; it counts what it encodes."

    def __init__(self):
        super().__init__()
        self.seen, self.encoder = 0, nn.PReLU()  # has a place, and leaves these images alone
        self.encoder.register_forward_hook(lambda module, inputs, output: self.look(output))

    def normalized(self, images):
        return images

    def look(self, images):
        self.seen += len(images)
        return [images]


def draw(n, generator):
    "Crops of one grey level, which is also their label."
    labels = torch.randint(0, 200, (n, 1, 1), generator=generator).expand(n, 8, 12).to(torch.uint8)
    return labels[:, None].float(), labels


def test_maps_keep_their_labels_and_a_crop_is_encoded_once():
    model, generator = Showing(), torch.Generator().manual_seed(0)
    batch = encoded(draw, model, uses=4, keep=32)
    for _ in range(30):
        maps, labels = batch(4, generator)
        assert maps.shape == (4, 1, 8, 12) and labels.shape == (4, 4, 6) and maps.dtype == torch.float16
        assert torch.equal(maps[:, 0, ::2, ::2].to(torch.uint8), labels)
    assert model.seen == 2 * 4 + 28 * 1  # eight crops first, then one of four anew
    assert len({int(v) for _ in range(20) for v in batch(4, generator)[1][:, 0, 0]}) > 12  # not the newest alone


@pytest.fixture(scope="module")
def few():
    return streets("train", 4, 64, 96)


def test_only_the_ladder_learns(few):
    torch.manual_seed(0)
    model = frozen_ladder(len(few.names), 64)
    assert model.encoder.enlarge == 6
    before = {name: v.clone() for name, v in model.state_dict().items()}
    train_frozen(model, few.images, few.labels, 2, (192, 240))
    moved = {name for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    assert not model.training and "head.weight" in moved and "decoder.sides.0.0.weight" in moved
    assert "weights" in moved and not any(name.startswith("encoder.") for name in moved)


def test_what_is_read_is_what_was_trained(few, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "artifact", lambda make, *given: make(*given))
    model = closed_set(few, 2, 1)
    parts = trained_parts(few.images, few.labels, len(few.names), 2, 1)
    assert not any(name.startswith("encoder.") for name in parts)
    assert all(torch.equal(model.state_dict()[name], v) for name, v in parts.items())
    other = trained_parts(few.images, few.labels, len(few.names), 2, 2)
    assert not torch.equal(other["head.weight"], parts["head.weight"])
    assert model(few.images[:1]).logits.shape == (1, len(few.names), 64, 96)
