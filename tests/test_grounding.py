"""Whether geometry puts what is seen and what is said together as the world has it.

python -m pytest tests/test_grounding.py
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from episode import COLOURS, GRIPPER, STATE_NAMES, state_vector
from sim import expert, labels
from sim.world import World
from vla import grounding
from vla.processor import hand_columns, tool_frames

FRAMES = (0, 1, 2)  # overhead, left wrist, right wrist
HANDS = hand_columns(STATE_NAMES)


def random_poses(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, 4, generator=g) - 0.5) * torch.tensor([0.4, 0.4, 0.2, 1.5])


def grounding_of(referents, n):
    """A head whose table of places are those of the referents."""
    return grounding.Grounding(n, referents[:, 4:].tolist(), 8, 2)


def certain(head, referents):
    """The answer (B, R) of a network that is sure of these referents."""
    classes = head.classes(referents).unbind(-1)
    return torch.cat([9.0 * F.one_hot(x, k) for x, k in zip(classes, head.sizes)], -1)


def test_frames_go_there_and_back():
    poses, frame = random_poses(5, 3), random_poses(5, 1, seed=1)
    there = grounding.in_frame(poses, frame)
    assert torch.allclose(grounding.out_of_frame(there, frame), poses, atol=1e-6)
    assert torch.allclose(
        there[..., :3].norm(dim=-1), (poses - frame)[..., :3].norm(dim=-1), atol=1e-6
    )
    one = grounding.in_frame(
        torch.tensor([[0.1, 0.2, 0.3, 0.0]]), torch.tensor([[0.1, 0.0, 0.0, np.pi / 2]])
    )
    assert torch.allclose(one, torch.tensor([[0.2, 0.0, 0.3, -np.pi / 2]]), atol=1e-6)
    half = grounding.in_frame(
        torch.tensor([[0.0, 0, 0, 3.0]]), torch.zeros(1, 4)
    )  # yaw is modulo pi
    assert half[0, 3].item() == pytest.approx(3.0 - np.pi, abs=1e-6)


def test_the_nearest_camera_is_believed():
    head, tool = grounding.SceneHead(FRAMES, 2, 8), random_poses(1, 2)
    seen = torch.randn(1, 3, 2, 5)
    seen[..., 4] = -1.0
    seen[:, 1, 0, 4] = 1.0  # the left hand sees brick 0, nobody but the overhead camera brick 1
    poses = head.poses(seen, tool)
    overhead = seen[:, 0, :, :4] * torch.tensor(grounding.UNITS[0])
    by_left = grounding.out_of_frame(
        seen[:, 1, :, :4] * torch.tensor(grounding.UNITS[1]), tool[:, :1]
    )
    for hand in (0, 1):
        assert torch.allclose(poses[0, hand, 0], by_left[0, 0])
        assert torch.allclose(poses[0, hand, 1], overhead[0, 1])
    seen[:, 2, 0, 4] = 1.0  # now the right hand sees brick 0 as well, and believes itself
    both = head.poses(seen, tool)
    assert torch.allclose(both[0, 0, 0], by_left[0, 0])
    assert not torch.allclose(both[0, 1, 0], by_left[0, 0])


@pytest.mark.parametrize(
    'task, seed',
    [
        ('place', 3),
        ('place', 4),
        ('join', 3),
        ('stack', 3),
        ('stack', 5),
        ('handover', 3),
        ('separate', 3),
        ('unplug', 3),
        ('mixed', 3),
        ('mixed', 4),
    ],
)
def test_true_poses_and_referents_give_the_way_that_is_left(task, seed):
    """All along an episode of the expert; for every goal that could have been asked for."""
    world, policy = World(task, cameras=()), expert.Expert()
    obs, info = world.reset(seed)
    n = len(COLOURS)
    scene_head = grounding.SceneHead(FRAMES, n, 8)
    truth = world.truth()
    referents = torch.from_numpy(labels.referents(truth, labels.goals_at_work(truth)))
    head = grounding_of(referents, n)
    assert referents.shape == (len(world.askable), 8)
    for _ in range(60):
        scene = torch.from_numpy(labels.scene(world.truth()))
        near = (scene[..., :2].abs() < grounding.RANGE_M).all(-1)
        seen = torch.cat([scene / scene_head.units, 2.0 * near[..., None] - 1], -1)[None]
        tool = torch.from_numpy(tool_frames(state_vector(obs)[None], HANDS))
        n_goals = len(referents)
        poses = scene_head.poses(seen, tool).expand(n_goals, -1, -1, -1)
        chosen = head.choose(certain(head, referents))
        told = head.geometry(chosen, poses, tool.expand(n_goals, -1, -1))
        for (goal, _), row in zip(world.askable, told):
            hand = ('left', 'right').index(goal.hand)
            error, yaw = world.truth().goal_error(goal)
            way, turn = row[8:11].numpy(), row[11].item()
            # hands and held bricks tilt a little, which poses of four numbers leave out
            distance = np.linalg.norm(error)
            assert np.linalg.norm(way) == pytest.approx(distance, abs=0.004 + 0.03 * distance)
            assert abs(np.sin(turn + yaw)) < 0.06, (
                turn,
                yaw,
            )  # goal_error: from the place to the brick
            assert row[12:].tolist() == [hand == 0, hand == 1]
            if world.truth().tool_pose(goal.hand)[1][2, 2] < 0.999 and goal != world.plan:
                continue  # a hand that leans by 3 degrees or more sees what is far off askew
            fetch = labels.scene(world.truth())[1 + hand, COLOURS.index(goal.upper)][:3]
            seen_by_hand = row[4 * hand : 4 * hand + 3].numpy()
            assert np.allclose(seen_by_hand, fetch, atol=0.004 + 0.03 * abs(fetch).max())
        obs, _, terminated, truncated, info = world.step(policy.act(world.truth())[0])
        if terminated or truncated:
            break
    assert info['phase'] >= 4  # most of the way was made


@pytest.mark.parametrize('task, hand', [('place', 'left'), ('place', 'right')])
def test_the_scene_three_steps_on_is_foreseen_from_where_the_hands_go(task, hand):
    """All along an episode of the expert, with the way that the hands really went."""
    world, policy = World(task, cameras=()), expert.Expert()
    seed = 0
    obs, _ = world.reset(seed)
    while world.plan.hand != hand:
        seed += 1
        obs, _ = world.reset(seed)
    head = grounding.SceneHead(FRAMES, len(COLOURS), 8)
    scenes, hands, shut = [], [], []
    ended = False
    while not ended:
        scenes.append(labels.scene(world.truth()))
        hands.append(tool_frames(state_vector(obs)[None], HANDS)[0])
        shut.append(obs['tool_command'][GRIPPER] < 0)
        obs, _, terminated, truncated, info = world.step(policy.act(world.truth())[0])
        ended = terminated or truncated
    assert info['success']
    scene = torch.from_numpy(np.stack(scenes))
    there = scene.isfinite().all(-1, keepdim=True)
    near = (scene[..., :2].abs() < grounding.RANGE_M).all(-1, keepdim=True)
    near[:, 0] = True
    scene = scene.nan_to_num()
    seen = torch.cat([scene / head.units, 2.0 * (near & there) - 1], -1)
    ahead = 3
    n = len(scenes) - ahead
    path = torch.from_numpy(np.stack([hands[t : t + n] for t in range(ahead + 1)], 1))
    closed = torch.from_numpy(np.stack([shut[t : t + n] for t in range(ahead + 1)], 1))
    then = head.foresee(seen[:n], path, closed)
    loose = there[0, 0, :, 0]
    errors = []
    for predicted in (then, seen[:n]):
        poses = head.poses(predicted, path[:, -1])[:, :, loose]
        true = head.poses(seen[ahead:], path[:, -1])[:, :, loose]
        errors.append((poses - true)[..., :3].norm(dim=-1).numpy())
    foreseen, stale = errors
    assert np.quantile(foreseen, 0.9) < 0.003 and foreseen.mean() < 0.0015, foreseen.mean()
    assert stale.mean() > 4 * foreseen.mean()


def test_loss_is_small_for_the_right_referents_only():
    referents = torch.tensor(
        [[0.0, 0, 2, 1, 0.36, -0.05, 0.02, 0.0], [1.0, 0, 0, 1, 0.0, 0.1, 0.02, 0.3]]
    )
    head = grounding_of(referents, 2)
    right = certain(head, referents)
    best = head.loss(right, referents)
    assert best < 0.01
    for column, wrong in ((0, 1), (2, 1), (3, 0), (slice(4, 8), referents[1, 4:])):
        other = referents.clone()
        other[0, column] = wrong
        assert head.loss(right, other) > best + 0.05, column
    unknown = torch.full_like(referents, -1)  # questions: nothing to learn, and no nan
    assert head.loss(right, unknown) == 0
    half = torch.stack([referents[0], unknown[0]])
    worse = right + torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    assert torch.isclose(head.loss(worse, half), head.loss(worse[:1], referents[:1]) / 2)
    # two ranks with half of the samples each: the mean of theirs is that of all
    ranks = [head.loss(worse[i : i + 1], half[i : i + 1]) for i in (0, 1)]
    assert torch.isclose(head.loss(worse, half), sum(ranks) / 2)


def test_places_are_classes_of_the_table():
    referents = torch.tensor(
        [[0.0, 0, 2, 1, 0.36, -0.05, 0.02, 1.5708], [1, 0, 0, 1, 0, 0.1, 0, 0]]
    )
    head = grounding_of(referents, 2)
    near = referents + torch.tensor([0, 0, 0, 0, 0.0005, 0, 0, 0.01])
    assert head.classes(near)[:, 4].tolist() == [0, 1]
    turned = referents - torch.tensor([0, 0, 0, 0, 0, 0, 0, math.pi])
    assert head.classes(turned)[:, 4].tolist() == [0, 1]  # A brick turned by pi looks the same.
    far = referents + torch.tensor([0, 0, 0, 0, 0.004, 0, 0, 0])
    assert head.classes(far).tolist() == [[0, 0, 2, 1, -1], [1, 0, 0, 1, -1]]
    assert head.classes(torch.full_like(referents, -1)).eq(-1).all()


def test_what_is_known_of_a_place_goes_along_to_another_table():
    torch.manual_seed(0)
    first, second, third = random_poses(3).tolist()
    old = grounding.Grounding(2, [first, second], 8, 2)
    new = grounding.Grounding(2, [third, second], 8, 2)
    fresh = new.words[-1].weight[-2].clone()
    new.load_state_dict(new.inherited(old))
    words = torch.randn(4, 8)
    *others, place = old(words).split(old.sizes, -1)
    *same, moved = new(words).split(new.sizes, -1)
    assert all(map(torch.equal, others, same))
    assert torch.equal(moved[:, 1], place[:, 1])
    assert torch.equal(new.words[-1].weight[-2], fresh)  # Nothing was known of it.


def test_a_brick_that_is_not_there_is_seen_by_nobody():
    head, scene = grounding.SceneHead(FRAMES, 2, 8), random_poses(4, 3, 2)
    seen = torch.zeros(4, 3, 2, 5, requires_grad=True)
    scene[:, :, 1] = torch.nan
    loss = head.loss(seen, scene)
    loss.backward()
    assert loss.isfinite() and seen.grad[:, :, 0, :4].abs().sum() > 0
    assert not seen.grad[:, :, 1, :4].any() and (seen.grad[:, :, 1, 4] > 0).all()  # has to fall


def test_colours_that_no_brick_of_the_scene_has_do_not_weaken_those_that_are_there():
    seen, scene = torch.randn(4, 3, 7, 5), random_poses(4, 3, 7)
    scene[:, :, 2:] = torch.nan
    seen[:, :, 2:, 4] = -50  # It is known that they are not there.
    few = grounding.SceneHead(FRAMES, 2, 8).loss(seen[:, :, :2], scene[:, :, :2])
    assert torch.allclose(grounding.SceneHead(FRAMES, 7, 8).loss(seen, scene), few)
