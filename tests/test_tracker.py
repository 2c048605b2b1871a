"""The log at trackers other than W&B, which tests/test_train.py runs offline."""

import json
import subprocess
import sys

import pytest

from vla import watch

RUN = """
import sys
from vla import watch

folder, start = sys.argv[1], int(sys.argv[2])
log = watch.Log(folder, start, 'a_project', None, {'lr': 0.1}, tracker='trackio')
for step in range(start + 1, start + 4):
    log.write({'step': step, 'loss': 1 / step})
log.close(folder)
"""
READ = """
import json
from trackio.sqlite_storage import SQLiteStorage

(run,) = SQLiteStorage.get_runs('a_project')
print(json.dumps([(row['step'], row['loss']) for row in SQLiteStorage.get_logs('a_project', run)]))
"""


def test_trackio_gets_the_lines_and_goes_on_without_an_account(tmp_path, monkeypatch):
    pytest.importorskip('trackio', reason='pip install trackio')
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
    monkeypatch.setenv('PYTHONPATH', '.')
    folder = tmp_path / 'demo'
    folder.mkdir()
    (folder / 'model.safetensors').write_bytes(b'weights')
    for start in ('0', '3'):
        subprocess.run([sys.executable, '-c', RUN, folder, start], check=True)
    lines = [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
    assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
    read = subprocess.run([sys.executable, '-c', READ], check=True, capture_output=True, text=True)
    there = json.loads(read.stdout.splitlines()[-1])
    assert there == [[line['step'], line['loss']] for line in lines]


def test_none_is_told_to_nobody_and_the_file_has_it_all_the_same(tmp_path):
    log = watch.Log(str(tmp_path), 0, 'a_project', None, {}, tracker='none')
    log.write({'step': 1})
    log.close()
    assert json.loads((tmp_path / 'log.jsonl').read_text()) == {'step': 1}
    assert log.run_id is None


def test_an_unknown_tracker_is_named(tmp_path):
    with pytest.raises(ValueError, match='wandb, trackio, none'):
        watch.Log(str(tmp_path), 0, 'a_project', None, {}, tracker='tensorboard')


def test_a_tracker_that_takes_no_run_is_one_line_that_says_what_to_do(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb')

    def refuse(**told):
        raise wandb.errors.UsageError('No API key configured.\nUse `wandb login`.')

    monkeypatch.setattr(wandb, 'init', refuse)
    with pytest.raises(ValueError, match='^wandb_project=lab: .*No API key.*WANDB_MODE=offline'):
        watch.Log(str(tmp_path), 0, 'lab', None, {})
