"""Pictures become tokens as published (tests/test_pretrained.py holds the tower to the reference's
numbers).

python -m pytest tests/test_vision.py
"""

import pytest
import torch
import torch.nn.functional as F

from model import VLAConfig
from vla import layers, vision

torch.set_num_threads(1)


def close(a, b, tolerance=1e-5):
    return (a - b).abs().max().item() <= tolerance


def config(**changes):
    """Sizes of a stem; the ids of tokens do not matter."""
    sizes = dict(vocab_size=8, state_dim=1, action_dim=1, horizon=1, hidden_size=12, image_size=32)
    ids = dict(image_pad_id=1, state_pad_id=2, action_start_id=3)
    return VLAConfig(**{**sizes, **ids, **changes})


def test_group_norm_equals_the_library():
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 24)
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(5, 24, 3, 3).to(memory_format=torch.channels_last)
    results = []
    for call in (layers.group_norm, lambda x, norm: norm(x)):
        norm.zero_grad()
        y = x.clone().requires_grad_()
        out = call(y, norm)
        out.backward(torch.sin(torch.arange(out.numel()).view(out.shape)))
        results.append([out, y.grad, *(p.grad.clone() for p in norm.parameters())])
    assert all(close(a, b) for a, b in zip(*results))


def test_stem_folds_the_pixel_range_into_its_weights():
    torch.manual_seed(0)
    stem = vision.ConvStem(config(tokens_per_camera=2))
    images = torch.randint(0, 256, (1, 3, 32, 32, 3), dtype=torch.uint8)
    seen = []
    stem.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tokens = stem(dict(images=images))
    assert close(seen[0], F.relu(stem.patch(images[0].permute(0, 3, 1, 2) / 127.5 - 1)))
    assert close(tokens, stem(dict(images=images.float()))) and tokens.shape == (6, 12)


def test_stem_keypoints_say_where_a_feature_fires():
    stem = vision.ConvStem(config())
    corner = torch.tensor([3 * 15 / 16, -3 * 15 / 16])  # x right, y down
    assert close(stem.where.view(16, 16, 2)[0, 15], corner)


def test_patches_of_a_cell_lie_side_by_side():
    images = torch.randint(0, 256, (2, 56, 84, 3), dtype=torch.uint8)
    patches, grids = vision.patchify(images)
    assert grids == [(1, 4, 6)] * 2 and patches.shape == (48, 1176)
    pixels = (images / 255 - torch.tensor(vision.PIXEL_MEAN)) / torch.tensor(vision.PIXEL_STD)
    n = 24  # patches of the first picture
    for cell_row in range(2):
        for cell_column in range(3):
            for row in range(2):
                for column in range(2):
                    top, left = 14 * (2 * cell_row + row), 14 * (2 * cell_column + column)
                    square = pixels[1, top : top + 14, left : left + 14].permute(2, 0, 1)
                    assert close(
                        patches[n].view(3, 2, 14, 14), square[:, None].expand(3, 2, 14, 14)
                    )
                    n += 1
    with pytest.raises(ValueError, match='50 x 84'):
        vision.patchify(images[:, :50])


def test_positions_walk_the_grid_and_go_on_after_its_longer_side():
    ids = torch.tensor([[5, 9, 9, 9, 9, 9, 9, 5, 9, 5], [5, 5, 5, 5, 5, 5, 5, 5, 5, 5]])
    position = vision.grid_positions(ids == 9, [(1, 4, 6), (1, 2, 2)])
    assert position[:, 0].tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 5, 6],
        [0, 1, 1, 1, 2, 2, 2, 4, 5, 6],
        [0, 1, 2, 3, 1, 2, 3, 4, 5, 6],
    ]
    assert position[:, 1].tolist() == [list(range(10))] * 3


def test_pictures_of_one_batch_do_not_see_each_other():
    torch.manual_seed(0)
    sizes = dict(vision_width=32, vision_layers=2, vision_heads=2, vision_intermediate=48)
    shape = dict(vision='qwen', hidden_size=16, vision_full_blocks=(1,), vision_window=56)
    stem = vision.QwenStem(config(**sizes, **shape))

    def tower(patches, grids):
        return stem(dict(patches=patches, grids=grids))

    small, large = torch.rand(2, 28, 56, 3) * 255, torch.rand(1, 84, 140, 3) * 255
    (a, grid_a), (b, grid_b) = vision.patchify(small), vision.patchify(large)
    together = tower(torch.cat([a[:8], b, a[8:]]), [grid_a[0], grid_b[0], grid_a[1]])
    alone = torch.cat([tower(a[:8], grid_a[:1]), tower(b, grid_b), tower(a[8:], grid_a[1:])])
    assert together.shape == (2 + 15 + 2, 16) and close(together, alone)


def test_a_video_shows_two_frames_in_a_patch_and_repeats_the_last():
    video = torch.randint(0, 256, (3, 28, 56, 3), dtype=torch.uint8)
    patches, grids = vision.preprocess([video, video[0]], min_pixels=1)
    assert grids == [(2, 2, 4), (1, 2, 4)]
    frames = [
        vision.preprocess([frame], min_pixels=1)[0].view(8, 3, 2, 196)[:, :, 0] for frame in video
    ]
    rows = patches.view(3, 8, 3, 2, 196)
    for row, (first, second) in enumerate(((0, 1), (2, 2), (0, 0))):
        assert torch.equal(rows[row, :, :, 0], frames[first])
        assert torch.equal(rows[row, :, :, 1], frames[second])


def test_pictures_are_brought_to_whole_cells_within_bounds():
    for size, expected in (
        ((224, 224), (224, 224)),
        ((256, 256), (252, 252)),
        ((480, 640), (252, 364)),
        ((720, 1280), (224, 420)),
        ((84, 84), (224, 224)),
    ):  # EO-1's, 64 to 128 cells
        assert vision.smart_size(*size, 64 * 784, 128 * 784) == expected
    with pytest.raises(ValueError, match='5 x 1200 px'):
        vision.smart_size(5, 1200, 1, 10**6)
