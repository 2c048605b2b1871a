"""The parts of the model and of its training. Never imports mujoco."""
