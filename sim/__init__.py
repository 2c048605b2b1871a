"""The simulated work cell: world, tasks, clutch, expert, films. Never imports torch."""
