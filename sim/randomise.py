"""What differs from robot to robot and from room to room, drawn by an episode's seed.

    chance = Randomiser(model, bricks, cameras, amounts(1.0, 'light,camera'))
    chance.draw(seed)                    # writes into the model; chance.drawn goes into the header
    picture = chance.develop(picture, camera, seed, step)

KINDS says what there is, how far it goes at `randomise=1`, and why so far; a smaller number scales
every range. Each kind has a generator of its own: what it draws of a seed is the same whether it is
drawn alone or with the others, and nothing else of an episode changes with it. With no amounts
nothing is written and nothing drawn: such a world is bit-equal to one without this file.

Ranges of pictures are what rooms, lamps and mounts differ by; ranges of physics are such that the
scripted expert, which sees the truth, still does its tasks (docs/results.md has the figures).
"""

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from episode import JOINT_NAMES
from sim.bricks import Brick
from sim.gl import mujoco
from sim.tasks import HANDS


class Kind(NamedTuple):
    """Something that is varied: what, how far at full range, and why so far."""

    changes: str
    full: dict[str, float]  # names carry the unit; a plain name is a share
    reason: str


KINDS = {
    'light': Kind(
        'place, aim, colour and strength of the lamp, ambient light',
        dict(place_m=0.8, height_m=0.5, aim_m=0.2, factor=1.4, tint=0.1),
        'a lamp stands anywhere over the table; 1.4 keeps white from blowing out',
    ),
    'surfaces': Kind(
        'colour and texture of table, floor, screwed-down plates and walls, which are there then',
        dict(contrast=0.45),
        'any colour but those of the bricks that lie about, and any of the textures; what is round '
        'is drawn a little coarser, which pays for most of what textures cost',
    ),
    'bricks': Kind(
        'hue, saturation and value of each loose brick',
        dict(hue_deg=6.0, saturation=0.12, value=0.12, tint=0.04),
        'half of the 22 degrees from yellow to orange would be 11: every name stays true',
    ),
    'camera': Kind(
        'pose of each camera on its mount, normal, cut off at twice the spread',
        dict(spread_m=0.005, spread_deg=0.5),
        'a mount that was taken off and put back; 0.5 degrees are 5 mm on the table',
    ),
    'lens': Kind(
        'vertical field of view of each camera',
        dict(fovy_deg=1.5),
        'lenses of one type differ by 2 to 3 % in focal length',
    ),
    'picture': Kind(
        'exposure and white balance of each camera, noise of each picture',
        dict(factor=1.25, tint=0.06, noise=6.0),
        'automatic exposure is off by a third of a stop; noise in steps of 255',
    ),
    'friction': Kind(
        'sliding friction of bricks, fingers and table',
        dict(share=0.3),
        'dust and wear; at 0.7 a hand still holds a brick while it presses',
    ),
    'studs': Kind(
        'what studs take to be pressed on and pulled off, as force_spread does',
        dict(share=0.2),
        'the expert joins bricks up to 1.25 of the usual force',
    ),
    'gripper': Kind(
        'stiffness of each gripper',
        dict(share=0.25),
        'a spring, a current limit or a worn pad; it scales the force of the grasp',
    ),
    'calibration': Kind(
        'zero of each joint: the robot is off by so much from what it believes, and never sees it',
        dict(offset_deg=0.3),
        'what calibration by hand leaves; the tool is off by up to a few mm',
    ),
    'latency': Kind(
        'how late within its control step a command starts to act',
        dict(late_s=0.04),
        'a bus and a scheduler; motion catches up within the step',
    ),
}
Drawn = dict[str, Any]  # What was drawn by kind, as JSON can hold it.
Vector = Sequence[float] | np.ndarray

STREAM = 52_711  # its generators have nothing in common with those of scenes, words and forces
LAMP = 'ceiling'
COLOUR_DISTANCE = 0.3  # Distance in RGB from a surface's colour to any loose brick's.
N_COLOURS = 12  # candidates of a surface's colour
WALL_RGB = (0.70, 0.745, 0.815)  # The colour of the sky that is there without walls.
TEXTURE_PX = 64
REPEATS_PER_M = (2, 5, 12)
# Arrays of the model that are written here; they hold what the files say before each draw.
WRITTEN = (
    'light_pos',
    'light_dir',
    'light_diffuse',
    'geom_rgba',
    'geom_matid',
    'geom_friction',
    'cam_pos',
    'cam_quat',
    'cam_pos0',
    'cam_mat0',
    'cam_fovy',
    'actuator_gainprm',
    'actuator_biasprm',
)
NOISE_LENGTH = 1 << 17
GREY = 0.1  # saturation below which a brick's colour is white or black
GAIN_BITS = 6  # Exposure in steps of 1/64: a bright pixel times its gain fits 16 bits.


def amounts(randomise: float, only: str = '') -> dict[str, float]:
    """How much of each kind's full range is drawn.

    Args:
        randomise: 0 to 1, of the full ranges.
        only: Names of KINDS, separated by commas; '': all of them.

    Returns:
        {kind: share}, empty where nothing is drawn.

    Raises:
        ValueError: The share is out of range or there is no such kind.
    """
    if not 0 <= randomise <= 1:
        raise ValueError(f'randomise={randomise}: expected 0 to 1, a share of the full ranges')
    names = only.split(',') if only else list(KINDS)
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise ValueError(
            f'randomise_only={only}: no kind {unknown[0]!r}; expected some of {",".join(KINDS)}'
        )
    return {name: float(randomise) for name in KINDS if name in names and randomise > 0}


# -- what a world is furnished with ----------------------------------------------------------------
def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise (TEXTURE_PX, TEXTURE_PX) in 0..1 that repeats without a seam."""
    coarse = rng.uniform(size=(cells, cells))
    coarse = np.pad(coarse, (0, 1), mode='wrap')
    at = np.arange(TEXTURE_PX) * cells / TEXTURE_PX
    rows = np.array([np.interp(at, np.arange(cells + 1), row) for row in coarse])
    return np.array([np.interp(at, np.arange(cells + 1), column) for column in rows.T]).T


def patterns() -> dict[str, np.ndarray]:
    """Brightness (TEXTURE_PX, TEXTURE_PX) in 0..1 of every texture, by name."""
    rng = np.random.default_rng(STREAM)
    y, x = np.indices((TEXTURE_PX, TEXTURE_PX)) / TEXTURE_PX
    clouds = sum(_noise(rng, cells) / share for cells, share in ((4, 2), (8, 4), (16, 4)))
    grain = 0.5 + 0.5 * np.sin(2 * np.pi * (6 * x + 0.7 * _noise(rng, 4)))
    return dict(
        checker=((x < 0.5) ^ (y < 0.5)).astype(float),
        stripes=(x < 0.5).astype(float),
        tiles=((x > 0.06) & (y > 0.06)).astype(float),
        wood=0.7 * grain + 0.3 * _noise(rng, 16),
        speckle=(rng.uniform(size=x.shape) > 0.15).astype(float),
        clouds=clouds,
    )


def material_names() -> list[str]:
    """Names of all materials that surfaces are drawn from."""
    return [f'{name}_{repeat}' for name in patterns() for repeat in REPEATS_PER_M]


def furnish(scene: mujoco.MjSpec, amount: float) -> None:
    """Give a scene walls, and the materials that its surfaces may be drawn to be of.

    A material's texture brightens and darkens the colour of what is made of it. Textures are part
    of the compiled model: an episode chooses among them, and nothing is uploaded again.

    Args:
        scene: Before it is compiled.
        amount: 0 to 1, of the textures' full contrast.
    """
    contrast = amount * KINDS['surfaces'].full['contrast']
    role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
    for name, brightness in patterns().items():
        grey = (255 * (1 - contrast * (1 - brightness))).astype(np.uint8)
        scene.add_texture(
            name=name,
            type=mujoco.mjtTexture.mjTEXTURE_2D,
            width=TEXTURE_PX,
            height=TEXTURE_PX,
            nchannel=3,
            data=np.repeat(grey.ravel(), 3).tolist(),
        )
        for repeat in REPEATS_PER_M:
            textures = [''] * int(mujoco.mjtTextureRole.mjNTEXROLE)
            textures[role] = name
            scene.add_material(
                name=f'{name}_{repeat}',
                textures=textures,
                texrepeat=[repeat, repeat],
                texuniform=True,
            )
    # Textures cost a software renderer a fifth of a picture, and one stack less of every cylinder
    # and capsule saves most of that: 1.20 with four, 1.01 to 1.07 with three of a clean picture.
    scene.visual.quality.numstacks = 3
    # From the floor up, beyond where any camera stands; each faces the table.
    for name, at, towards in (
        ('wall/ahead', (2.4, 0, 0.7), (-1, 0, 0)),
        ('wall/behind', (-1.6, 0, 0.7), (1, 0, 0)),
        ('wall/left', (0.4, 2.0, 0.7), (0, -1, 0)),
        ('wall/right', (0.4, -2.0, 0.7), (0, 1, 0)),
    ):
        turn = np.zeros(4)
        mujoco.mju_quatZ2Vec(turn, np.array(towards, float))
        scene.worldbody.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_PLANE,
            size=[2.5, 2.5, 0.1],
            pos=at,
            quat=turn,
            rgba=[*WALL_RGB, 1],
            contype=0,
            conaffinity=0,
            group=2,
        )


# -- draws: each gives what goes into the header ---------------------------------------------------
def _generator(kind: str, seed: int) -> np.random.Generator:
    """A kind's own generator for an episode: it does not depend on what else is drawn."""
    return np.random.default_rng([STREAM, *kind.encode(), seed])


def _factor(rng: np.random.Generator, most: float, amount: float) -> float:
    """A factor between 1/most and most, as often below 1 as above, at full amount."""
    return float(most ** (amount * rng.uniform(-1, 1)))


def _about(rng: np.random.Generator, spread: Any, amount: float, n: int) -> np.ndarray:
    """Numbers (n,) within +-spread at full amount."""
    return amount * np.asarray(spread) * rng.uniform(-1, 1, n)


def _draw_light(rng: np.random.Generator, amount: float) -> Drawn:
    full = KINDS['light'].full
    reach = (full['place_m'], full['place_m'], full['height_m'])
    return dict(
        shift_m=_about(rng, reach, amount, 3).tolist(),
        aim_m=_about(rng, full['aim_m'], amount, 2).tolist(),
        lamp=_factor(rng, full['factor'], amount),
        ambient=_factor(rng, full['factor'], amount),
        tint=(1 + _about(rng, full['tint'], amount, 3)).tolist(),
    )


def _draw_surfaces(
    rng: np.random.Generator, amount: float, usual: dict[str, np.ndarray], bricks: np.ndarray
) -> Drawn:
    """Colour and material of every surface.

    Args:
        rng: The kind's generator.
        amount: 0 to 1; a colour is moved by this share from the usual one to the one drawn.
        usual: The colour (3,) of each surface.
        bricks: Colours (n, 3) that have to stand out.
    """
    drawn = {}
    names = material_names()
    for surface, rgb in usual.items():
        wanted = rng.uniform(0.1, 0.95, (N_COLOURS, 3))
        colours = rgb + amount * (wanted - rgb)
        off = np.linalg.norm(colours[:, None] - bricks, axis=-1).min(1, initial=np.inf)
        clear = off > COLOUR_DISTANCE
        chosen = int(np.argmax(clear)) if clear.any() else int(np.argmax(off))
        material = names[rng.integers(len(names))]
        drawn[surface] = dict(rgb=colours[chosen].tolist(), material=material)
    return drawn


def _draw_brick(rng: np.random.Generator, amount: float, rgb: Vector) -> list[float]:
    """A colour that has the same name; black and white take on a tint."""
    full = KINDS['bricks'].full
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    turn, more, brighter = _about(rng, 1.0, amount, 3)
    tinted = rng.uniform(size=2) * (1, amount * full['tint'])
    value = min(1.0, value * (1 + full['value'] * brighter))
    if saturation < GREY:
        return list(colorsys.hsv_to_rgb(tinted[0], tinted[1], value))
    hue = (hue + full['hue_deg'] / 360 * turn) % 1
    saturation = min(1.0, saturation * (1 + full['saturation'] * more))
    return list(colorsys.hsv_to_rgb(hue, saturation, value))


def _draw_pose(rng: np.random.Generator, amount: float) -> list[float]:
    """Displacement of a camera: (3,) m along its mount's axes, (3,) rad about its own."""
    full = KINDS['camera'].full
    spread = np.repeat([full['spread_m'], np.radians(full['spread_deg'])], 3)
    return (amount * spread * np.clip(rng.normal(size=6), -2, 2)).tolist()


def _draw_picture(rng: np.random.Generator, amount: float) -> Drawn:
    full = KINDS['picture'].full
    exposure = _factor(rng, full['factor'], amount)
    balance = 1 + _about(rng, full['tint'], amount, 3)
    noise = amount * full['noise'] * float(rng.uniform())
    return dict(gain=(exposure * balance).tolist(), noise=noise)


class Randomiser:
    """What is drawn for the episodes of one world, and where it acts."""

    def __init__(
        self,
        model: mujoco.MjModel,
        bricks: Sequence[Brick],
        cameras: Sequence[str],
        amounts: dict[str, float],
    ):
        """Look up what will be written.

        Args:
            model: It was furnished where surfaces are drawn; `draw` writes into it.
            bricks: All bricks of the scene.
            cameras: Names of all cameras, whether they are looked through or not.
            amounts: As `amounts` gives them.
        """
        self.model = model
        self.amounts = amounts
        self.drawn: Drawn = {}
        self.joint_offset_rad: np.ndarray | None = None  # (15,), true minus measured position
        self._usual = {name: getattr(model, name).copy() for name in WRITTEN}
        headlight = model.vis.headlight
        self._usual_headlight = (headlight.ambient.copy(), headlight.diffuse.copy())
        self._cameras = {name: model.camera(name).id for name in cameras}
        self._loose = [brick for brick in bricks if not brick.fixed]
        self._geoms = {brick.name: _visible_geoms(model, brick.name) for brick in bricks}
        self._surfaces = {name: [model.geom(name).id] for name in ('table', 'floor')}
        fixed = [brick.name for brick in bricks if brick.fixed]
        if fixed:
            self._surfaces['plate'] = [geom for name in fixed for geom in self._geoms[name]]
        walls = [i for i in range(model.ngeom) if model.geom(i).name.startswith('wall/')]
        if walls:
            self._surfaces['wall'] = walls
        self._bank = np.zeros(0)
        if 'picture' in amounts:
            self._bank = np.random.default_rng(STREAM).normal(size=NOISE_LENGTH)
        self._noise: dict[str, np.ndarray] = {}
        self._gain: dict[str, np.ndarray] = {}

    # -- an episode ------------------------------------------------------------------------------
    def draw(self, seed: int) -> None:
        """Draw all kinds for an episode and write them into the model."""
        if not self.amounts:
            return
        for name, usual in self._usual.items():
            getattr(self.model, name)[:] = usual
        write = dict(
            light=self._light,
            surfaces=self._paint,
            bricks=self._colour,
            camera=self._move_cameras,
            lens=self._change_lenses,
            picture=self._expose,
            friction=self._rub,
            studs=self._wear,
            gripper=self._stiffen,
            calibration=self._misalign,
            latency=self._delay,
        )
        self.drawn = {}
        for kind, amount in self.amounts.items():
            self.drawn[kind] = write[kind](_generator(kind, seed), amount)

    def _light(self, rng: np.random.Generator, amount: float) -> Drawn:
        drawn = _draw_light(rng, amount)
        m = self.model
        lamp = m.light(LAMP).id
        at = self._usual['light_pos'][lamp]
        along = self._usual['light_dir'][lamp]
        aim = at - along * at[2] / along[2]  # The light's axis meets the table here.
        aim[:2] += drawn['aim_m']
        m.light_pos[lamp] = at + drawn['shift_m']
        away = aim - m.light_pos[lamp]
        m.light_dir[lamp] = away / np.linalg.norm(away)
        tint = np.array(drawn['tint'])
        m.light_diffuse[lamp] = self._usual['light_diffuse'][lamp] * drawn['lamp'] * tint
        ambient, diffuse = self._usual_headlight
        m.vis.headlight.ambient[:] = ambient * drawn['ambient'] * tint
        m.vis.headlight.diffuse[:] = diffuse * drawn['ambient'] * tint
        return drawn

    def _paint(self, rng: np.random.Generator, amount: float) -> Drawn:
        m = self.model
        rgba = self._usual['geom_rgba']
        usual = {name: rgba[geoms[0], :3] for name, geoms in self._surfaces.items()}
        bricks = [rgba[self._geoms[brick.name][0], :3] for brick in self._loose]
        drawn = _draw_surfaces(rng, amount, usual, np.reshape(bricks, (-1, 3)))
        for name, geoms in self._surfaces.items():
            m.geom_rgba[geoms, :3] = drawn[name]['rgb']
            textured = geoms[:1] if name == 'plate' else geoms  # Nobody would see it on studs.
            m.geom_matid[textured] = m.material(drawn[name]['material']).id
        return drawn

    def _colour(self, rng: np.random.Generator, amount: float) -> Drawn:
        drawn = {}
        for brick in self._loose:
            geoms = self._geoms[brick.name]
            rgb = self._usual['geom_rgba'][geoms[0], :3]
            drawn[brick.name] = _draw_brick(rng, amount, rgb.tolist())
            self.model.geom_rgba[geoms, :3] = drawn[brick.name]
        return drawn

    def _move_cameras(self, rng: np.random.Generator, amount: float) -> Drawn:
        m = self.model
        drawn = {name: _draw_pose(rng, amount) for name in self._cameras}
        for name, i in self._cameras.items():
            turn = np.zeros(4)
            angle = float(np.linalg.norm(drawn[name][3:]))
            mujoco.mju_axisAngle2Quat(turn, np.array(drawn[name][3:]) / max(angle, 1e-12), angle)
            m.cam_pos[i] += drawn[name][:3]
            mujoco.mju_mulQuat(m.cam_quat[i], self._usual['cam_quat'][i], turn)
            if m.cam_bodyid[i] == 0:  # Nobody asks where a camera that moves is at rest.
                m.cam_pos0[i] = m.cam_pos[i]
                mujoco.mju_quat2Mat(m.cam_mat0[i], m.cam_quat[i])
        return drawn

    def _change_lenses(self, rng: np.random.Generator, amount: float) -> Drawn:
        more = _about(rng, KINDS['lens'].full['fovy_deg'], amount, len(self._cameras))
        drawn = dict(zip(self._cameras, more.tolist()))
        for name, i in self._cameras.items():
            self.model.cam_fovy[i] += drawn[name]
        return drawn

    def _expose(self, rng: np.random.Generator, amount: float) -> Drawn:
        drawn = {name: _draw_picture(rng, amount) for name in self._cameras}
        self._noise.clear()  # `develop` makes it for the cameras that are looked through.
        for name, how in drawn.items():
            self._gain[name] = np.round(np.array(how['gain']) * 2**GAIN_BITS).astype(np.int16)
        return drawn

    def _rub(self, rng: np.random.Generator, amount: float) -> Drawn:
        m = self.model
        fingers = [m.geom(f'{hand}/finger_{i}').id for hand in HANDS for i in (1, 2)]
        bricks = [i for i in range(m.ngeom) if m.body(m.geom_bodyid[i]).name in self._bodies()]
        groups = dict(bricks=bricks, fingers=fingers, table=[m.geom('table').id])
        share = KINDS['friction'].full['share']
        drawn = dict(zip(groups, (1 + _about(rng, share, amount, len(groups))).tolist()))
        for name, geoms in groups.items():
            m.geom_friction[geoms, 0] *= drawn[name]
        return drawn

    @property
    def has_walls(self) -> bool:
        """Whether walls hide the sky."""
        return 'wall' in self._surfaces

    def _bodies(self) -> set[str]:
        """Names of the bodies of bricks: boxes and slabs."""
        return {body for name in self._geoms for body in (name, f'{name}/slab')}

    def _stiffen(self, rng: np.random.Generator, amount: float) -> Drawn:
        share = KINDS['gripper'].full['share']
        drawn = dict(zip(HANDS, (1 + _about(rng, share, amount, len(HANDS))).tolist()))
        for hand, factor in drawn.items():
            i = self.model.actuator(f'{hand}/gripper').id
            self.model.actuator_gainprm[i, 0] *= factor
            self.model.actuator_biasprm[i, 1] *= factor
        return drawn

    def _misalign(self, rng: np.random.Generator, amount: float) -> Drawn:
        most = np.radians(KINDS['calibration'].full['offset_deg'])
        self.joint_offset_rad = _about(rng, most, amount, len(JOINT_NAMES))
        return dict(zip(JOINT_NAMES, self.joint_offset_rad.tolist()))

    def _wear(self, rng: np.random.Generator, amount: float) -> Drawn:
        names = ('insertion', 'pull')
        share = KINDS['studs'].full['share']
        return dict(zip(names, (1 + _about(rng, share, amount, len(names))).tolist()))

    def _delay(self, rng: np.random.Generator, amount: float) -> Drawn:
        return dict(most_s=amount * KINDS['latency'].full['late_s'])

    # -- a step, a picture -----------------------------------------------------------------------
    def force_factor(self, name: str) -> float:
        """What the force of the studs' 'insertion' or 'pull' is multiplied by in this episode."""
        return self.drawn['studs'][name] if 'studs' in self.drawn else 1.0

    def late_ticks(self, seed: int, step: int, n: int, tick_s: float) -> int:
        """How many of a control step's n ticks pass before its command acts; one is always left."""
        if 'latency' not in self.drawn:
            return 0
        most = self.drawn['latency']['most_s'] / tick_s
        rng = np.random.default_rng([STREAM, *b'latency', seed, step])
        return min(n - 1, int((most + 1) * rng.uniform()))

    def develop(self, picture: np.ndarray, camera: str, seed: int, step: int) -> np.ndarray:
        """What a camera makes of a picture: its exposure, and the noise of this step.

        Args:
            picture: (h, w, 3) uint8.
            camera: Its name.
            seed: Of the episode.
            step: Of the episode; the same step has the same noise however often it is rendered.

        Returns:
            The picture (h, w, 3) uint8 that the camera gives; the one it got where it is perfect.
        """
        if 'picture' not in self.drawn:
            return picture
        height, width, _ = picture.shape
        gain = np.tile(self._gain[camera], width)
        bright = np.multiply(picture.reshape(height, -1), gain, dtype=np.int16)
        bright >>= GAIN_BITS
        if camera not in self._noise:
            scaled = self.drawn['picture'][camera]['noise'] * self._bank
            self._noise[camera] = np.round(scaled).astype(np.int16)
        bank = self._noise[camera]
        n = min(picture.size, len(bank))
        # Any number that differs from step to step and camera to camera: a generator takes longer.
        at = (97_003 * step + 7_919 * self._cameras[camera] + 1_013 * seed) % (len(bank) - n + 1)
        noise = bank[at : at + n]
        bright += np.resize(noise, bright.shape) if n < picture.size else noise.reshape(height, -1)
        np.clip(bright, 0, 255, out=bright)
        return bright.astype(np.uint8).reshape(picture.shape)


def _visible_geoms(model: mujoco.MjModel, brick: str) -> list[int]:
    """Geoms of a brick that cameras see: its box, then its studs."""
    body = model.body(brick)
    return list(range(body.geomadr[0], body.geomadr[0] + body.geomnum[0]))
