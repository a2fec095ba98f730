"""The training loop of proximal policy optimization, around stable-baselines3's own."""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.random import SeedSequence
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import set_random_seed
from torch.distributions import Distribution
from torch.optim.lr_scheduler import LambdaLR

from robustlr.checkpoint import Run
from robustlr.errors import UserError
from robustlr.scale import Scale
from robustlr.task import Config, Outcome, Report, Seeds
from robustlr.tasks._environments import make
from robustlr.tasks.models.policy import ImageFeatures, SignedFeatures
from robustlr.training import place

if TYPE_CHECKING:
    from robustlr.tasks.reinforcement import PPOTask

HYPERPARAMETERS = (
    "n_steps",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "clip_range",
    "clip_range_vf",
    "ent_coef",
    "vf_coef",
    "target_kl",
)
ENVIRONMENT = ("reward_scale", "frame_size", "frame_stack")
NETWORK = ("width", "hidden")
FILMSTRIP = (4, 8)
"""Rows and columns of a picture of a game."""


class Rollouts(RolloutBuffer):
    """Rollouts whose advantages are normalised all together, as Kostrikov does."""

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        """Compute both; returns follow from the advantages before they are normalised."""
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages -= self.advantages.mean()
        self.advantages /= self.advantages.std(ddof=1) + 1e-5


class Learner(PPO):
    """stable-baselines3's PPO with an optimizer and a schedule made outside of it."""

    schedule: LambdaLR

    def train(self) -> None:
        """Take the gradient steps of a rollout, all at one learning rate, and move on to the next."""
        super().train()
        self.schedule.step()

    def _update_learning_rate(self, optimizers: Any) -> None:
        """Leave the learning rate to the schedule; PPO would give every group the same one."""


class Episodes(BaseCallback):
    """The unclipped rewards of the last ``count`` episodes, as a part of a run that is saved."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.rewards: deque[float] = deque(maxlen=count)

    def mean(self, otherwise: float) -> float:
        """Return their mean, or ``otherwise`` where none has ended."""
        return float(np.mean(self.rewards)) if self.rewards else otherwise

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.rewards += [float(info["episode"]["r"]) for info in infos if "episode" in info]
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return {"rewards": list(self.rewards)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.rewards.extend(state["rewards"])


def learner(scale: Scale, device: str = "cpu") -> Learner:
    """Return a policy with fresh weights from torch's global generator, and its environments.

    Raises:
        UserError: there is no such environment, or a rollout is no whole number of batches.
    """
    options = scale.options
    count = options["environments"]
    hyperparameters, shown, network = (
        {name: options[name] for name in names if name in options}
        for names in (HYPERPARAMETERS, ENVIRONMENT, NETWORK)
    )
    rollout = count * options["n_steps"]
    if rollout == 1:
        raise UserError("environments = 1 and n_steps = 1: a rollout must be more than one step")
    if rollout % scale.batch_size:
        raise UserError(
            f"batch_size = {scale.batch_size}: a rollout of {count} environments times "
            f"n_steps = {options['n_steps']} is {rollout} steps, no whole number of batches"
        )
    environments = make(scale.data, count, **shown)
    is_image = is_image_space(environments.observation_space)
    policy = {
        "features_extractor_class": ImageFeatures if is_image else SignedFeatures,
        "features_extractor_kwargs": network,
        "net_arch": [] if is_image else None,
        "ortho_init": options["ortho_init"],
    }
    made = Learner(
        "CnnPolicy" if is_image else "MlpPolicy",
        environments,
        batch_size=scale.batch_size,
        normalize_advantage=False,
        max_grad_norm=math.inf,  # the optimizer clips, as on every task
        rollout_buffer_class=Rollouts,
        policy_kwargs=policy,
        device=device,
        **hyperparameters,
    )
    made.set_logger(Logger(folder=None, output_formats=[]))
    place(made.policy, device)
    return made


def train(
    task: "PPOTask", config: Config, report: Report, device: str, folder: Path | None
) -> Outcome:
    """Train a policy once; return the mean reward of its last training episodes and of test ones.

    All chance after initialisation is drawn anew at each evaluation, where episodes begin anew, so
    that nothing of the games has to be saved. In tests actions are drawn as in training. A game is
    drawn as ``game.png`` in ``folder`` where observations are images.
    """
    seeds = Seeds.of(config.seed)
    task, scale = task.at(config.scale), task.scale_of(config)
    torch.manual_seed(seeds.initialisation)
    model = learner(scale, device)
    rollout = model.n_envs * model.n_steps
    updates = replace(scale, steps=max(1, scale.steps // rollout))
    scale = replace(scale, steps=updates.steps * rollout)
    optimizer = model.policy.optimizer = config.build_optimizer(model.policy, scale.gradient_clip)
    model.schedule = LambdaLR(optimizer, updates.lr_factor)
    episodes = Episodes(scale.options["episodes"])
    parts = (model.policy, optimizer, model.schedule, episodes)
    run = Run(config, scale, report, folder, parts, torch.Generator(device))
    model.num_timesteps = run.resume()
    interval = math.ceil(updates.steps / scale.evaluations) * rollout
    try:
        while model.num_timesteps < scale.steps:
            _begin_anew(model, seeds)
            _learn(model, min(interval, scale.steps - model.num_timesteps), episodes)
            run.report(model.num_timesteps, task.capped(episodes.mean(task.worst)))
            run.save_if_due(model.num_timesteps)
        _begin_anew(model, seeds)
        test_value, frames = _play(model, scale.options["test_episodes"])
    except FloatingPointError:
        run.report(model.num_timesteps, task.worst)
        return task.diverged(steps=model.num_timesteps)
    if frames:
        run.write("game.png", partial(_save_filmstrip, frames))
    return Outcome(value=run.last, test_value=task.capped(test_value), steps=scale.steps)


def _begin_anew(model: Learner, seeds: Seeds) -> None:
    """Seed all chance by how far the run is, and have every episode begin anew."""
    seed = SeedSequence((seeds.noise, model.num_timesteps)).generate_state(1)[0]
    environments = model.get_env()
    assert environments is not None
    # Not the model's own method, which makes cuDNN slow for every task after this one.
    set_random_seed(int(seed))
    environments.seed(int(seed) // 2)  # they take 31 bits
    model.set_env(environments)  # has it reset them


@contextmanager
def _floating_point_errors() -> Iterator[None]:
    """Have torch check the parameters of distributions, and name what it raises of them.

    It does so by default, but not any more in a process that has compiled a model; unchecked ones
    would fail in the drawing of an action, which on a GPU ends the whole process.
    """
    checked = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    try:
        yield
    except ValueError as error:
        if str(error).startswith("Expected parameter"):
            raise FloatingPointError(str(error)) from error
        raise
    finally:
        Distribution.set_default_validate_args(checked)


def _learn(model: Learner, steps: int, episodes: Episodes) -> None:
    """Take that many environment steps.

    Raises:
        FloatingPointError: the policy's weights, or what it makes of an observation, are not finite.
    """
    with _floating_point_errors():
        model.learn(steps, episodes, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
    if not torch.stack([p.isfinite().all() for p in model.policy.parameters()]).all():
        raise FloatingPointError("weights are not finite")


def _play(model: PPO, count: int) -> tuple[float, list[np.ndarray]]:
    """Return the mean reward of ``count`` episodes, and the first one's frames if it has any.

    The frames are uint8, ``[height, width]``, some dozens from the whole of the game.

    Raises:
        FloatingPointError: what the policy makes of an observation is not finite.
    """
    frames: list[np.ndarray] = []
    kept, every = math.prod(FILMSTRIP), 1
    environments = model.get_env()
    assert environments is not None
    is_image = is_image_space(environments.observation_space)

    # The names are those of variables in ``evaluate_policy``, as it offers them to callbacks.
    def keep(now: dict[str, Any], _: dict[str, Any]) -> None:
        nonlocal every
        if not is_image or now["i"] or now["episode_counts"][0]:
            return
        if now["current_lengths"][0] % every == 0:
            frames.append(now["observations"][0, -1])
        if len(frames) > 2 * kept:
            del frames[1::2]
            every *= 2

    with _floating_point_errors():
        reward, _ = evaluate_policy(model, environments, count, deterministic=False, callback=keep)
    return float(np.mean(reward)), frames


def _save_filmstrip(frames: list[np.ndarray], file: Path) -> None:
    """Draw a game as a PNG, row by row."""
    from PIL import Image

    rows, columns = FILMSTRIP
    chosen = np.linspace(0, len(frames) - 1, rows * columns).round().astype(int)
    padded = [np.pad(frames[index], 1, constant_values=255) for index in chosen]
    grid = np.block([padded[row * columns : (row + 1) * columns] for row in range(rows)])
    Image.fromarray(grid).save(file, format="png")
