"""A real task of one training step; a module of its own, because its import costs torch's."""

from dataclasses import replace

from robustlr.tasks.digits import digits_mlp

one_step = replace(
    digits_mlp,
    name="one-step",
    scales={"small": replace(digits_mlp.scales["small"], steps=1, batch_size=32, warmup=0.0)},
)
