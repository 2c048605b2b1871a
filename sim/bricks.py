"""LEGO bricks: their dimensions and masses, and the MJCF text of one.

Dimensions of the LEGO system: pitch 8 mm, stud 4.8 x 1.7 mm, brick height 9.6 mm, plate 3.2 mm;
DUPLO is the same system at twice the size. A brick's origin is the middle of its bottom face, z up
along the studs. SI units.

A brick is one box plus one thin slab that stands for its studs; why, and how bricks hold on to each
other, is said in sim/clutch.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

STUD_PITCH_M = 0.008
STUD_HEIGHT_M = 0.0017
STUD_RADIUS_M = 0.0024
BRICK_HEIGHT_M = 0.0096
PLATE_HEIGHT_M = 0.0032
# The collision box is smaller by SIDE_GAP_M per side, so that neighbours on the grid do not touch,
# and starts BOTTOM_GAP_M above the bottom face: a seated brick carries load by its weld, not by
# contact.
SIDE_GAP_M = 3e-4
BOTTOM_GAP_M = 1e-4
# Weighed LEGO bricks; the mass of others follows from their stud count.
MASS_KG = {(2, 2): 0.00115, (2, 4): 0.00216, (2, 6): 0.00323}
MASS_PER_STUD_KG = 0.0003
PLATE_MASS = 0.45  # A plate's mass as a share of a brick with as many studs.
SLAB_MASS = 0.1  # share of the slab that stands for the studs
# A 2x4 DUPLO brick weighs ~12 g against 2.2 g: walls do not thicken with size.
DUPLO_MASS_EXPONENT = 2.5
CONTACT = 'solref="0.004 1" solimp="0.98 0.995 0.0005 0.5 2" friction="0.6 0.002 0.0001" condim="4"'


@dataclass(frozen=True)
class Brick:
    """A brick of one type, in one colour."""

    name: str
    studs: tuple[int, int]  # nx, ny along its own x and y
    rgba: str
    plate: bool = False  # It has a plate's height, a third of a brick's.
    fixed: bool = False  # screwed to the table
    at_m: tuple[float, float] = (0.34, 0)  # A fixed one is screwed to the table here.

    def height_m(self, scale: float) -> float:
        """From its bottom to its top face, without studs, m."""
        return scale * (PLATE_HEIGHT_M if self.plate else BRICK_HEIGHT_M)

    def mass_kg(self, scale: float) -> float:
        """Mass of box and studs, kg."""
        nx, ny = self.studs
        lego = MASS_KG.get((min(nx, ny), max(nx, ny)), MASS_PER_STUD_KG * nx * ny)
        return lego * scale**DUPLO_MASS_EXPONENT * (PLATE_MASS if self.plate else 1)


def brick_xml(brick: Brick, scale: float, pos: Sequence[float] = (0, 0, 0)) -> str:
    """MJCF body of a brick.

    The stud slab sits in a child body because excludes work between bodies, not geoms. The
    cylinders are there to be seen.
    """
    nx, ny = brick.studs
    name = brick.name
    pitch = scale * STUD_PITCH_M
    height = brick.height_m(scale)
    mass = brick.mass_kg(scale)
    half_x = nx * pitch / 2 - SIDE_GAP_M
    half_y = ny * pitch / 2 - SIDE_GAP_M
    box = f'{half_x:.6g} {half_y:.6g} {(height - BOTTOM_GAP_M) / 2:.6g}'
    stud_r = scale * STUD_RADIUS_M
    stud_h = scale * STUD_HEIGHT_M
    slab_x = (nx - 1) * pitch / 2 + stud_r
    slab_y = (ny - 1) * pitch / 2 + stud_r
    slab = f'{slab_x:.6g} {slab_y:.6g} {stud_h / 2:.6g}'
    slab_z = f'{height + stud_h / 2:.6g}'
    studs = ''
    for i in range(nx):
        for j in range(ny):
            x = (i - (nx - 1) / 2) * pitch
            y = (j - (ny - 1) / 2) * pitch
            studs += (
                f'<geom type="cylinder" size="{stud_r:.6g} {stud_h / 2:.6g}" rgba="{brick.rgba}"'
                f' mass="0" contype="0" conaffinity="0" group="2"'
                f' pos="{x:.6g} {y:.6g} {slab_z}"/>'
            )
    box_z = f'{(height + BOTTOM_GAP_M) / 2:.6g}'
    joint = '' if brick.fixed else '<freejoint/>'
    return (
        f'<body name="{name}" pos="{pos[0]} {pos[1]} {pos[2]}">{joint}'
        f'<geom name="{name}/box" type="box" size="{box}" pos="0 0 {box_z}"'
        f' rgba="{brick.rgba}" mass="{(1 - SLAB_MASS) * mass:.6g}" {CONTACT}/>{studs}'
        f'<body name="{name}/slab">'
        f'<geom name="{name}/slab" type="box" size="{slab}" pos="0 0 {slab_z}"'
        f' mass="{SLAB_MASS * mass:.6g}" group="3" rgba="0 1 0 .3" {CONTACT}/></body></body>'
    )
