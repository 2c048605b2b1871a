"""What the cameras see of the bricks, what the words refer to, and both put together in the hands'
frames.

    SceneHead    the tokens of each camera -> pose of every brick, in the frame of what carries the
                 camera
    Grounding    hidden states of the words -> which bricks, which hand, which place (`referents`);
                 then by
                 plain geometry, nothing learnt, what to fetch and the way to its place in the
                 hands' frames
Poses are (x, y, z, yaw), m and rad. Frames: 0 torso, 1 left tool, 2 right tool. A brick's yaw is
the one its frame has to turn by for a hand to grasp it (across its long side), modulo pi.
"""

# B batch, N cameras, n bricks, D width
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from vla import layers

UNITS = (
    (0.03, 0.03, 0.03, 0.1),
    (0.01, 0.01, 0.01, 0.1),
)  # of what a fixed and a carried camera tell
RANGE_M = 0.06  # a carried camera is asked about bricks that are no further off to the side
COMPAND_M = 0.004  # millimetres matter when close, decimetres do not when far


def rotate_z(v, yaw):
    """Vectors (..., 3) turned about z by yaw (...)."""
    (x, y, z), c, s = v.unbind(-1), yaw.cos(), yaw.sin()
    return torch.stack([c * x - s * y, s * x + c * y, z], -1)


def half_turn(yaw):
    """Brought into [-pi/2, pi/2): a brick that is turned by pi looks the same."""
    return torch.remainder(yaw + math.pi / 2, math.pi) - math.pi / 2


def in_frame(poses, frame):
    """Poses (..., 4) in the axes that `frame` (..., 4) is in -> in that frame."""
    yaw = frame[..., 3]
    turned = half_turn(poses[..., 3:] - frame[..., 3:])
    return torch.cat([rotate_z(poses[..., :3] - frame[..., :3], -yaw), turned], -1)


def out_of_frame(poses, frame):
    """The inverse of in_frame."""
    yaw = frame[..., 3]
    turned = poses[..., 3] + yaw
    return torch.cat([rotate_z(poses[..., :3], yaw) + frame[..., :3], turned[..., None]], -1)


class SceneHead(nn.Module):
    """What each picture alone tells of each brick: pose (4) in the frame of what carries the
    camera, and the logit that it is in range. Trained by itself on the tokens of that camera, it is
    precise where the same question asked through the decoder is not: there the answer can be
    guessed from what the arms do.
    """

    def __init__(self, frames, n_bricks, features, middle=256):
        super().__init__()
        self.frames = frames
        self.n_bricks = n_bricks
        units = torch.tensor([UNITS[frame > 0] for frame in frames], device='cpu')  # (N, 4)
        self.register_buffer('units', units[:, None], persistent=False)
        self.mlp = nn.ModuleDict(
            {
                str(int(kind)): nn.Sequential(
                    nn.Linear(features, middle), nn.ReLU(), nn.Linear(middle, 5 * n_bricks)
                )
                for kind in sorted({frame > 0 for frame in frames})
            }
        )  # hands share what they learn to see

    def forward(self, tokens):
        """(B, N, features) -> (B, N, n, 5), float32: poses in UNITS, logits"""
        tokens = tokens.to(next(self.parameters()).dtype)  # of a pretrained tower: bfloat16
        seen = [
            self.mlp[str(int(frame > 0))](tokens[:, i]).float()
            for i, frame in enumerate(self.frames)
        ]
        return torch.stack(seen, 1).unflatten(-1, (self.n_bricks, 5))

    def loss(self, seen, scene):
        """scene (B, N, n, 4) m, rad, nan for a brick that is not there; counts where in range."""
        carried = torch.tensor(self.frames, device=scene.device)[:, None] > 0
        there = scene.isfinite().all(-1)
        scene = scene.nan_to_num()
        near = ((scene[..., :2].abs() < RANGE_M).all(-1) | ~carried) & there  # (B, N, n)
        error = F.smooth_l1_loss(
            seen[..., :4], scene / self.units, reduction='none', beta=0.1
        ).mean(-1)
        in_range = F.binary_cross_entropy_with_logits(seen[..., 4], near.float())
        return (error * near).mean() + 0.3 * in_range

    @staticmethod
    def features(seen):
        """What the state token gets, (B, N * n * 5), without a gradient: sines make noise of it."""
        seen = seen.detach()
        near = (seen[..., 4:] > 0).float()
        return torch.cat([seen[..., :4] * near, near], -1).flatten(1)

    def poses(self, seen, tool):
        """Every brick in the torso frame as each hand should believe it is: (B, 2, n, 4). The
        hand's own camera knows best, if the brick is in range; then the other hand's, then the one
        that does not move. tool (B, 2, 4): the hands in the torso frame.
        """
        poses = seen[..., :4] * self.units
        poses = [
            out_of_frame(poses[:, i], tool[:, frame - 1, None]) if frame else poses[:, i]
            for i, frame in enumerate(self.frames)
        ]
        near = seen[..., 4:] > 0
        hands = []
        for hand in (1, 2):
            cameras = sorted(
                range(len(poses)), key=lambda i: (self.frames[i] == 0, self.frames[i] != hand)
            )
            best = poses[cameras[-1]]
            for i in reversed(cameras[:-1]):
                best = torch.where(near[:, i], poses[i], best)
            hands.append(best)
        return torch.stack(hands, 1)


class Grounding(nn.Module):
    """A decoder this narrow passes numbers on to centimetres only, and learns slowly to subtract
    them. Learnt here is what words single out; where that is follows, to the precision of what is
    seen.

    Referents (B, 8), as sim/labels.py gives them: the bricks that the left and the right hand
    have to fetch, the brick theirs goes on (n: none of them, it is fixed), the hand that presses,
    and the place: pose of the upper brick in the frame of that brick, of the torso where it is
    fixed.
    """

    def __init__(self, n_bricks, width, frequencies, middle=256):
        super().__init__()
        self.frequencies = frequencies
        self.sizes = (n_bricks, n_bricks, n_bricks + 1, 2)  # classes of the first four referents
        self.words = nn.Sequential(
            nn.Linear(width, middle), nn.GELU(), nn.Linear(middle, sum(self.sizes) + 4)
        )
        self.tell = nn.Sequential(
            nn.Linear(14 * (1 + 2 * frequencies), 2 * middle),
            nn.GELU(),
            nn.Linear(2 * middle, width),
        )

    def forward(self, words):
        """Mean hidden state of the words (B, D) -> answer (B, R), which `split` takes apart;
        float32: one number of eight bits cannot hold a place to a millimetre.
        """
        with torch.autocast(words.device.type, enabled=False):
            return self.words(words.float())

    def split(self, answer):
        """-> logits of the first four referents [(B, classes)], place (B, 4) in m and rad."""
        *logits, place = answer.split([*self.sizes, 4], -1)
        return logits, place * 10 * place.new_tensor(
            UNITS[0]
        )  # 0.3 m, 1 rad: places are of that size

    def loss(self, answer, referents):
        """Mean over the samples; a question refers to nothing (-1) and adds nothing."""
        (logits, place), known = self.split(answer), referents[:, :1] >= 0
        classes = sum(
            F.cross_entropy(x, referents[:, i].long(), ignore_index=-1, reduction='sum')
            for i, x in enumerate(logits)
        )
        error = (place - referents[:, 4:]) / place.new_tensor(UNITS[0]) * known
        return 0.6 * classes / len(answer) + 2 * F.smooth_l1_loss(
            error, torch.zeros_like(error), beta=0.1
        )

    @torch.no_grad()
    def geometry(self, answer, poses, tool):
        """-> (B, 14): the brick each hand has to fetch, as a pose in its tool frame (2 x 4), the
        way from the upper brick to its place in the frame of the hand that presses (4), which hand
        that is (2).
        """
        logits, place = self.split(answer)
        left, right, base, hand = (x.argmax(-1) for x in logits)
        rows = torch.arange(len(place), device=place.device)
        bricks = torch.stack([poses[rows, 0, left], poses[rows, 1, right]], 1)  # (B, 2, 4)
        fetch = in_frame(bricks, tool)
        # a brick's frame is a quarter turn off the one a hand grasps it in
        quarter = place.new_tensor([0, 0, 0, math.pi / 2])
        # Seen from a hand that has turned by more than a quarter a brick points the other way: near
        # end and far end would change places.
        at, yaw = poses[rows, hand].split([3, 1], -1)
        lying = torch.cat([at, half_turn(yaw)], -1)
        under = F.pad(lying + quarter, (0, 0, 0, 1))  # (B, n + 1, 4)
        place = out_of_frame(place, under[rows, base]) - quarter
        way = in_frame(place, tool[rows, hand]) - fetch[rows, hand]
        way = torch.cat([way[:, :3], half_turn(way[:, 3:])], -1)
        return torch.cat([fetch.flatten(1), way, F.one_hot(hand, 2)], -1)

    def embed(self, answer, poses, tool):
        """-> (B, D), what the rows of a chunk are given"""
        way = self.geometry(answer, poses, tool)
        way = torch.cat([torch.asinh(way[:, :12] / COMPAND_M) / 3, way[:, 12:]], -1)
        return self.tell(layers.fourier_features(way, self.frequencies))
