"""sample.py on a hardly trained checkpoint: the numbers it prints and the picture it draws.

python -m pytest tests/test_sample.py
"""

import json
import shutil

import imageio.v2 as imageio
import numpy as np
import pytest
import tokenizers
from launch import run
from safetensors.torch import load_file, save_file

import model
import sample
from episode import TOOL_ACTION, TOOL_ACTION_NAMES, pose_columns, read_episode
from vla import policy, pretrained


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """-> (checkpoint, episodes), made up without a simulator."""
    folder = tmp_path_factory.mktemp('sample')
    run(
        'train.py',
        'config/debug.py',
        '--max_steps=2',
        '--question_share=0.2',
        f'--out_dir={folder}/run',
        f'--episodes={folder}/episodes',
    )
    return folder / 'run', folder / 'episodes'


def test_what_was_never_taught_is_refused(trained, tmp_path):
    copy = shutil.copytree(trained[0], tmp_path / 'run')
    meta = json.loads((copy / 'meta.json').read_text())
    meta['settings'] |= dict(question_share=0.0, read_text=0.0)
    (copy / 'meta.json').write_text(json.dumps(meta))
    for asked in ('--ask=where is the red brick ?', '--eval_qa=5'):
        said = run('sample.py', f'--ckpt={copy}', asked, fails=True)
        assert f'{copy} was never asked questions' in said and 'config/qa.py' in said
        assert 'Traceback' not in said
    said = run('sample.py', f'--ckpt={copy}', '--read_text=True', fails=True)
    assert f'{copy} never learnt to act on text' in said
    with pytest.raises(ValueError, match='leave --read_text out'):
        policy.load_predictor(copy, read_text=True)


def _no_added_tokens(meta):
    tokenizer = json.loads(meta['processor']['tokenizer'])
    meta['processor']['tokenizer'] = json.dumps(tokenizer | {'added_tokens': []})


@pytest.mark.parametrize(
    'change, said',
    [
        (_no_added_tokens, 'into pieces'),
        (lambda meta: meta['processor'].update(image_size=31), 'image_size'),
        (lambda meta: meta['processor']['stats']['state_std'].__setitem__(0, 1e-300), 'spreads'),
    ],
)
def test_a_damaged_checkpoint_is_named(trained, tmp_path, change, said):
    copy = shutil.copytree(trained[0], tmp_path / 'run')
    meta = json.loads((copy / 'meta.json').read_text())
    change(meta)
    (copy / 'meta.json').write_text(json.dumps(meta))
    text = run('sample.py', f'--ckpt={copy}', fails=True)
    assert 'Traceback' not in text and f'{copy}/meta.json: ' in text and said in text


def test_averaged_weights_that_are_missing_are_not_replaced_by_others(trained, tmp_path):
    copy = shutil.copytree(trained[0], tmp_path / 'run')
    (copy / 'ema.safetensors').unlink()
    assert 'ema.safetensors is missing' in run('sample.py', f'--ckpt={copy}', fails=True)


def test_one_frame_is_compared_in_words_numbers_and_a_picture(trained):
    checkpoint, episodes = trained
    path = sorted(episodes.glob('*.safetensors'))[0]
    text = run('sample.py', f'--ckpt={checkpoint}', f'--episode={path}', '--step=3', '--samples=4')
    arrays, header = read_episode(path)
    assert f'instruction        {header["instruction"]}' in text
    assert (
        'subtask recorded' in text
        and 'subtask decoded' in text
        and '4 chunks from random noise' in text
    )
    line = next(line for line in text.splitlines() if line.startswith('right/tool_x'))
    command, recorded, predicted, mean, most = map(float, line.split()[1:6])
    label = arrays['tool_action'][3, TOOL_ACTION_NAMES.index('right/tool_x')]
    assert line.endswith('mm') and abs(recorded - 1e3 * label) < 1e-3
    assert mean <= most + 1e-3 and abs(predicted - recorded) <= most + 2e-3
    picture = imageio.imread(checkpoint / 'sample.png')
    assert picture.shape[0] > 400 and picture[..., :3].std() > 20


def test_error_is_averaged_over_held_out_windows(trained, tmp_path):
    text = run(
        'sample.py',
        f'--ckpt={trained[0]}',
        '--count=40',
        '--read_text=false',
        f'--out={tmp_path}/x.png',
    )
    assert (
        '40 held-out windows' in text and 'holding still' in text and (tmp_path / 'x.png').exists()
    )


def test_a_question_is_answered_and_answers_are_scored(trained):
    checkpoint, episodes = trained
    text = run(
        'sample.py',
        f'--ckpt={checkpoint}',
        '--ask=where is the red brick ?',
        '--eval_qa=6',
        '--samples=2',
        '--max_words=5',
    )
    assert 'asked              where is the red brick ?\nanswered           ' in text
    head, *rows = text[text.index('right answers') :].splitlines()[:3]
    assert head.split() == 'right answers n model blind majority majority per question'.split()
    assert [row.split()[:2] for row in rows] == [['done', '6'], ['now', '6']]
    assert all(0 <= float(x[:-1]) <= 100 for row in rows for x in row.split()[2:])


@pytest.mark.mujoco
def test_ways_are_drawn_where_the_camera_sees_them():
    """A brick's centre, projected, falls on a pixel of its colour; outside stands something
    else."""
    from sim.world import World

    world = World('place', image_size=120, cameras=('overhead',))
    obs, _ = world.reset(5)
    facts = world.metadata()
    assert 'left/wrist' not in facts['camera_pose']  # it moves
    for name, channel in (('red', 0), ('blue', 2)):
        top = world.truth().brick_pose(name)[0] + [0, 0, 0.02]
        at = sample.project(
            top, facts['camera_pose']['overhead'], facts['camera_fovy_deg']['overhead'], 120
        )
        column, row = at.round().astype(int)
        pixel = obs['image/overhead'][row, column].astype(int)
        assert pixel[channel] > 1.5 * np.delete(pixel, channel).max(), (name, at, pixel)
    world.close()


def test_masked_rows_do_not_count():
    recorded, predicted = np.zeros((2, 3, len(TOOL_ACTION))), np.zeros((2, 3, len(TOOL_ACTION)))
    x = TOOL_ACTION_NAMES.index('left/tool_x')
    predicted[0, 2, x], predicted[1, 2, x] = 100, 0.5
    counted = np.array([[True, True, False], [True, True, True]])
    per_slot, distance = sample.mean_error(predicted, recorded, counted, pose_columns(TOOL_ACTION))
    assert per_slot[x] == 0.5 / 5 and distance[2].tolist() == [0.5, 0]


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """A tiny random Qwen2.5-VL folder with a tokenizer of its kind."""
    folder = tmp_path_factory.mktemp('published')
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = tokenizers.Tokenizer(tokenizers.models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    words.add_special_tokens(
        [
            '<|endoftext|>',
            '<|im_start|>',
            '<|im_end|>',
            '<|vision_start|>',
            '<|vision_end|>',
            '<|image_pad|>',
            '<|video_pad|>',
        ]
    )
    words.save(f'{folder}/tokenizer.json')
    cfg = model.VLAConfig(
        vocab_size=300,
        state_dim=4,
        action_dim=4,
        horizon=2,
        image_pad_id=words.token_to_id('<|image_pad|>'),
        video_pad_id=words.token_to_id('<|video_pad|>'),
        state_pad_id=266,
        action_start_id=263,
        action_pad_id=264,
        action_pass_id=270,
        vision='qwen',
        vision_width=32,
        vision_layers=2,
        vision_heads=2,
        vision_intermediate=48,
        vision_full_blocks=(1,),
        hidden_size=48,
        n_layers=2,
        n_heads=3,
        n_kv_heads=1,
        head_dim=16,
        intermediate_size=64,
        mrope_section=(2, 3, 3),
        mlp='swiglu',
        head_layers=2,
        row_embedding=False,
        tie_embeddings=True,
    )
    model.VLA(cfg).save_pretrained(str(folder))
    tensors = load_file(folder / 'model.safetensors')
    save_file(
        {k: v for k, v in tensors.items() if not k.startswith(pretrained.HEAD)},
        folder / 'model.safetensors',
    )
    hf = json.loads((folder / 'config.json').read_text())
    for key in ('action_chunk_size', 'state_token_id', 'action_token_id', 'action_pass_id'):
        del hf[key]  # as Qwen2.5-VL's own
    (folder / 'config.json').write_text(json.dumps(hf))
    (folder / 'preprocessor_config.json').write_text(
        json.dumps(
            dict(
                min_pixels=3136, max_pixels=6272, patch_size=14, merge_size=2, temporal_patch_size=2
            )
        )
    )
    return folder


def test_a_published_folder_answers_about_a_picture_and_says_what_it_cannot_do(published):
    ask = ('sample.py', f'--ckpt={published}', '--picture=docs/place.png', '--max_words=4')
    greedy = run(*ask, '--ask=What is there?')
    drawn = run(*ask, '--ask=What is there?', '--temperature=5', '--seed=3')
    assert greedy.count('\n') < 30 and greedy != drawn
    assert '--ask' in run(*ask, fails=True).splitlines()[-1]


def test_training_starts_from_a_published_folder_as_eo1_does(published, tmp_path):
    """Qwen's words and eyes, a new head, EO-1's prompt and 32 dims; the result is a checkpoint like
    any."""
    small = dict(
        batch_size=4,
        image_size=28,
        max_steps=2,
        val_fraction=0.2,
        synthetic=10,
        horizon=4,
    )
    config = tmp_path / 'small.py'
    config.write_text(
        open('config/eo1_3b.py').read() + ''.join(f'{k} = {v!r}\n' for k, v in small.items())
    )
    run(
        'train.py',
        config,
        f'--init_from={published}',
        f'--out_dir={tmp_path}/run',
        f'--episodes={tmp_path}/episodes',
        '--state_slots=command/right/*,',
        '--dtype=float32',
    )
    meta = json.loads((tmp_path / 'run' / 'meta.json').read_text())
    assert meta['model']['state_dim'] == meta['model']['action_dim'] == 32
    assert meta['model']['action_start_id'] == 263 and meta['model']['vocab_size'] == 300
    before, after = (
        load_file(published / 'model.safetensors'),
        load_file(tmp_path / 'run/model.safetensors'),
    )
    change = (after['embed_tokens.weight'] - before['model.embed_tokens.weight']).abs().max()
    assert 0 < change < 1e-2
    text = run('sample.py', f'--ckpt={tmp_path}/run', '--ask=what now ?', '--max_words=3')
    assert 'answered' in text and 'right/tool_x' in text


def test_an_exported_chunk_is_torchs(trained, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package, reason='pip install onnx onnxscript onnxruntime')
    from vla import export, policy

    checkpoint, _ = trained
    path = tmp_path / 'chunk.onnx'
    said = run('sample.py', f'--ckpt={checkpoint}', f'--export={path}', '--steps=2')
    assert float(said.split('within ')[1].split()[0]) < 1e-4
    predictor = policy.load_predictor(checkpoint, steps=2, device='cpu')
    predict = export.load_chunk(path)
    for seed, words in ((1, 'put the red brick on it'), (2, 'join the blue one and the red one')):
        obs = export.made_up(predictor.processor, seed) | {'instruction': words}
        (ours,), _ = predictor.predict([obs], [None], [()])
        np.testing.assert_allclose(predict(obs), ours, atol=1e-5)
    with pytest.raises(ValueError, match='tokens, the exported chunk 64'):
        predict(obs | {'instruction': 'brick ' * 100})


def test_an_export_without_its_packages_says_what_to_install(trained, tmp_path):
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        checkpoint, _ = trained
        said = run('sample.py', f'--ckpt={checkpoint}', f'--export={tmp_path}/x.onnx', fails=True)
        assert said.splitlines()[-1].endswith('pip install onnx onnxscript onnxruntime')
