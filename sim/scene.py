"""The scene as MuJoCo compiles it: a robot's MJCF file, the table, bricks and the clutch's welds.

    model, robot_model = build_model(bricks, scale=2.0, robot='alex', physics_dt_s=0.004)

Robots lie in assets/robots/<name>/<name>.xml; assets/robots/alex/README.md says what a robot has to
bring and which names are taken.
"""

from collections.abc import Sequence
from pathlib import Path

from episode import JOINT_ACTION_NAMES, JOINT_NAMES
from sim.bricks import Brick, brick_xml
from sim.clutch import pool_xml
from sim.gl import mujoco
from sim.randomise import furnish
from sim.tasks import HANDS

ASSETS = Path(__file__).parent.parent / 'assets'
SPARSE_FROM_DOF = 60  # MuJoCo's own limit where nothing else is said.
NEEDED = dict(  # A robot's file has to define these.
    joint=(*JOINT_NAMES, *(f'{hand}/finger_{i}' for hand in HANDS for i in (1, 2))),
    actuator=JOINT_ACTION_NAMES,
    site=tuple(f'{hand}/tool' for hand in HANDS),
    camera=('head', *(f'{hand}/wrist' for hand in HANDS)),
    body=('torso',),
    key=('home',),
)


def _robot_path(robot: str) -> Path:
    path = ASSETS / 'robots' / robot / f'{robot}.xml'
    if not path.exists():
        have = sorted(p.parent.name for p in ASSETS.glob('robots/*/*.xml'))
        raise FileNotFoundError(f'{path}: no such robot; have {have}; put your MJCF there')
    return path


def _load_robot(path: Path) -> mujoco.MjModel:
    """The robot alone, for inverse kinematics; it is checked for what World needs."""
    readme = ASSETS / 'robots' / 'alex' / 'README.md'
    try:
        robot_model = mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:  # MuJoCo's own message names no file; so does a UnicodeDecodeError
        raise ValueError(f'{path}: {error}') from error
    missing = []
    for kind, names in NEEDED.items():
        type_id = getattr(mujoco.mjtObj, f'mjOBJ_{kind.upper()}')
        for name in names:
            if mujoco.mj_name2id(robot_model, type_id, name) < 0:
                missing.append(f'{kind} {name}')
    if missing:
        raise ValueError(
            f'{path}: missing: {", ".join(missing)}; what they are is said in {readme}'
        )
    return robot_model


def _bricks_xml(bricks: Sequence[Brick], scale: float, n_slots: int) -> str:
    """MJCF of the bricks, in a row beside the table's middle, and of the weld pool."""
    brick_bodies = ''
    for i, brick in enumerate(bricks):
        start = (*brick.at_m, 0) if brick.fixed else (0.3, 0.3 - 0.12 * i, 0)
        brick_bodies += brick_xml(brick, scale, start)
    dummies, excludes, welds = pool_xml(n_slots)
    return (
        f'<mujoco><worldbody>{brick_bodies}{dummies}</worldbody>'
        f'<contact>{excludes}</contact><equality>{welds}</equality></mujoco>'
    )


def build_model(
    bricks: Sequence[Brick],
    scale: float,
    robot: str,
    physics_dt_s: float,
    n_slots: int = 16,
    surfaces: float = 0.0,
) -> tuple[mujoco.MjModel, mujoco.MjModel]:
    """Compile the scene with robot and bricks, and the robot alone.

    Args:
        bricks: All bricks of the scene.
        scale: 1 for LEGO, 2 for DUPLO.
        robot: Name of the robot's folder.
        physics_dt_s: Time step.
        n_slots: Number of links that can hold at a time.
        surfaces: Where above 0 there are walls, and textures of so much contrast, see randomise.py.

    Raises:
        FileNotFoundError: There is no such robot.
        ValueError: Its file is broken, lacks something, or takes a name of the scene's.
    """
    path = _robot_path(robot)
    robot_model = _load_robot(path)
    # These files exist in memory only, as if beside the robot's: its meshes and textures count from
    # there.
    included = ('vla-lego/table.xml', path.name, 'vla-lego/bricks.xml')
    main = ''.join(f'<include file="{name}"/>' for name in included)
    texts = {
        'vla-lego.xml': f'<mujoco model="vla-lego">{main}</mujoco>'.encode(),
        'vla-lego/table.xml': (ASSETS / 'scenes' / 'table.xml').read_bytes(),
        'vla-lego/bricks.xml': _bricks_xml(bricks, scale, n_slots).encode(),
    }
    folder = path.parent.resolve()
    files = {f'{folder}/{name}': text for name, text in texts.items()}
    try:
        scene = mujoco.MjSpec.from_file(f'{folder}/vla-lego.xml', include=files)
        scene.option.timestep = physics_dt_s
        if surfaces > 0:
            furnish(scene, surfaces)
        model = scene.compile()
    except ValueError as error:
        readme = ASSETS / 'robots' / 'alex' / 'README.md'
        raise ValueError(
            f'{path}: does not join table and bricks: {error}; names that are taken are listed '
            f'in {readme}'
        ) from error
    choose_dense(model)
    if model.opt.cone != mujoco.mjtCone.mjCONE_ELLIPTIC:
        raise ValueError(f'{path}: option cone="pyramidal": expected elliptic, the clutch reads it')
    return model, robot_model


def choose_dense(model: mujoco.MjModel) -> bool:
    """Choose the dense Jacobian where MuJoCo would take the sparse one; returns whether it would.

    MuJoCo 4.0.0 takes it from 60 degrees of freedom on, and factors its Newton Hessian wrongly
    then: bricks at rest gain speed until the simulation diverges.
    """
    kinds = mujoco.mjtJacobian
    auto = model.opt.jacobian == kinds.mjJAC_AUTO and model.nv >= SPARSE_FROM_DOF
    sparse = auto or model.opt.jacobian == kinds.mjJAC_SPARSE
    if sparse:
        model.opt.jacobian = kinds.mjJAC_DENSE
    return sparse
