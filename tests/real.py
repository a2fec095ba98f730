"""A real task of one training step; a module of its own, because its import costs torch's."""

from dataclasses import replace

from robustlr.task import Scale
from robustlr.tasks.digits import digits_mlp

one_step = replace(digits_mlp, name="one-step", scales={"small": Scale(steps=1, batch_size=32)})
