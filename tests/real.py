"""Real tasks of few training steps; a module of its own, because its import costs torch's."""

from dataclasses import replace

from robustlr.tasks.cgan import digits_cgan
from robustlr.tasks.digits import digits_mlp

one_step = replace(
    digits_mlp,
    name="one-step",
    scales={"small": replace(digits_mlp.scales["small"], steps=1, batch_size=32, warmup=0.0)},
)

few_steps_gan = replace(
    digits_cgan,
    name="few-steps-gan",
    scales={"small": replace(digits_cgan.scales["small"], steps=2, batch_size=8)},
)
