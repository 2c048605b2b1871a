"""Protects windows, their order, shares and augmentation.

python -m pytest tests/test_data.py
"""

import json
import math
import os
import shutil
import threading
import time

import numpy as np
import pytest
import safetensors.numpy
import torch

import data
import episode
from vla import browse, frames, windows
from vla.processor import Processor

CAMERAS = ('overhead', 'right/wrist')
STATE = ('command/*/tool_[xyz]', 'command/*/tool_rz', 'error/*/tool_[xyz]', '*/gripper')
ACTION = ('*/tool_[xyz]', '*/tool_rz', '*/gripper')
CORE = ('time', 'state', 'tool_action')
AUGMENTED = dict(noise_samples=3, gain=0.1, brightness=6.0, crop=0.1)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal, also in what they lack: nan where there is no brick."""
    nans_agree = torch.equal(a.isnan(), b.isnan())
    return nans_agree and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('episodes')
    episode.write_synthetic_episodes(folder, 12, CAMERAS, 16, kicks=0.3)
    return folder


def make_processor(state=STATE, action=ACTION, horizon=8):
    with open('assets/tokenizer.json') as f:
        return Processor(CAMERAS, 16, state, action, horizon, 10, f.read(), tokens_per_camera=2)


@pytest.fixture(scope='module')
def dataset(folder):
    dataset = data.Dataset(folder, make_processor(), **AUGMENTED)
    dataset.processor.fit(dataset)
    return dataset


# ---- windows and normaliser


def hand_made(tmp_path, kicked, goal, success, name='e'):
    arrays, header = episode.synthetic_episode(5, CAMERAS, 16, kicks=0.0)
    arrays = {k: np.repeat(v[:1], len(kicked), 0) for k, v in arrays.items()}
    T = len(kicked)
    arrays |= {'time': np.arange(T) / 10, 'kicked': np.array(kicked), 'goal': np.array(goal)}
    arrays['tool_action'][:, 8] = 0.3 + 0.01 * np.arange(T)
    arrays['tool_executed'] = arrays['tool_action']
    episode.write_episode(tmp_path / f'{name}.safetensors', arrays, header | {'success': success})


def test_rows_after_a_kick_do_not_count_and_rows_past_the_end_hold_after_success_only(tmp_path):
    kicked = [0, 0, 1, 0, 0, 0]
    hand_made(tmp_path, kicked, [0] * 6, True, 'a')
    hand_made(tmp_path, kicked, [0] * 6, False, 'b')
    dataset = data.Dataset(tmp_path, make_processor(horizon=4))
    mask = dataset.chunk_mask(np.arange(12)).astype(int).tolist()
    assert mask[:6] == [
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
        [1, 1, 1, 1],
    ]
    assert mask[6:] == mask[:3] + [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    x = dataset.chunk(np.arange(12))[:, :, 8]
    assert x[4].tolist() == pytest.approx(
        [0.34, 0.35, 0.35, 0.35]
    )  # held; not the next episode's row
    assert x[6].tolist() == pytest.approx([0.30, 0.31, 0.32, 0.33])


def test_windows_stop_a_few_rows_after_the_goal_is_reached_for_good(tmp_path):
    hand_made(tmp_path, [0] * 10, [0, 0, 1, 0, 1, 1, 1, 1, 1, 1], True, 'a')
    hand_made(tmp_path, [0] * 10, [0] * 10, False, 'b')
    assert data.Dataset(tmp_path, make_processor(), rows_after_success=3).windows.tolist() == [
        *range(8),
        *range(10, 20),
    ]
    assert data.Dataset(tmp_path, make_processor(), rows_after_success=0).windows.tolist() == [
        *range(5),
        *range(10, 20),
    ]


def test_chunks_longer_than_their_episode_are_filled_up_and_count_after_success_only(tmp_path):
    hand_made(tmp_path, [0, 0, 0, 1, 0, 0], [0] * 6, True, 'a')
    hand_made(tmp_path, [0] * 6, [0] * 6, False, 'b')
    dataset = data.Dataset(tmp_path, make_processor(horizon=50))
    x, mask = dataset.chunk(np.arange(12))[:, :, 8], dataset.chunk_mask(np.arange(12))
    ahead = np.minimum(
        np.arange(6)[:, None] + np.arange(50), 5
    )  # of one episode: never of the next
    assert np.allclose(x[:6], 0.3 + 0.01 * ahead) and np.array_equal(x[:6], x[6:])
    assert mask.sum(1).tolist() == [4, 3, 2, 1, 50, 50, 6, 5, 4, 3, 2, 1]
    assert all(
        np.array_equal(np.sort(row)[::-1], row) for row in mask
    )  # the first rows are what counts
    dataset.processor.fit(dataset)
    batch = dataset.batch(0, 12)
    assert batch['actions'].shape == (12, 50, len(dataset.processor.action_slots))
    assert all(batch[name].isfinite().all() for name in ('actions', 'n_rows', 'state'))
    assert batch['n_rows'] == mask[dataset.sample_rows(0, 12, 0)].sum()


def test_an_error_of_no_rows_is_no_number(tmp_path):
    hand_made(tmp_path, [0] * 3, [0] * 3, False)
    dataset = data.Dataset(tmp_path, make_processor())
    dataset.processor.fit(dataset)
    chunk = np.zeros((3, 8, 10))
    errors = dataset.action_error(np.arange(3), chunk)
    assert math.isnan(errors['position_mm@4']) and math.isnan(errors['gripper_mm@8'])
    assert errors['position_mm'] >= 0 and errors['position_mm@2'] >= 0
    dataset.chunk_mask = lambda rows: np.zeros((3, 8), bool)  # nothing counts at all
    assert all(map(math.isnan, dataset.action_error(np.arange(3), chunk).values()))


def test_tasks_with_fewer_bricks_go_into_the_same_batches(folder, tmp_path, monkeypatch):
    paths = episode.episode_paths(folder)
    n = len(episode.COLOURS)
    blue = episode.COLOURS.index('blue')
    for i in (0, 1):
        arrays, header = episode.read_episode(paths[i])
        scene = np.array(arrays['scene']).reshape(-1, 3, n, 4)
        if i == 1:  # no blue brick lies there
            scene[:, :, blue] = np.nan
        # They go on none of them; from row 5 on another goal of the plan is at work
        referents = [[0, [[0, 0, n, 1, 0, 0, 0, 0]]], [5, [[0, 0, n, 0, 0.3, 0, 0, 0]]]]
        episode.write_episode(
            tmp_path / f'{i}.safetensors',
            dict(arrays, scene=scene.reshape(len(scene), -1)),
            dict(header, seed=i, referents=referents),
        )
    dataset = data.Dataset(tmp_path, make_processor(), None)
    short = dataset.episode == 1
    scene = dataset.scene(np.arange(len(short)))
    assert scene.shape[2] == n and np.isfinite(scene[~short][:, :, blue]).all()
    assert np.isnan(scene[short][:, :, blue]).all() and np.isfinite(scene[short][:, :, 0]).all()
    assert dataset.referents[:, 0, 2].tolist() == [n] * 4
    assert dataset.places() == ((0, 0, 0, 0), (0.3, 0, 0, 0))
    monkeypatch.setattr(windows, 'MOST_PLACES', 1)
    with pytest.raises(ValueError, match='more than 1 places, .* on no grid .* --grounding=False'):
        dataset.places()
    dataset.processor.fit(dataset)
    assert np.array_equal(dataset.spans, [0, 5, dataset.start[1], dataset.start[1] + 5])
    for step in range(4):
        rows, batch = dataset.sample_rows(step, 8, 0), dataset.batch(step, 8)
        late = rows - dataset.start[dataset.episode[rows]] >= 5
        assert np.array_equal(batch['referents'][:, 3], ~late)
    for key in ('world', 'referents', 'askable', 'qa', 'metrics'):  # CORE alone
        header.pop(key, None)
    arrays = {k: v for k, v in arrays.items() if k in CORE or k.startswith('image/')}
    safetensors.numpy.save_file(arrays, tmp_path / 'old', {'header': json.dumps(header)})
    old = data.Dataset([tmp_path / 'old'], make_processor(), None)
    with pytest.raises(
        ValueError, match='old has no scene, askable, referents: grounding learns from the'
    ):
        old.demand('grounding')
    old.processor.fit(old)  # all else can be learnt
    assert not old.batch(0, 4).keys() & {'scene', 'referents'}
    arrays, header = episode.read_episode(paths[0])
    header = dict(header, referents=[[0, 0, 2, 1, 0, 0, 0, 0]])
    safetensors.numpy.save_file(arrays, tmp_path / '2.safetensors', {'header': json.dumps(header)})
    with pytest.raises(ValueError, match='has no referents by row: .* --grounding=False'):
        data.Dataset(tmp_path / '2.safetensors', make_processor(), None).demand('grounding')
    assert episode.check_episode(tmp_path / '2.safetensors') == [
        'referents are not by row, as an older version wrote them: record it anew'
    ]


def test_held_out_episodes_stay_held_out_when_more_are_recorded(folder):
    processor = make_processor()
    train, val = (data.Dataset(folder, processor, split, 0.3) for split in ('train', 'val'))
    assert sorted(train.paths + val.paths) == episode.episode_paths(folder) and len(val.paths) > 0
    assert data.Dataset(episode.episode_paths(folder)[:-2], processor, 'val', 0.3).paths == [
        p for p in val.paths if p in episode.episode_paths(folder)[:-2]
    ]


# ---- batches


def test_a_batch_is_a_pure_function_of_seed_and_step(dataset, folder):
    again = data.Dataset(folder, dataset.processor, **AUGMENTED)
    dataset.batch(
        7, 32, seed=1
    )  # what was asked before must not matter, nor may the global generators
    torch.manual_seed(0), np.random.seed(0)
    a = dataset.batch(3, 32, seed=1)
    torch.manual_seed(1), np.random.seed(1)
    b = again.batch(3, 32, seed=1)
    assert a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    for other in (dataset.batch(4, 32, seed=1), dataset.batch(3, 32, seed=2)):
        assert not same(a['noise'], other['noise']) and not same(a['state'], other['state'])


@pytest.mark.parametrize('world_size', [2, 4])
def test_ranks_share_out_exactly_the_batch_of_one_process(dataset, world_size):
    whole = dataset.batch(3, 32, seed=1)
    parts = [dataset.batch(3, 32, rank, world_size, seed=1) for rank in range(world_size)]
    for name, value in whole.items():
        if name in ('n_rows', 'n_tokens'):
            assert all(part[name] * world_size == value for part in parts)
        else:
            assert same(torch.cat([part[name] for part in parts]), value), name
    assert whole['n_rows'] == whole['action_mask'].sum()
    assert whole['n_tokens'] == (whole['labels'] != -100).sum()
    with pytest.raises(ValueError, match='does not divide'):
        dataset.batch(0, 32, 0, 3)


def test_an_epoch_visits_every_window_once_also_across_batch_borders(dataset):
    n = len(dataset)
    rows = np.concatenate([dataset.sample_rows(step, 7, seed=5) for step in range(3 * n // 7 + 1)])
    for epoch in range(3):
        assert sorted(rows[epoch * n : (epoch + 1) * n]) == dataset.windows.tolist()
    assert rows[:n].tolist() != rows[n : 2 * n].tolist()


def test_folders_take_turns_by_their_weights_and_none_of_their_windows_is_left_out(
    folder, tmp_path, dataset
):
    episode.write_synthetic_episodes(tmp_path / 'more', 3, CAMERAS, 16, seed0=100)
    both = [folder, tmp_path / 'more']
    mixed = data.Dataset(both, dataset.processor, weights=(1, 3))
    windows = [
        mixed.windows[(mixed.episode[mixed.windows] >= 12) == more] for more in (False, True)
    ]
    rows = np.concatenate([mixed.sample_rows(step, 8, seed=2) for step in range(len(windows[0]))])
    of_more = mixed.episode[rows] >= 12
    assert (of_more.reshape(-1, 8).sum(1) == 6).all()  # of every batch
    for more in (False, True):  # an epoch of each folder, whatever the other one does
        n = len(windows[more])
        assert sorted(rows[of_more == more][:n]) == windows[more].tolist()
        assert rows[of_more == more][:n].tolist() != rows[of_more == more][n : 2 * n].tolist()
    a, b = (
        mixed.sample_rows(7, 8, 2),
        np.concatenate([mixed.sample_rows(step, 4, 2) for step in (14, 15)]),
    )
    assert a.tolist() == b.tolist()  # the order knows nothing of batches
    with pytest.raises(ValueError, match='3 weights for 2 folders'):
        data.Dataset(both, dataset.processor, weights=(1, 3, 1))
    (tmp_path / 'one').mkdir()
    os.link(episode.episode_paths(folder)[0], tmp_path / 'one' / 'e.safetensors')
    with pytest.raises(ValueError, match='no windows'):  # it is held out, or everything else is
        for split in ('train', 'val'):
            data.Dataset([folder, tmp_path / 'one'], dataset.processor, split, 0.3, weights=(1, 1))


def test_given_rows_have_time_zero_and_are_not_counted(folder, dataset):
    giving = data.Dataset(folder, dataset.processor, noise_samples=2, prefix_rows=2)
    plain = data.Dataset(folder, dataset.processor, noise_samples=2)
    a, b = plain.batch(3, 32), giving.batch(3, 32)
    given = (b['time'] == 0).sum(-1)
    assert sorted(given.unique().tolist()) == [0, 1, 2] and not b['time'][..., 2:].eq(0).any()
    assert same(b['time'][..., -1], a['time'])  # the rest is as it was
    counted = (b['action_mask'][:, None] & (b['time'] > 0)).sum() / 2
    assert b['n_rows'] == counted < a['n_rows']


def test_draws_follow_their_distributions(dataset):
    batch = dataset.batch(0, 4096)
    t, noise = batch['time'].double(), batch['noise'].double()
    assert t.min() > 0.001 and t.max() <= 1
    assert t.mean() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.01)  # Beta(1.5, 1)
    assert abs(noise.mean()) < 0.01 and noise.std() == pytest.approx(1, abs=0.01)
    assert batch['read_text'].float().mean() == pytest.approx(0.5, abs=0.02)


def test_augmentation_scales_colours_and_makes_pictures_brighter():
    images = torch.arange(2 * 1 * 4 * 4 * 3, dtype=torch.uint8).view(2, 1, 4, 4, 3)
    still = {
        'images': images,
        'gain': torch.ones(2, 1, 1, 1, 3),
        'offset': torch.zeros(2, 1, 1, 1, 1),
    }
    assert same(data.augment(still)['images'], images) and data.augment(still).keys() == {'images'}
    bright = data.augment(still | {'offset': torch.tensor([0.0, 5.0]).view(2, 1, 1, 1, 1)})[
        'images'
    ]
    assert bright.dtype == torch.float32
    assert same(bright[0], images[0].float()) and same(bright[1], images[1] + 5.0)
    red = still['gain'] * torch.tensor([2.0, 1.0, 1.0])
    assert same(data.augment(still | {'gain': red})['images'][..., 0], images[..., 0] * 2.0)


def test_augmentation_cuts_off_borders_and_enlarges_the_rest(dataset):
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing='ij')
    images = torch.stack([8 * y + x, y, x], -1).expand(2, 1, 8, 8, 3)  # ramps: sampling is exact
    crop = torch.tensor(
        [[[1.0, 0, 0]], [[0.5, 0.25, -0.25]]]
    )  # all; half, a pixel down and a pixel left
    whole, half = data.augment({'images': images, 'crop': crop})['images'][:, 0]
    assert torch.allclose(whole, images[0, 0], atol=1e-4)
    assert torch.allclose(half[..., 1], 4.5 + (y - 3.5) / 2, atol=1e-4)
    assert torch.allclose(half[..., 2], 2.5 + (x - 3.5) / 2, atol=1e-4)
    side, *centre = dataset.batch(0, 512)['crop'].unbind(-1)  # (512, N)
    assert 0.9 <= side.min() < 0.91 and 0.99 < side.max() <= 1 and len(side.unique()) > 1000
    for at in centre:  # nothing is looked for outside the picture, and all of it comes to be seen
        assert (at.abs() <= 1 - side + 1e-6).all() and at.max() > 0.08 and at.min() < -0.08


def test_augmentation_is_decided_without_asking_the_device(folder, dataset):
    batch = {
        k: v.to('meta') for k, v in dataset.batch(0, 4).items()
    }  # a device that has no numbers
    assert data.augment(batch)['images'].shape == (4, 2, 16, 16, 3)
    plain = data.Dataset(folder, dataset.processor).batch(0, 4)
    assert not plain.keys() & {'gain', 'offset', 'crop'}
    assert data.augment(plain)['images'] is plain['images']
    uncropped = data.Dataset(folder, dataset.processor, **AUGMENTED | dict(crop=0.0)).batch(0, 4)
    cropped = dataset.batch(0, 4)  # is drawn last: no other number moves
    assert cropped.keys() - uncropped.keys() == {'crop'}
    assert all(same(cropped[name], uncropped[name]) for name in uncropped)


def test_prefetching_changes_neither_order_nor_numbers(dataset):
    ahead = list(data.prefetch(lambda step: dataset.batch(step, 8), range(3, 9)))
    assert len(ahead) == 6
    for step, batch in zip(range(3, 9), ahead):
        assert same(batch['noise'], dataset.batch(step, 8)['noise'])
    with pytest.raises(ZeroDivisionError):
        list(data.prefetch(lambda step: 1 / (step - 2), range(5)))


def test_several_threads_make_the_same_batches_in_the_same_order(dataset):
    makers = set()

    def make(step):
        makers.add(threading.current_thread())
        time.sleep(0.01 * (step % 3))  # they do not end in the order in which they began
        return [dataset.batch(step, 4)]

    ahead = data.prefetch(make, range(2, 12), threads=3)
    for step, (batch,) in zip(range(2, 12), ahead, strict=True):
        assert all(same(value, batch[name]) for name, value in dataset.batch(step, 4).items())
    assert len(makers) == 3


def test_processes_make_the_batches_of_threads_bit_for_bit_and_pass_on_what_stops_them(dataset):
    def make(step):
        if step == 9:
            raise OSError('episode: cut off')
        return [dataset.batch(step, 4), {'process': torch.tensor(os.getpid())}]

    maker = data.ForkedMaker(make, 2)
    ahead = data.prefetch(maker, range(2, 10), threads=maker.processes)
    makers = set()
    for step in range(2, 9):
        batch, by = next(ahead)
        expected = dataset.batch(step, 4)
        assert batch.keys() == expected.keys()
        assert all(same(value, expected[name]) for name, value in batch.items())
        makers.add(int(by['process']))
    assert os.getpid() not in makers
    with pytest.raises(OSError, match='^episode: cut off$'):
        next(ahead)
    maker.close()
    for process in makers:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_no_more_batches_are_made_than_are_about_to_be_used(dataset):
    begun = []
    batches = data.prefetch(lambda step: begun.append(step) or [step], range(100), threads=2)
    assert [next(batches) for _ in range(3)] == [[0], [1], [2]]
    batches.close()
    assert len(begun) <= 3 + 4


def test_pictures_on_the_device_are_those_of_the_files_bit_for_bit(folder, dataset):
    kept = data.Dataset(folder, dataset.processor, **AUGMENTED)
    kept.keep_frames('cpu')
    assert len(kept.frames.images) == len(kept)
    for step in (0, 7):
        for rank in (0, 1):
            there = kept.batch(step, 8, rank, 2, seed=3)
            assert 'images' not in there and there['frame'].shape == (4,)
            there = data.augment(there, kept.frames)
            expected = data.augment(dataset.batch(step, 8, rank, 2, seed=3))
            assert there.keys() == expected.keys()
            assert all(same(there[name], value) for name, value in expected.items())
    assert frames.size_gb(kept) == kept.frames.images.nbytes / 1e9
    assert not frames.fit(kept, 'cpu')


@pytest.mark.parametrize('multiple', [1, 8])
def test_all_batches_of_a_data_set_are_of_one_shape(folder, dataset, multiple):
    same = data.Dataset(folder, dataset.processor, reask_share=0.5, multiple=multiple)
    shapes = set()
    for step in range(30):
        batch = same.batch(step, 4)
        shapes.add((batch['input_ids'].shape[1], batch['label_at'].shape[1]))
        supervised = batch['labels'] != -100
        column = torch.arange(supervised.shape[1])
        for at, there in zip(batch['label_at'], supervised):
            assert at[at >= 0].tolist() == column[there].tolist()
    assert len(shapes) == 1
    assert all(n % multiple == 0 for n in shapes.pop())


def test_a_text_that_was_not_foreseen_makes_its_batch_wider(folder, dataset):
    wide = data.Dataset(folder, dataset.processor, multiple=8)
    usual = wide.batch(0, 4)
    wide.askable = [['press the red brick ' + 5 * 'and the blue brick ']] * len(wide.paths)
    batch = wide.batch(0, 4)
    assert batch['input_ids'].shape[1] > usual['input_ids'].shape[1]
    assert batch['input_ids'].shape[1] % 8 == 0
    assert int(batch['total_len'].max()) > usual['input_ids'].shape[1]


def test_batches_are_pinned_where_they_are_made_and_only_if_asked(dataset, monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor,
        'pin_memory',
        lambda tensor: pinned.append(threading.current_thread()) or tensor.clone(),
    )
    for pin in (False, True):
        made = list(data.prefetch(lambda step: [dataset.batch(step, 4)] * 2, range(3), pin))
        assert all(
            same(batch[k], v)
            for i, batches in enumerate(made)
            for batch in batches
            for k, v in dataset.batch(i, 4).items()
        )
        assert len(pinned) == pin * 6 * len(made[0][0])
    assert threading.main_thread() not in pinned


# ---- pictures packed as jpeg


@pytest.fixture(scope='module')
def packed(folder):
    browse.pack_episodes(episode.episode_paths(folder), f'{folder}_jpeg', 95)
    return f'{folder}_jpeg'


def test_packed_pictures_train_like_raw_ones_whoever_decodes_them(dataset, packed, monkeypatch):
    whose, blob = set(), episode.JpegFrames.blob
    monkeypatch.setattr(
        episode.JpegFrames,
        'blob',
        lambda self, at: (whose.add(threading.current_thread().name), blob(self, at))[1],
    )
    alone, shared = (
        data.Dataset(packed, dataset.processor, **AUGMENTED, workers=n) for n in (1, 3)
    )
    for step in (0, 5):
        raw, one, many = (d.batch(step, 16, 1, 2, seed=3) for d in (dataset, alone, shared))
        assert (
            raw.keys() == one.keys() == many.keys() and raw['images'].shape == one['images'].shape
        )
        assert all(same(one[k], many[k]) for k in one)
        assert all(same(one[k], raw[k]) for k in one if k != 'images')
        error = (one['images'].float() - raw['images'].float()).abs().mean((-3, -2, -1))  # (B, N)
        spread = raw['images'].float().flatten(2).std(-1).mean()
        assert 0 < error.max() < 8 and error.mean() < spread / 4
    assert threading.main_thread().name in whose and len(whose) > 1


def test_a_damaged_picture_stops_the_batch_and_names_its_file(dataset, packed, tmp_path):
    path = f'{tmp_path}/e.safetensors'
    shutil.copy(episode.episode_paths(packed)[0], path)
    spoil_pictures(path)
    for workers in (1, 3):
        with pytest.raises(OSError, match='e.safetensors: image/overhead row .* no jpeg'):
            data.Dataset(path, dataset.processor, workers=workers).batch(0, 4)


def spoil_pictures(path):
    """Nothing in the file can be decoded any more; all the rest stays."""
    with safetensors.safe_open(path, 'np') as f:
        arrays, header = {name: f.get_tensor(name) for name in f.keys()}, f.metadata()
    arrays = {k: v * 0 if k.endswith('/bytes') else v for k, v in arrays.items()}
    safetensors.numpy.save_file(arrays, path, header)


# ---- what a run was made of


def test_a_fingerprint_sees_every_kind_of_change_and_no_move_to_another_folder(tmp_path):
    arrays, header = episode.synthetic_episode(1, CAMERAS, 16, kicks=0.0)

    def fingerprint(change={}, jpeg=0, **words):
        episode.write_episode(tmp_path / 'e.safetensors', arrays | change, header | words, jpeg)
        return data.Dataset(tmp_path, make_processor()).fingerprint()

    whole = fingerprint()
    assert whole == fingerprint() and len(whole) == 16
    (tmp_path / 'else').mkdir()
    os.link(tmp_path / 'e.safetensors', tmp_path / 'else' / 'e.safetensors')
    assert data.Dataset(tmp_path / 'else', make_processor()).fingerprint() == whole
    other = {
        'actions': fingerprint({k: arrays[k] + 1e-5 for k in ('tool_action', 'tool_executed')}),
        'state': fingerprint({'state': arrays['state'] * 1.0001}),
        'scene': fingerprint({'scene': arrays['scene'] + 0.01}),
        'goal': fingerprint({'goal': arrays['goal'] * 0}),
        'kicked': fingerprint({'kicked': np.eye(1, len(arrays['time']), 2, np.uint8)[0]}),
        'subtask_id': fingerprint({'subtask_id': arrays['subtask_id'] * 0}),
        'picture': fingerprint({'image/overhead': 255 - arrays['image/overhead']}),
        'instruction': fingerprint(instruction='other words', askable=['other words']),
        'subtasks': fingerprint(subtasks=['other words', *header['subtasks'][1:]]),
        'referents': fingerprint(referents=[[0, [[0, 1, 2, 1, 0, 0, 0, 0]]]]),
        'success': fingerprint(success=False),
        'size': fingerprint(qa=[['where', 'red', 'table left', 0, 1]]),
        **{f'jpeg {quality}': fingerprint(jpeg=quality) for quality in (50, 90)},
    }
    assert len({whole, *other.values()}) == 1 + len(other), other


def test_folders_are_merged_and_split_by_links(folder, tmp_path, capsys):
    episode.write_synthetic_episodes(tmp_path / 'more', 3, CAMERAS, 16)  # the same seeds
    assert data.main(['merge', str(tmp_path / 'all'), str(folder), str(tmp_path / 'more')]) == 0
    merged = episode.episode_paths(tmp_path / 'all')
    assert len(merged) == 15 and f'{tmp_path}/all: 15 episodes' in capsys.readouterr().out
    assert os.path.samefile(merged[-1], episode.episode_paths(tmp_path / 'more')[-1])
    assert data.main(['split', str(tmp_path / 'all'), '0.3']) == 0
    held, rest = (
        data.Dataset(f'{tmp_path}/all_{name}', make_processor()) for name in ('held', 'rest')
    )
    train = data.Dataset(tmp_path / 'all', make_processor(), 'train', 0.3)
    assert [n.split()[-1] for n in rest.names] == [n.split()[-1] for n in train.names]
    assert len(held.paths) == 15 - len(rest.paths) > 0


def test_thousands_of_episodes_open_no_files_and_take_little_memory(folder):
    """Per row and episode, so that it need not be tried on ten thousand: those were 116 MB,
    docs/log.md."""
    before = len(os.listdir('/proc/self/fd'))
    dataset = data.Dataset([*episode.episode_paths(folder)] * 20, make_processor())
    assert len(os.listdir('/proc/self/fd')) == before and len(dataset.paths) == 240
    held = sum(v.nbytes for v in vars(dataset).values() if isinstance(v, np.ndarray))
    assert held / len(dataset.last) < 150  # bytes per row: no state, no pictures


@pytest.mark.parametrize('option', ['--jpeg=4000', '--control_hz=0', '--control_hz=x'])
def test_options_of_a_conversion_have_ranges(tmp_path, option):
    words = ['from_hdf5', str(tmp_path), str(tmp_path / 'out'), '--instruction=x', option]
    with pytest.raises(ValueError, match='expected a number from'):
        data.main(words)
    words[-1] = '--control_hz=12.5'  # the next refusal is of the empty folder
    with pytest.raises(ValueError, match='(?!.*expected a number)'):
        data.main(words)
