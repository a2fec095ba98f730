"""How fast Pong is played and learnt from, against the environments of stable-baselines3.

    python benchmarks/pong.py [--device cuda] [--train]

``environment`` counts steps of eight games (four frames each) on random actions, ``ppo`` those of
training at paper scale with Nero, whole rollouts with their gradient steps. Rows: ``robustlr`` plays
in ale-py's engine; ``DummyVecEnv`` and ``SubprocVecEnv`` are stable-baselines3's ``make_atari_env`` with
frames stacked, and with the same policy and hyperparameters. A round times each of the three, in
random order; figures are medians over the rounds, and ``speedup`` is the median over the rounds of
robustlr's rate over the row's. Every row may use all cores of the machine, but that of one thread, which
plays in the engine as a CPU worker does.

``--train`` plays Learning by Turning's five million steps with Nero at 0.01 and Adam at 1e-4, on one
seed, and writes minutes, rewards and curves beside the published rewards. It is for a GPU.

Prints a table and writes it to ``benchmarks/results/``.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecFrameStack,
)
from timing import show, time_rounds, write
from torch.optim.lr_scheduler import LambdaLR

from robustlr.task import Config
from robustlr.tasks._environments import make
from robustlr.tasks._ppo import Learner, learner
from robustlr.tasks.reinforcement import pong

OURS, ONE_THREAD = "robustlr", "robustlr, one thread"
SCALE = pong.scales["paper"]
GAMES = SCALE.options["environments"]
STEPS = 512
"""Steps of every game that are timed at once."""

PUBLISHED = {"nero": 20.62, "adam": 15.92}
SETTINGS: Mapping[str, Mapping[str, float]] = {
    "nero": {"lr": 0.01},
    "adam": {"lr": 1e-4, "beta1": 0.0, "eps": 1e-5},
}


def environments() -> dict[str, VecEnv]:
    """Return the ways to play eight games."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the engine takes as many
    one_thread = make(SCALE.data, GAMES)
    torch.set_num_threads(threads)
    standard = {
        kind.__name__: VecFrameStack(make_atari_env(SCALE.data, GAMES, vec_env_cls=kind), 4)
        for kind in (DummyVecEnv, SubprocVecEnv)
    }
    return {OURS: make(SCALE.data, GAMES), ONE_THREAD: one_thread, **standard}


def play(games: VecEnv) -> None:
    """Play on random actions."""
    actions = np.random.default_rng(0).integers(6, size=(STEPS, GAMES))
    for action in actions:
        games.step(action)


def policy(games: VecEnv, device: str) -> Learner:
    """Return a policy with Nero that plays in ``games``."""
    model = learner(SCALE, device)
    config = Config(task=pong.name, optimizer="nero", hyperparameters={"lr": 0.01}, seed=0)
    optimizer = config.build_optimizer(model.policy, SCALE.gradient_clip)
    model.policy.optimizer = optimizer
    model.schedule = LambdaLR(optimizer, lambda update: 1.0)
    model.set_env(games)
    return model


def rates(times: dict[str, list[float]], steps: int, what: str) -> list[dict[str, Any]]:
    """Return a row of steps a second for each way to play."""
    return [
        {
            "what": what,
            "environments": name,
            "steps_per_second": round(steps / statistics.median(times[name])),
            "speedup": statistics.median(
                theirs / ours for theirs, ours in zip(times[name], times[OURS], strict=True)
            ),
        }
        for name in times
    ]


def measure(device: str, rounds: int) -> list[dict[str, Any]]:
    """Return rows of both rates."""
    games = environments()
    for one in games.values():
        one.reset()
        play(one)
    parts = {name: (lambda one=one: play(one)) for name, one in games.items()}
    rows = rates(time_rounds(parts, device, rounds), STEPS * GAMES, "environment")
    models = {name: policy(games[name], device) for name in games if name != ONE_THREAD}
    rollout = GAMES * SCALE.options["n_steps"]
    learn = {
        name: (lambda model=model: model.learn(rollout, reset_num_timesteps=False))
        for name, model in models.items()
    }
    for run in learn.values():
        run()
    rows += rates(time_rounds(learn, device, rounds), rollout, "ppo")
    for one in games.values():
        one.close()
    return rows


def train(optimizer: str, device: str) -> dict[str, Any]:
    """Return the row of a whole training run."""
    setting = SETTINGS[optimizer]
    config = Config(
        task=pong.name, optimizer=optimizer, hyperparameters=setting, seed=0, scale="paper"
    )
    curve: list[tuple[int, float]] = []

    def report(step: int, reward: float) -> None:
        curve.append((step, reward))
        print(f"{optimizer}: {step} steps, reward {reward:.2f}", flush=True)

    started = time.perf_counter()
    outcome = pong.run(config, report, device)
    return {
        "what": "training",
        "optimizer": optimizer,
        **setting,
        "minutes": (time.perf_counter() - started) / 60,
        "reward": outcome.value,
        "test_reward": outcome.test_value,
        "published": PUBLISHED[optimizer],
        "curve": curve,
    }


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train", action="store_true", help="play five million steps too")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    rows = measure(arguments.device, arguments.rounds)
    if arguments.train:
        rows += [train(optimizer, arguments.device) for optimizer in SETTINGS]
    for row in rows:
        show({name: value for name, value in row.items() if name != "curve"})
    write("pong", arguments.device, rows, threads=cores)


if __name__ == "__main__":
    main()
