"""What the cameras see of the bricks, what the words refer to, and both in the hands' frames.

    SceneHead    tokens of each camera -> the pose of every brick, in the frame of what carries the
                 camera
    Grounding    hidden states of the words -> which bricks, which hand, which place (`referents`);
                 then by plain geometry, nothing learnt, what to fetch and the way to its place in
                 the hands' frames
Poses are (x, y, z, yaw), m and rad. Frames: 0 torso, 1 left tool, 2 right tool. A brick's yaw is
the one its frame has to turn by for a hand to grasp it (across its long side), modulo pi.
"""

# B batch, N cameras, n bricks, R numbers of the predicted referents, D width
import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vla import layers

# (x, y, z, yaw) in m and rad: the size of what a fixed and a carried camera tell
UNITS = ((0.03, 0.03, 0.03, 0.1), (0.01, 0.01, 0.01, 0.1))
RANGE_M = 0.06  # a carried camera is asked about bricks that are no further off to the side
LOG_SCALE_M = 0.004  # millimetres matter when close, decimetres do not when far
# A brick is between the fingers of a hand when it is no further off in the hand's frame. Along the
# pads (x) a long brick may be held at its end; the fingers close along y.
GRIP_M = (RANGE_M, 0.014, 0.02)
# Two places are the same one where they differ by no more: a grid of studs is far wider.
SAME_PLACE_M = 0.001
SAME_PLACE_RAD = 0.02


def rotate_z(v: Tensor, yaw: Tensor) -> Tensor:
    """Vectors (..., 3) turned about z by yaw (...)."""
    x, y, z = v.unbind(-1)
    c = yaw.cos()
    s = yaw.sin()
    turned_x = c * x - s * y
    turned_y = s * x + c * y
    return torch.stack([turned_x, turned_y, z], -1)


def half_turn(yaw: Tensor) -> Tensor:
    """Bring a yaw into [-pi/2, pi/2): a brick that is turned by pi looks the same."""
    quarter = math.pi / 2
    return torch.remainder(yaw + quarter, math.pi) - quarter


def in_frame(poses: Tensor, frame: Tensor) -> Tensor:
    """Poses (..., 4) in the axes that `frame` (..., 4) is given in -> in that frame."""
    offset = poses - frame
    turned = half_turn(offset[..., 3:])
    moved = rotate_z(offset[..., :3], -frame[..., 3])
    return torch.cat([moved, turned], -1)


def out_of_frame(poses: Tensor, frame: Tensor) -> Tensor:
    """The inverse of in_frame."""
    turned = poses[..., 3:] + frame[..., 3:]
    moved = rotate_z(poses[..., :3], frame[..., 3])
    moved = moved + frame[..., :3]
    return torch.cat([moved, turned], -1)


def number_of_place(table: Tensor, places: Tensor) -> Tensor:
    """Rows of a table (P, 4) that places (n, 4) are the same as: (n,), -1 for one of no row."""
    at, yaw = (places[:, None] - table).split([3, 1], -1)
    off = torch.cat([at / SAME_PLACE_M, half_turn(yaw) / SAME_PLACE_RAD], -1)
    distance, number = off.abs().amax(-1).min(-1)
    return torch.where(distance <= 1, number, -1)


class SceneHead(nn.Module):
    """What each picture alone tells of each brick.

    That is its pose in the frame of what carries the camera, and the logit that it is in range.
    Trained by itself on the tokens of that camera, it is precise where the same question asked
    through the decoder is not: there the answer can be guessed from what the arms do.
    """

    units: Tensor  # (N, 1, 4)
    carried: Tensor  # (N, 1) bool
    grip: Tensor  # (3,)

    def __init__(self, frames: Sequence[int], n_bricks: int, features: int, middle: int = 256):
        super().__init__()
        self.frames = frames
        self.n_bricks = n_bricks
        units = torch.tensor([UNITS[frame > 0] for frame in frames], device='cpu')  # (N, 4)
        carried_by_hand = torch.tensor([[frame > 0] for frame in frames], device='cpu')  # (N, 1)
        # Buffers, because to make a tensor of numbers on a GPU is to wait for it.
        self.register_buffer('units', units[:, None], persistent=False)
        self.register_buffer('carried', carried_by_hand, persistent=False)
        self.register_buffer('grip', torch.tensor(GRIP_M, device='cpu'), persistent=False)
        self.mlp = nn.ModuleDict()  # '0' for fixed cameras, '1' for both hands': they share it
        for carried in sorted({frame > 0 for frame in frames}):
            self.mlp[str(int(carried))] = nn.Sequential(
                nn.Linear(features, middle), nn.ReLU(), nn.Linear(middle, 5 * n_bricks)
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, features) -> scene (B, N, n, 5), float32: poses in UNITS, logits."""
        tokens = tokens.to(next(self.parameters()).dtype)  # a pretrained stem gives bfloat16
        cameras = []
        for i, frame in enumerate(self.frames):
            carried = int(frame > 0)
            camera = self.mlp[str(carried)](tokens[:, i])
            cameras.append(camera.float())
        return torch.stack(cameras, 1).unflatten(-1, (self.n_bricks, 5))

    def loss(self, predicted: Tensor, scene: Tensor) -> Tensor:
        """Error of the poses of bricks in range, and of whether they are.

        Each sample counts by its bricks and cameras: divided by all colours that there are, a scene
        of two bricks taught three and a half times less.

        Args:
            predicted: (B, N, n, 5), as forward gives it.
            scene: (B, N, n, 4) m and rad, nan for a brick that is not there.
        """
        there = scene.isfinite().all(-1)
        scene = scene.nan_to_num()
        near = (scene[..., :2].abs() < RANGE_M).all(-1)
        in_range = (near | ~self.carried) & there  # (B, N, n)
        poses = predicted[..., :4]
        error = F.smooth_l1_loss(poses, scene / self.units, reduction='none', beta=0.1)
        error = error.mean(-1)
        said = F.binary_cross_entropy_with_logits(
            predicted[..., 4], in_range.float(), reduction='none'
        )
        wrong = (error * in_range + 0.3 * said).sum((1, 2))
        return (wrong / there.sum((1, 2)).clamp(min=1)).mean()

    @staticmethod
    def features(predicted: Tensor) -> Tensor:
        """What the state token gets, (B, N * n * 5), without a gradient: sines make noise of it."""
        poses, logit = predicted.detach().split([4, 1], -1)
        in_range = (logit > 0).float()
        features = torch.cat([poses * in_range, in_range], -1)
        return features.flatten(1)

    def poses(self, predicted: Tensor, tool: Tensor) -> Tensor:
        """Every brick in the torso frame as each hand should believe it is: (B, 2, n, 4).

        The hand's own camera knows best, if the brick is in range; then the other hand's, then the
        one that does not move.

        Args:
            predicted: (B, N, n, 5), as forward gives it.
            tool: (B, 2, 4), the hands in the torso frame.
        """
        in_range = predicted[..., 4:] > 0
        in_torso = self.in_torso(predicted, tool)
        hands = []
        for hand in (1, 2):
            rank = [(frame == 0, frame != hand) for frame in self.frames]
            best_first = sorted(range(len(rank)), key=rank.__getitem__)
            believed = in_torso[best_first[-1]]
            for i in reversed(best_first[:-1]):
                believed = torch.where(in_range[:, i], in_torso[i], believed)
            hands.append(believed)
        return torch.stack(hands, 1)

    def in_torso(self, predicted: Tensor, tool: Tensor) -> list[Tensor]:
        """Every brick in the torso frame as each camera by itself has it: (B, n, 4) per camera."""
        cameras = []
        for i, frame in enumerate(self.frames):
            poses = predicted[:, i, :, :4] * self.units[i]
            if frame:
                poses = out_of_frame(poses, tool[:, frame - 1, None])
            cameras.append(poses)
        return cameras

    @torch.no_grad()
    def foresee(self, predicted: Tensor, path: Tensor, shut: Tensor) -> Tensor:
        """What will be seen when the hands have gone the way that they are on.

        It is plain geometry: bricks stay where they are, a brick between fingers that stay shut
        goes along, and a carried camera is given what the fixed one sees of a brick that comes into
        its range. Where no hand moves nothing changes.

        Args:
            predicted: (B, N, n, 5), as forward gives it, of pictures taken at path[:, 0].
            path: (B, T, 2, 4), the hands in the torso frame, at first and after each command.
            shut: (B, T, 2) bool, whether each is commanded to be shut then.

        Returns:
            (B, N, n, 5), as forward gives it, of pictures taken at path[:, -1].
        """
        in_range = predicted[..., 4:] > 0  # (B, N, n, 1)
        bricks = self.in_torso(predicted, path[:, 0])
        there = list(in_range.unbind(1))
        if 0 in self.frames:
            fixed = self.frames.index(0)
            for i, frame in enumerate(self.frames):
                if frame:
                    bricks[i] = torch.where(in_range[:, i], bricks[i], bricks[fixed])
                    there[i] = in_range[:, i] | in_range[:, fixed]
        for before, after, holds in zip(
            path[:, :-1].unbind(1), path[:, 1:].unbind(1), (shut[:, :-1] & shut[:, 1:]).unbind(1)
        ):
            bricks = self._carried_on(bricks, there, before, after, holds)
        cameras = []
        for i, frame in enumerate(self.frames):
            poses = bricks[i]
            said = predicted[:, i, :, 4:]
            if frame:
                poses = in_frame(poses, path[:, -1, frame - 1, None])
                near = (poses[..., :2].abs() < RANGE_M).all(-1, keepdim=True) & there[i]
                said = torch.where(near, 1.0, -1.0)
            cameras.append(torch.cat([poses / self.units[i], said], -1))
        moves = (path != path[:, :1]).flatten(1).any(1)
        return torch.where(moves.view(-1, 1, 1, 1), torch.stack(cameras, 1), predicted)

    def _carried_on(
        self,
        bricks: list[Tensor],
        there: list[Tensor],
        before: Tensor,
        after: Tensor,
        holds: Tensor,
    ) -> list[Tensor]:
        """Bricks (B, n, 4) per camera after hands that hold (B, 2) went from `before` (B, 2, 4).

        A brick that is not `there` (B, n, 1) has any pose, and is carried by nobody.
        """
        for hand in (0, 1):
            own = self.frames.index(hand + 1) if hand + 1 in self.frames else 0
            offset = in_frame(bricks[own], before[:, hand, None])[..., :3]
            distance = offset.norm(dim=-1, keepdim=True).masked_fill(~there[own], math.inf)
            nearest = distance == distance.amin(1, keepdim=True)
            between = (offset.abs() < self.grip).all(-1, keepdim=True) & there[own]
            held = between & nearest & holds[:, hand, None, None]
            moved = []
            for poses in bricks:
                along = in_frame(poses, before[:, hand, None])
                at, yaw = out_of_frame(along, after[:, hand, None]).split([3, 1], -1)
                along = torch.cat([at, half_turn(yaw)], -1)
                moved.append(torch.where(held, along, poses))
            bricks = moved
        return bricks


class Grounding(nn.Module):
    """What words single out; where that is follows, to the precision of what is seen.

    A decoder this narrow passes numbers on to centimetres only, and learns slowly to subtract them.
    So it learns classes here, and geometry does the rest. Places are classes as well: on a grid of
    studs words can name few of them, 33 in all tasks but `build`. Regressed from the same words
    they were still 1 to 6 mm off when brick and hand had been right for long.

    Referents (B, 8), as sim/labels.py gives them: the bricks that the left and the right hand
    have to fetch, the brick theirs goes on (n: none of them, it is fixed), the hand that presses,
    and the place: pose of the upper brick in the frame of that brick, of the torso where it is
    fixed. As classes they are (B, 5), the last one the number of a place in the table of `places`
    (P, 4) that the training data has given.
    """

    places: Tensor  # (P, 4)
    quarter: Tensor  # (4,) a quarter turn

    def __init__(
        self,
        n_bricks: int,
        places: Sequence[Sequence[float]],
        width: int,
        frequencies: int,
        middle: int = 256,
    ):
        super().__init__()
        self.frequencies = frequencies
        self.sizes = (n_bricks, n_bricks, n_bricks + 1, 2, len(places))
        answers = sum(self.sizes)
        self.words = nn.Sequential(nn.Linear(width, middle), nn.GELU(), nn.Linear(middle, answers))
        self.tell = nn.Sequential(
            nn.Linear(14 * (1 + 2 * frequencies), 2 * middle),
            nn.GELU(),
            nn.Linear(2 * middle, width),
        )
        quarter = torch.tensor([0, 0, 0, math.pi / 2], device='cpu')
        table = torch.tensor(places, dtype=torch.float32, device='cpu').view(-1, 4)
        self.register_buffer('places', table, persistent=False)
        self.register_buffer('quarter', quarter, persistent=False)

    def forward(self, words: Tensor) -> Tensor:
        """Mean hidden state of the words (B, D) -> logits of all classes (B, R), float32."""
        with torch.autocast(words.device.type, enabled=False):
            return self.words(words.float())

    def choose(self, predicted: Tensor) -> Tensor:
        """Logits of all classes (B, R) -> the likeliest classes (B, 5)."""
        likeliest = [logits.argmax(-1) for logits in predicted.split(self.sizes, -1)]
        return torch.stack(likeliest, -1)

    def classes(self, referents: Tensor) -> Tensor:
        """Referents (B, 8) -> classes (B, 5), -1 for what is not known.

        Nothing is known of a question, and no number of a place that is not in the table.
        """
        place = number_of_place(self.places, referents[:, 4:])
        place = torch.where(referents[:, 0] >= 0, place, -1)
        return torch.cat([referents[:, :4].long(), place[:, None]], -1)

    def loss(self, predicted: Tensor, referents: Tensor) -> Tensor:
        """Mean over the samples; what is not known adds nothing.

        Args:
            predicted: (B, R), as forward gives it.
            referents: (B, 8).
        """
        wrong = predicted.new_zeros(())
        logits = predicted.split(self.sizes, -1)
        for x, right in zip(logits, self.classes(referents).unbind(1)):
            wrong = wrong + F.cross_entropy(x, right, ignore_index=-1, reduction='sum')
        return 0.6 * wrong / len(predicted)

    @torch.no_grad()
    def geometry(self, chosen: Tensor, poses: Tensor, tool: Tensor) -> Tensor:
        """What to fetch and where to take it, (B, 14).

        Args:
            chosen: (B, 5), classes, none of them -1.
            poses: (B, 2, n, 4), as SceneHead.poses gives them.
            tool: (B, 2, 4), the hands in the torso frame.

        Returns:
            the brick each hand has to fetch, as a pose in its tool frame (2 x 4); the way from the
            upper brick to its place in the frame of the hand that presses (4); which hand that is,
            one-hot (2).
        """
        left, right, base, hand, number = chosen.unbind(-1)
        place = self.places[number]
        rows = torch.arange(len(chosen), device=chosen.device)
        left_brick = poses[rows, 0, left]
        right_brick = poses[rows, 1, right]
        bricks = torch.stack([left_brick, right_brick], 1)  # (B, 2, 4)
        fetch = in_frame(bricks, tool)
        # A brick's frame is a quarter turn off the one a hand grasps it in.
        # Seen from a hand that has turned by more than a quarter a brick points the other way: near
        # end and far end would change places.
        at, yaw = poses[rows, hand].split([3, 1], -1)
        lying = torch.cat([at, half_turn(yaw)], -1)
        under = F.pad(lying + self.quarter, (0, 0, 0, 1))  # (B, n + 1, 4)
        place = out_of_frame(place, under[rows, base]) - self.quarter
        way = in_frame(place, tool[rows, hand])
        way = way - fetch[rows, hand]
        way, turn = way.split([3, 1], -1)
        way = torch.cat([way, half_turn(turn)], -1)
        presses = torch.stack([hand == 0, hand == 1], -1)  # one_hot would look for the largest
        return torch.cat([fetch.flatten(1), way, presses], -1)

    def embed(self, chosen: Tensor, poses: Tensor, tool: Tensor) -> Tensor:
        """The goal embedding (B, D), which is added to the rows of a chunk; see `geometry`."""
        way = self.geometry(chosen, poses, tool)
        way, presses = way.split([12, 2], -1)
        way = torch.asinh(way / LOG_SCALE_M) / 3
        way = torch.cat([way, presses], -1)
        return self.tell(layers.fourier_features(way, self.frequencies))

    def inherited(self, theirs: 'Grounding') -> dict[str, Tensor]:
        """Weights of another one that may have another table of places.

        What it knows of a place that both tables have stays with that place; places that are new to
        it keep the weights that they have here.

        Returns:
            What load_state_dict takes.
        """
        number = number_of_place(theirs.places, self.places)  # (P,)
        known = number >= 0
        others = sum(self.sizes[:-1])
        weights = theirs.state_dict()
        last = f'words.{len(self.words) - 1}'
        for name in (f'{last}.weight', f'{last}.bias'):
            row = self.state_dict()[name].clone()
            row[:others] = weights[name][:others]
            row[others:][known] = weights[name][others:][number[known]]
            weights[name] = row
        return weights
