"""Policies trained by proximal policy optimization: on Atari Pong, and on balancing a pole.

Pong at paper scale is Kostrikov's protocol, which Learning by Turning ran: the reward of a game is
the difference of the points, -21 to 21. Its code halves the squared error of the critic before
``value_loss_coef = 0.5``, so that stable-baselines3's ``vf_coef`` is 0.25. Three things differ:
stable-baselines3 clips the critic's change, where the code takes the larger of the clipped and the free
error; ale-py prepares the frames; and all games begin anew at each of 25 evaluations, where those that
are cut off do not count.

The small scale plays the same game on frames of half the size, with a small network, and for so few
steps that nothing can be learnt from them: it shows that everything runs.

CartPole has what optimizers that bound weights need to learn it at all, for every optimizer alike:
rewards that bring a critic's values within 1, observations with their negatives (``SignedFeatures``),
and torch's initialisation instead of the orthogonal one. That one begins with an action head whose
rows have norm 0.01; rotational variants keep it there, which is a uniform policy for ever, and Nero
makes it 1. Pong has it as published; the condition ``ortho_init = false`` takes torch's there too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from robustlr.errors import UnavailableError, UserError, unknown
from robustlr.scale import CONDITIONS, Scale
from robustlr.task import Config, Outcome, Report, Task, build_checked

OPTIONS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("environments", "n_steps", "n_epochs"), (1, math.inf)),
    **dict.fromkeys(("gamma", "gae_lambda"), (0, 1)),
    **dict.fromkeys(("clip_range", "clip_range_vf", "target_kl"), (0, math.inf)),
    **dict.fromkeys(("ent_coef", "vf_coef", "reward_scale"), (0, math.inf)),
    **dict.fromkeys(("episodes", "test_episodes", "frame_stack", "width", "hidden"), (1, math.inf)),
    "frame_size": (36, math.inf),  # of which the convolutions leave a pixel
    "ortho_init": (False, True),
}
"""The lowest and highest value of each option."""


@dataclass(frozen=True, kw_only=True)
class PPOTask(Task):
    """A policy for an environment of Gymnasium, trained by the loop in ``_ppo.py``.

    A scale's ``data`` is the environment's id, its ``steps`` are the environment's, counted over all
    copies and rounded down to whole rollouts, and its ``batch_size`` is that of a gradient step. At
    each of its ``evaluations`` all episodes begin anew, so that a run can go on from there with the
    same end. Its ``options`` are:

    - ``environments``: how many copies are played at once;
    - hyperparameters of PPO, as stable-baselines3 names them: ``n_steps``, ``n_epochs``, ``gamma``,
      ``gae_lambda``, ``clip_range``, ``clip_range_vf``, ``ent_coef``, ``vf_coef``, ``target_kl``;
    - ``ortho_init``: whether weights begin orthogonal, or as torch has them;
    - ``episodes``: how many of the last ones in training the tuning metric is a mean of;
    - ``test_episodes``: how many the test value is a mean of, played when training has ended;
    - ``frame_size`` and ``frame_stack`` of Atari games; ``reward_scale``, the part of rewards that the
      learner sees, of other environments;
    - ``width`` and ``hidden`` of the network for images.

    Advantages are normalised over a rollout; the learning rate changes from rollout to rollout.
    """

    metric: str = "mean episode reward"
    direction: Literal["minimize", "maximize"] = "maximize"
    conditions: tuple[str, ...] = CONDITIONS

    def run(
        self, config: Config, report: Report, device: str = "cpu", folder: Path | None = None
    ) -> Outcome:
        """Train the policy."""
        outcome: Outcome = _loop().train(self, config, report, device, folder)
        return outcome

    def check(self, scale: Scale) -> None:
        """Build the environment and the policy once.

        Raises:
            UserError: there is no such environment, or an option does not fit.
        """
        for name, value in scale.options.items():
            if name not in OPTIONS:
                raise unknown("option of a policy", name, OPTIONS)
            lowest, highest = OPTIONS[name]
            if value is not None and not lowest <= value <= highest:
                bound = f"at least {lowest}" if value < lowest else f"at most {highest}"
                raise UserError(f"{name} = {value}: it must be {bound}")
        build_checked(_loop().learner, scale)


def _loop() -> Any:
    """Return the module of the training loop.

    Raises:
        UnavailableError: the packages that it needs are not installed.
    """
    try:
        from robustlr.tasks import _ppo
    except ImportError as error:
        raise UnavailableError(
            f"reinforcement learning needs more packages ({error}): pip install 'robustlr[rl]'"
        ) from error
    return _ppo


_KOSTRIKOV: Mapping[str, Any] = {
    "environments": 8,
    "n_steps": 128,
    "n_epochs": 4,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_range": 0.1,
    "clip_range_vf": 0.1,
    "ent_coef": 0.01,
    "vf_coef": 0.25,
    "episodes": 100,
    "test_episodes": 16,
    "ortho_init": True,
    "frame_size": 84,
    "frame_stack": 4,
    "width": 32,
    "hidden": 512,
}

_PONG = Scale(
    data="PongNoFrameskip-v4",
    options=_KOSTRIKOV,
    steps=4882 * 8 * 128,  # as many whole rollouts as 5 million steps hold
    batch_size=256,
    schedule="linear",
    gradient_clip=0.5,
    evaluations=25,
)

pong = PPOTask(
    name="pong",
    summary="PPO on Atari Pong from its frames (Learning by Turning).",
    worst=-21.0,
    scales={
        "small": replace(
            _PONG,
            options={
                **_KOSTRIKOV,
                "frame_size": 42,
                "width": 16,
                "hidden": 128,
                "environments": 2,
                "test_episodes": 2,
            },
            steps=4_096,
            evaluations=1,
        ),
        "paper": _PONG,
    },
)

cartpole_ppo = PPOTask(
    name="cartpole-ppo",
    summary="PPO on CartPole: balancing a pole for 500 steps.",
    worst=9.0,  # about that of always pushing the same way
    scales={
        "small": Scale(
            data="CartPole-v1",
            options={
                "environments": 8,
                "n_steps": 128,
                "n_epochs": 5,
                "gamma": 0.98,
                "gae_lambda": 0.98,
                "clip_range": 0.2,
                "ent_coef": 0.0,
                "vf_coef": 0.5,
                "episodes": 20,
                "test_episodes": 16,
                "ortho_init": False,
                "reward_scale": 0.02,  # a critic's values are within 1, which bounded weights need
            },
            steps=61_440,
            batch_size=256,
            schedule="linear",
            gradient_clip=0.5,
            evaluations=4,
        )
    },
)
