"Two frozen encoders side by side: each sees its own pixels, nothing of them moves, a ladder reads both."
import torch
import torch.nn.functional as F

from densegen.dense.espnet import ESPNetv2
from densegen.dense.lite import FullLite
from densegen.dense.segmentation import Ladder
from densegen.dense.two_encoders import TwoEncoders


def both():
    torch.manual_seed(0)
    return TwoEncoders(FullLite(half=True), ESPNetv2())


def test_each_encoder_sees_its_own_pixels_and_size():
    encoder, images = both().train(), torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    ladder = Ladder(3, rungs=(8, 8, 8, 6), encoder=encoder)
    maps = encoder(ladder.normalized(images))
    lite = encoder.photographs((images.float() - 127) / 128)
    assert [m.shape[1] for m in maps] == list(TwoEncoders.widths) and len(lite) == 5
    assert all(torch.allclose(m[:, : own.shape[1]], own, atol=1e-4) for m, own in zip(maps, lite))
    larger = F.interpolate(images.float(), (96, 144), mode="bilinear", align_corners=False)
    _, last, outputs = encoder.streets.outputs(larger)
    seen = F.interpolate(torch.cat([last, outputs], 1), (32, 48), mode="bilinear", align_corners=False)
    assert torch.allclose(maps[0][:, 16:], seen, atol=1e-3)


def test_training_moves_the_ladder_alone():
    torch.manual_seed(1)
    model = Ladder(3, rungs=(8, 8, 8, 6), encoder=both()).train()
    before = {name: v.clone() for name, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    sum(model.loss((torch.rand(2, 3, 64, 96) * 255, torch.randint(0, 3, (2, 64, 96)))).values()).backward()
    optimizer.step()
    moved = {name for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    assert "head.weight" in moved and not any(name.startswith("encoder.") for name in moved)
