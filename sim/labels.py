"""What is true in the world at an instant, for questions about it: facts, and the rows in which
they hold.

facts = [labels.facts(world) for every step]            # (kind, subject, answer)
header['qa'] = labels.spans(facts)                      # runs of rows in which an answer holds
"""


def facts(world):
    """[(kind, subject, answer)] that hold in the world at this instant."""
    loose = [b.name for b in world.bricks if not b.fixed]
    # a bridge sits on two bricks, on a part of each
    below = {}
    places = {}
    for link in world.connections():
        below.setdefault(link['upper'], set()).add(link['lower'])
    below = {name: ' and '.join(sorted(lower)) for name, lower in below.items()}
    for goal in (goal for plan, _ in world.askable for goal in plan.chain):
        if goal.where and world.joined(goal):
            kind = 'part' if goal.lower in loose else 'cell'
            places.setdefault((kind, goal.upper), set()).add(goal.where)
    position = {name: world.brick_pose(name)[0] for name in loose}
    metrics = world.info()['metrics']
    found = []
    for name in loose:
        hand = world.held_by(name)
        side = 'left' if position[name][1] > 0 else 'right'
        place = (
            f'{hand} hand' if hand else f'on {below[name]}' if name in below else f'table {side}'
        )
        found += [
            ('where', name, place),
            ('hand', name, hand or 'none'),
            ('joined', name, below[name] if name in below else 'nothing'),
        ]
    found += [(*key, ' and '.join(sorted(words))) for key, words in places.items()]
    for kind, axis, sign, margin_m in (('left', 1, 1, 0.03), ('near', 0, -1, 0.015)):
        order = sorted(loose, key=lambda name: sign * position[name][axis])
        if len(order) > 1 and abs(position[order[-1]][axis] - position[order[-2]][axis]) > margin_m:
            found.append((kind, '', order[-1]))
    broken = metrics['broken'] if 'broken' in metrics else 0
    wrong = 'brick fell' if metrics['drops'] else 'joint broke' if broken else 'nothing'
    return [
        *found,
        ('arm', '', world.goal.hand),
        ('count', '', str(len(below))),
        ('wrong', '', wrong),
    ]


def spans(rows):
    """Facts of every row -> [[kind, subject, answer, first row, row after the last]]."""
    runs = []
    open_runs = {}
    for t, found in enumerate([*rows, []]):
        for key in [key for key in open_runs if key not in found]:
            runs.append([*key, open_runs.pop(key), t])
        for key in map(tuple, found):
            open_runs.setdefault(key, t)
    return sorted(runs)
