"""Environments of Gymnasium behind stable-baselines3's interface; Atari games run in ale-py's engine.

The engine plays several games in threads of its own and prepares their frames there, which is what
the standard wrappers do in Python. From the same first frame it gives the same rewards and ends of
episodes on the same actions. By its design it differs in this: it fires for one frame and then idles
for a number of frames that it draws itself, where the wrappers idle first and then hold two buttons
for four frames each; up to one pixel of 180 has another shade; and where a life is lost and the game
goes on, the wrappers press the buttons again, and the engine leaves that to the player (Pong has no
lives).
"""

from importlib import import_module
from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
from ale_py import roms
from ale_py.vector_env import AtariVectorEnv
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TransformReward
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from robustlr.errors import UnavailableError, UserError, unknown

gymnasium.register_envs(ale_py)

LONGEST_GAME = 108_000
"""Frames after which a game of Atari is cut off: half an hour, as in the standard environments."""

LONGEST_IDLE = 30
"""The most idle frames at the start of a game."""


class AtariGames(VecEnv):
    """Several games of one Atari cartridge, prepared as stable-baselines3's ``AtariWrapper`` does.

    A step holds an action for four frames and shows the brighter of the last two, in grey, stacked
    on those of the steps before: uint8, ``[games, frame_stack, frame_size, frame_size]``. Games start
    after up to ``idle`` idle frames and with the fire button, where there is one. Rewards are their
    signs; the loss of a life ends an episode. At the end of a game ``infos[i]["episode"]`` has its
    unclipped reward "r" and its number of steps "l", as from ``Monitor``.

    Args:
        game: The cartridge's name in ale-py, such as "pong".
        games: How many are played at once.
        frame_size: Height and width of a frame.
        frame_stack: How many frames make an observation.
        sticky: The probability that an action is ignored for the one before.

    Raises:
        UnavailableError: ale-py has no such cartridge here.
    """

    def __init__(
        self,
        game: str,
        games: int,
        *,
        frame_size: int = 84,
        frame_stack: int = 4,
        sticky: float = 0.0,
    ) -> None:
        _check_rom(game)
        self._engine = AtariVectorEnv(
            game,
            num_envs=games,
            num_threads=min(games, torch.get_num_threads()),
            max_num_frames_per_episode=LONGEST_GAME,
            repeat_action_probability=sticky,
            autoreset_mode=AutoresetMode.SAME_STEP,  # as stable-baselines3 resets
            img_height=frame_size,
            img_width=frame_size,
            stack_num=frame_stack,
            noop_max=LONGEST_IDLE,
            life_loss_info=True,  # ``episodic_life`` would begin a new game instead of the next life
            reward_clipping=False,
        )
        engine = self._engine
        super().__init__(games, engine.single_observation_space, engine.single_action_space)
        self._rewards = np.zeros(games)
        self._steps = np.zeros(games, dtype=np.int64)
        self._frames = np.zeros(games, dtype=np.int64)
        self._actions = np.zeros(games, dtype=np.int64)

    def reset(self) -> np.ndarray:
        """Start every game anew, with the seeds that ``seed`` gave, if it was called."""
        seeds = np.array([-1 if seed is None else seed for seed in self._seeds])
        observations, facts = self._engine.reset(seed=seeds)
        self._reset_seeds()
        self._rewards[:] = self._steps[:] = 0
        self._frames = facts["episode_frame_number"]
        return np.asarray(observations)

    def step_async(self, actions: np.ndarray) -> None:
        """Take the actions of the next step."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Play the step; the observation after an end is the first one of what follows."""
        observations, rewards, terminated, truncated, facts = self._engine.step(self._actions)
        self._rewards += rewards
        self._steps += 1
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for game in np.flatnonzero(done):
            # With another life: a game that begins anew is at most 32 frames old.
            goes_on = facts["episode_frame_number"][game] > self._frames[game]
            last = observations if goes_on else facts["final_obs"]
            infos[game] = {
                "terminal_observation": last[game],
                "TimeLimit.truncated": bool(truncated[game] and not terminated[game]),
            }
            if not goes_on:
                reward, steps = float(self._rewards[game]), int(self._steps[game])
                infos[game]["episode"] = {"r": reward, "l": steps}
                self._rewards[game] = self._steps[game] = 0
        self._frames = facts["episode_frame_number"]
        return observations, np.sign(rewards).astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing is open: the engine ends with the object."""

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Return that each game keeps a ``Monitor``'s statistics, and is wrapped in nothing else."""
        return [wrapper_class is Monitor] * len(list(self._get_indices(indices)))

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return the engine's attribute, which its games share, once for each game."""
        return [getattr(self._engine, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: the games are no objects of their own."""
        raise AttributeError(f"{attr_name} cannot be set: the games share one engine")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: the games are no objects of their own."""
        raise AttributeError(f"{method_name} cannot be called: the games share one engine")


def make(environment: str, count: int, **options: Any) -> VecEnv:
    """Return ``count`` environments that report the true reward of every episode.

    Args:
        environment: An id of Gymnasium's. Any Atari game is prepared as in ``AtariGames``, with the
            sticky actions that its id stands for, but always with four frames a step.
        count: How many.
        options: Of an Atari game ``frame_size`` and ``frame_stack``; of others ``reward_scale``, what
            rewards are multiplied by.

    Raises:
        UserError: there is no such environment, or it has no such option.
        UnavailableError: it needs a cartridge or a package that is not installed.
    """
    spec = find(environment)
    is_atari = spec.entry_point == "ale_py.env:AtariEnv"
    known = ("frame_size", "frame_stack") if is_atari else ("reward_scale",)
    for name in options:
        if name not in known:
            raise unknown(f"option of {environment}", name, known)
    if is_atari:
        sticky = spec.kwargs["repeat_action_probability"]
        return AtariGames(spec.kwargs["game"], count, sticky=sticky, **options)
    scale = options.get("reward_scale", 1.0)
    try:
        return make_vec_env(
            environment,
            count,
            # Around ``Monitor``, which sees the true rewards
            wrapper_class=lambda one: TransformReward(one, lambda reward: scale * float(reward)),
        )
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise UnavailableError(f"{environment} needs more packages: {error}") from error
    except gymnasium.error.Error as error:
        raise UserError(f"{environment} cannot be made: {error}") from error


def find(environment: str) -> EnvSpec:
    """Return what Gymnasium knows of an environment.

    Raises:
        UserError: there is no such environment.
        UnavailableError: the module before its colon cannot be imported.
    """
    module, _, name = environment.rpartition(":")
    try:
        if module:
            import_module(module)
        return gymnasium.spec(name)
    except ImportError as error:
        raise UnavailableError(f"{environment} cannot be imported: {error}") from error
    except gymnasium.error.Error:
        raise unknown("environment of Gymnasium", environment, gymnasium.registry) from None


def _check_rom(game: str) -> None:
    try:
        roms.get_rom_path(game)
    except OSError as error:
        problem = " ".join(str(error).split())
        raise UnavailableError(
            f"ale-py has no usable ROM of {game} ({problem}): "
            "pip install --force-reinstall ale-py, and leave ALE_ROMS_DIR unset"
        ) from error
