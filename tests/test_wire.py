"""A policy answers over openpi's websocket protocol, and nothing sent to it brings it down."""

import asyncio
import contextlib
import copy
import queue
import threading
import urllib.request

import launch
import numpy as np
import pytest

import wire
from episode import STATE_NAMES, TOOL_ACTION_NAMES

msgpack = pytest.importorskip('msgpack', reason=wire.PIP)
websockets = pytest.importorskip('websockets.sync.client', reason=wire.PIP)
CAMERAS = ('overhead', 'left/wrist', 'right/wrist')


@contextlib.contextmanager
def serving(infer, metadata=()):
    """A server in a thread; gives its address."""
    ports = queue.Queue()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def answer():
        async with wire.listen(infer, dict(metadata), '127.0.0.1', 0) as port:
            ports.put(port)
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(answer()))
    thread.start()
    try:
        yield f'ws://127.0.0.1:{ports.get(timeout=20)}'
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(timeout=20)
    assert not thread.is_alive()


def a_request(size=96, seed=0):
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (len(CAMERAS), size, size, 3), dtype=np.uint8)
    return dict(
        state=rng.normal(0, 0.1, len(STATE_NAMES)).astype(np.float32),
        images=dict(zip(CAMERAS, pictures)),
        prompt='put the red brick on the left end of the white one',
        tool_command=rng.normal(0, 0.1, len(TOOL_ACTION_NAMES)).astype(np.float32),
    )


@pytest.fixture(scope='module')
def answers(checkpoint):
    from vla.policy import answers

    return answers(checkpoint, device='cpu')


# -----------------------------------------------------------------------------
# frames


def test_a_frame_brings_back_what_was_packed():
    sent = dict(
        a=np.arange(6, dtype=np.int16).reshape(2, 3),
        b=np.zeros((0, 4), '>f8'),
        c=[1, 2.5, None, 'text', {'d': True}],
        e=np.float32(0.5),
        f=np.array(7),
    )
    got = wire.unpack(wire.pack(sent))
    for name in ('a', 'b', 'f'):
        np.testing.assert_array_equal(got[name], sent[name])
        assert got[name].dtype == sent[name].dtype
    assert got['c'] == sent['c']
    assert got['e'] == 0.5


def test_frames_are_those_of_openpi():
    theirs = pytest.importorskip(
        'openpi_client.msgpack_numpy', reason='pip install openpi-client==0.1.2'
    )
    sent = dict(a_request(), scalar=np.float64(2))
    assert wire.pack(sent) == theirs.packb(sent)
    np.testing.assert_array_equal(
        theirs.unpackb(wire.pack(sent))['images']['overhead'], sent['images']['overhead']
    )


def an_array(**changed):
    return {b'__ndarray__': True, b'data': bytes(8), b'dtype': '<f4', b'shape': [2]} | changed


@pytest.mark.parametrize(
    'array, fault',
    [
        (an_array(), None),
        ({**an_array(), b'dtype': '|O'}, 'dtype'),
        ({**an_array(), b'dtype': '(9999999,)<f4'}, 'dtype'),
        ({**an_array(), b'dtype': 7}, 'dtype'),
        ({**an_array(), b'shape': [3]}, 'in 8 bytes'),
        ({**an_array(), b'shape': [-1, -2]}, 'shape'),
        ({**an_array(), b'shape': [True, 2]}, 'shape'),
        ({**an_array(), b'shape': [2**62, 2**62]}, 'in 8 bytes'),
        ({**an_array(), b'data': 'text'}, 'without bytes'),
        ({b'__ndarray__': True}, 'dtype'),
        ({b'__npgeneric__': True, b'data': [1]}, 'number'),
    ],
)
def test_an_array_that_is_none_is_refused(array, fault):
    frame = msgpack.packb({'a': array})
    if fault is None:
        np.testing.assert_array_equal(wire.unpack(frame)['a'], [0, 0])
        return
    with pytest.raises(ValueError, match=fault):
        wire.unpack(frame)


def test_what_no_frame_can_hold_is_not_packed():
    for value in (np.array([object()]), np.array([1j]), object()):
        with pytest.raises(ValueError, match='cannot be sent'):
            wire.pack({'a': value})


# -----------------------------------------------------------------------------
# the server


def test_a_refused_request_is_answered_with_text_and_the_next_one_as_ever(answers):
    infer, metadata = answers
    good = a_request()
    bad = [
        ('is no msgpack', b'\xc1'),
        ('is no msgpack', wire.pack(good)[:-1]),
        ('holds list, expected a map', msgpack.packb([1])),
        ("no 'images'", wire.pack({'state': good['state']})),
        ('state: shape (3,)', wire.pack(dict(good, state=np.zeros(3)))),
        ('not all numbers are finite', wire.pack(dict(good, state=good['state'] * np.nan))),
        (
            'not all numbers are finite',
            wire.pack(dict(good, state=good['state'].astype(float) + 1e300)),
        ),
        ('state: str', wire.pack(dict(good, state='home'))),
        ('prompt: expected text', wire.pack(dict(good, prompt=7))),
        ('at most 1000 characters', wire.pack(dict(good, prompt='x' * 2000))),
        ('forge a special token', wire.pack(dict(good, prompt='<|vla|>'))),
        ('tool_command: shape (2,)', wire.pack(dict(good, tool_command=np.zeros(2)))),
        ("no 'overhead'", wire.pack(dict(good, images={}))),
        ('images: list', wire.pack(dict(good, images=[]))),
        ('action_prefix: shape (15,)', wire.pack(dict(good, action_prefix=np.zeros(15)))),
        ('101 rows', wire.pack(dict(good, action_prefix=np.zeros((101, 15))))),
    ]
    for picture in (np.zeros((4, 4), np.uint8), np.zeros((3, 0, 4), np.uint8), np.zeros((4, 4, 3))):
        images = dict(good['images'], overhead=picture)
        bad.append(('images/overhead', wire.pack(dict(good, images=images))))
    with serving(infer, metadata) as address, websockets.connect(address) as raw:
        raw.recv()
        raw.send('a text')
        assert 'expected a binary one' in raw.recv()
        for said, frame in bad:
            raw.send(frame)
            answer = raw.recv()
            assert isinstance(answer, str) and said in answer, (said, answer)
            assert '\n' not in answer
            raw.send(wire.pack(good))
            reply = wire.unpack(raw.recv())
            assert reply['actions'].shape == (metadata['horizon'], 15)
            assert reply['server_timing']['infer_ms'] > 0


def test_a_request_beyond_the_limit_is_refused_in_words_and_the_next_one_is_answered(answers):
    with serving(*answers) as address, wire.Client(address) as client:
        for size in (wire.MAX_BYTES, wire.READ_BYTES - 200_000):
            with pytest.raises(ValueError, match=r'of [123]\d\.\d MB, expected at most 16\.8 MB'):
                client.infer(dict(a_request(), more=np.zeros(size, np.uint8)))
            assert client.infer(a_request())['actions'].shape[1] == 15


def test_a_frame_that_is_not_even_read_closes_its_connection_alone(answers):
    with serving(*answers) as address, wire.Client(address) as other:
        with wire.Client(address) as client:
            with pytest.raises(ConnectionError, match='1009.*exceeds limit of'):
                client.infer(dict(a_request(), more=np.zeros(wire.READ_BYTES, np.uint8)))
        assert other.infer(a_request())['actions'].shape[1] == 15


def test_more_clients_than_it_takes_are_sent_away(monkeypatch):
    monkeypatch.setattr(wire, 'MAX_CLIENTS', 1)
    with serving(lambda request: dict(actions=np.zeros((1, 1)))) as address:
        with wire.Client(address) as first:
            with pytest.raises(ConnectionError, match='1 clients already'):
                wire.Client(address)
            first.infer({})


def test_health_is_told_without_a_websocket(answers):
    with serving(*answers) as address:
        with urllib.request.urlopen(address.replace('ws', 'http', 1) + '/healthz') as reply:
            assert reply.read() == b'OK\n'


def fuzzed(n, rng):
    """Frames that are nearly requests: random bytes, mutations, and maps of odd things."""
    good = a_request(size=8)
    frame = wire.pack(good)
    odd = [None, True, -1, 2**63, 1e308, float('nan'), 'x', b'x', [], {}, [[1], 'a'], {'a': {}}]
    odd += [np.zeros(shape, kind) for shape in ((), (0,), (3,), (2, 15)) for kind in ('<f8', '|u1')]
    for i in range(n):
        kind = i % 4
        if kind == 0:
            yield rng.bytes(rng.integers(0, 200))
        elif kind == 1:
            mutated = bytearray(frame)
            for at in rng.integers(0, len(frame), rng.integers(1, 20)):
                mutated[at] = rng.integers(256)
            yield bytes(mutated)
        elif kind == 2:
            yield frame[: rng.integers(len(frame))] + rng.bytes(rng.integers(0, 9))
        else:
            request = copy.copy(good)
            request[str(rng.choice(list(good)))] = odd[rng.integers(len(odd))]
            if rng.random() < 0.5:
                at = CAMERAS[rng.integers(3)]
                request['images'] = good['images'] | {at: odd[rng.integers(len(odd))]}
            yield wire.pack(request)


def resident_mb():
    with open('/proc/self/statm') as f:
        return int(f.read().split()[1]) * 4096 / 1e6


def test_ten_thousand_fuzzed_frames_neither_stop_the_server_nor_make_it_grow(answers):
    infer, metadata = answers
    n_answered = 0

    def quick(request):  # all of an answer but the network
        nonlocal n_answered
        from vla.policy import read_request

        read_request(request, processor_of(infer))
        n_answered += 1
        return dict(actions=np.zeros((1, 15), np.float32))

    rng = np.random.default_rng(0)
    with serving(quick, metadata) as address, websockets.connect(address) as raw:
        raw.recv()
        for i, frame in enumerate(fuzzed(10_000, rng)):
            raw.send(frame)
            raw.recv()
            if i == 2000:
                before = resident_mb()
        assert 100 < n_answered < 5000  # some mutations are requests still
        assert resident_mb() - before < 20
    with serving(infer, metadata) as address, wire.Client(address) as client:
        client.infer(a_request())


def processor_of(infer):
    """What an `infer` of vla.policy.answers checks requests with."""
    cells = dict(zip(infer.__code__.co_freevars, infer.__closure__))
    return cells['predictor'].cell_contents.processor


# -----------------------------------------------------------------------------
# the client


def test_a_server_that_is_not_there_is_said_in_one_line():
    said = launch.run('sim_rollout.py', '--policy=ws://127.0.0.1:9', '--episodes=1', fails=True)
    assert 'no policy server answers there' in said.splitlines()[-1]
    assert 'Traceback' not in said


@pytest.mark.parametrize(
    'reply', [{}, {'actions': np.zeros(3)}, {'actions': np.full((2, 2), np.nan)}]
)
def test_an_answer_without_a_chunk_is_refused(reply):
    with serving(lambda request: reply) as address, wire.Client(address) as client:
        with pytest.raises(ValueError, match='without a chunk'):
            client.infer({})


@pytest.mark.mujoco
@pytest.mark.parametrize('execute, delay', [(1, 0), (2, 1), (3, 0)])
def test_over_the_wire_a_checkpoint_acts_as_it_does_here(checkpoint, answers, execute, delay):
    from sim import policies
    from sim.world import World
    from vla import policy

    infer, metadata = answers
    size = metadata['image_size']
    world = World('place', cameras=metadata['cameras'], image_size=size)
    here = policy.checkpoint(
        checkpoint, world.metadata(), execute=execute, delay=delay, device='cpu'
    )(0)
    with serving(infer, metadata) as address:
        there = policies.remote(address, world.metadata(), execute, delay)(0)
        obs, _ = world.reset(0)
        for _ in range(5):
            ours = here(obs)
            theirs = there(obs)
            np.testing.assert_array_equal(ours['executed'], theirs['executed'])
            assert ('chunk_ms' in ours) == ('chunk_ms' in theirs)
            obs, *_ = world.step(ours['executed'])
    world.close()


def said_until_it_answers(server):
    """Lines that `sim_rollout.py --serve` says up to the one that names its address."""
    lines = []
    for line in iter(server.stdout.readline, ''):
        lines.append(line.strip())
        if line.startswith('next: '):
            return lines
    raise AssertionError(f'it ended: {lines}')


def end(server):
    server.send_signal(launch.signal.SIGTERM)
    server.communicate()
    assert server.returncode == 0


@pytest.mark.mujoco
def test_a_checkpoint_is_served_and_drives_from_the_command_line(checkpoint, tmp_path):
    server = launch.Script('sim_rollout.py', '--serve', f'--ckpt={checkpoint}', '--port=0')
    lines = said_until_it_answers(server)
    assert not any('no password' in line for line in lines)
    address = lines[-1].partition('--policy=')[2]
    said = launch.run(
        'sim_rollout.py',
        f'--policy={address}',
        '--episodes=1',
        '--workers=1',
        '--task=place',
        '--execute=2',
        f'--out={tmp_path}',
    )
    assert 'place 0/1' in said and 'chunk latency' in said
    end(server)


@pytest.mark.mujoco
def test_a_server_that_tells_nothing_about_itself_drives_in_the_world_that_is_asked_for(tmp_path):
    """openpi's servers send the metadata of a policy, and many policies have none."""
    prompts = []

    def hold(request):
        prompts.append(request['prompt'])
        assert request['images']['overhead'].shape == (96, 96, 3)
        return {'actions': np.tile(request['tool_command'], (4, 1))}

    words = ('--episodes=1', '--workers=1', '--task=stack', '--execute=3', '--delay=1')
    with serving(hold) as address:
        said = launch.run('sim_rollout.py', f'--policy={address}', *words, f'--out={tmp_path}')
    assert 'stack 0/1' in said and 'chunk latency' in said
    assert len(prompts) == 50  # of 150 steps
    assert len(set(prompts)) == 1 and prompts[0]


@pytest.mark.mujoco
def test_a_server_that_expects_another_world_is_named():
    from sim import policies
    from sim.world import World

    world = World('place', cameras=()).metadata()
    for told, fault in (
        ({'control_hz': 50}, 'control_hz'),
        ({'action_names': ['a']}, 'action_names'),
        ({'cameras': ['head']}, 'needs head, the world has none'),
    ):
        with serving(lambda request: {}, told) as address:
            with pytest.raises(ValueError, match=fault):
                policies.remote(address, world)


def test_only_a_checkpoint_is_served():
    said = launch.run('sim_rollout.py', '--serve', fails=True)
    assert (
        said.splitlines()[-1] == 'serve: policy is expert, expected a checkpoint: --ckpt=out/demo'
    )


def test_only_this_machine_reaches_a_loopback():
    for host in ('127.0.0.1', '::1', 'localhost'):
        assert wire.is_loopback(host)
    assert not wire.is_loopback('0.0.0.0') and not wire.is_loopback('robot.example')


@pytest.mark.mujoco
def test_beyond_this_machine_a_line_warns(checkpoint):
    words = ('--serve', f'--ckpt={checkpoint}', '--port=0', '--host=0.0.0.0')
    server = launch.Script('sim_rollout.py', *words)
    lines = said_until_it_answers(server)
    end(server)
    warnings = [line for line in lines if 'no password' in line]
    assert warnings == ['host=0.0.0.0: whoever reaches this machine may ask, there is no password']


def test_openpi_client_drives_a_checkpoint(answers):
    theirs = pytest.importorskip(
        'openpi_client.websocket_client_policy', reason='pip install openpi-client==0.1.2'
    )
    from websockets.exceptions import ConnectionClosed as closed

    infer, metadata = answers
    with serving(infer, metadata) as address:
        client = theirs.WebsocketClientPolicy(address, api_key='any')
        assert client.get_server_metadata()['cameras'] == metadata['cameras']
        request = a_request()
        reply = client.infer(request)
        np.testing.assert_array_equal(reply['actions'], infer(request)['actions'])
        first = {name: p.transpose(2, 0, 1) for name, p in request['images'].items()}
        colours_first = client.infer(dict(request, images=first))
        np.testing.assert_array_equal(reply['actions'], colours_first['actions'])
        with pytest.raises(RuntimeError, match="no 'images'"):
            client.infer({'state': request['state']})
        with pytest.raises(RuntimeError, match='expected at most 16.8 MB'):
            client.infer(dict(request, more=np.zeros(wire.MAX_BYTES, np.uint8)))
        assert client.infer(request)['actions'].shape == reply['actions'].shape
        with pytest.raises(closed, match=r'received 1009 .* frame with \d+ bytes exceeds limit of'):
            client.infer(dict(request, more=np.zeros(wire.READ_BYTES, np.uint8)))
