"""Atari in ale-py's engine against the standard wrappers, and what a wrong name is told.

The reference plays with Gymnasium's own environments and stable-baselines3's wrappers. Its games are
started as the engine starts them, with as many frames, so that the same actions must lead to the same.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.atari_wrappers import ClipRewardEnv, MaxAndSkipEnv, WarpFrame
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from torch.nn.functional import cosine_similarity

from robustlr.errors import UnavailableError, UserError
from robustlr.registry import load_task
from robustlr.tasks._environments import AtariGames, find, make
from robustlr.tasks._ppo import learner
from tests.helpers import ROOT

GAMES = 2
NOOP, FIRE = 0, 1


class Reference:
    """A game in the standard wrappers; ``step`` says what the engine should."""

    def __init__(self, environment: str) -> None:
        self.raw = gymnasium.make(environment).unwrapped
        self.monitor = Monitor(self.raw)
        self.wrapped = ClipRewardEnv(WarpFrame(MaxAndSkipEnv(self.monitor, skip=4)))
        self.stack = np.zeros((4, 84, 84), dtype=np.uint8)
        self.lives = 0

    def start(self, frames: int) -> np.ndarray:
        """Begin a game as the engine does: fire for one frame, then idle."""
        self.wrapped.reset()
        for frame in range(frames):
            seen, _, _, _, info = self.monitor.step(NOOP if frame else FIRE)
        self.lives = info["lives"]
        self.stack[:-1] = 0
        self.stack[-1] = self.wrapped.env.observation(seen)[..., 0]  # type: ignore[attr-defined]
        self.steps = 0
        return self.stack.copy()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, float] | None]:
        """Return the stacked frames, the clipped reward, whether a life is lost, and a game's facts."""
        seen, reward, terminated, truncated, info = self.wrapped.step(action)
        self.stack = np.concatenate([self.stack[1:], seen.transpose(2, 0, 1)])
        self.steps += 1
        over = terminated or truncated
        lost = info["lives"] < self.lives
        self.lives = info["lives"]
        facts = {"r": info["episode"]["r"], "l": self.steps} if over else None
        return self.stack, float(reward), over or lost, facts


def _step(games: VecEnv, *actions: int) -> np.ndarray:
    """Return what a step shows, or without actions a reset."""
    return np.asarray(games.step(np.array(actions))[0] if actions else games.reset())


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("PongNoFrameskip-v4", 2500),
        ("BreakoutNoFrameskip-v4", 1500),
        ("SpaceInvadersNoFrameskip-v4", 1500),
    ],
)
def test_games_are_those_of_the_standard_wrappers(name: str, steps: int) -> None:
    """Pong, one with lives, and one whose points are not 1."""
    ours = make(name, GAMES)
    assert isinstance(ours, AtariGames)
    ours.seed(5)
    frames = _step(ours)
    references = [Reference(name) for _ in range(GAMES)]
    for game, reference in enumerate(references):
        assert (reference.start(ours._frames[game]) != frames[game]).mean() < 0.01
    actions = np.random.default_rng(0)
    games: list[dict[str, float]] = []
    differing: list[float] = []
    for _ in range(steps):
        chosen = actions.integers(ours.action_space.n, size=GAMES)  # type: ignore[attr-defined]
        shown, rewards, ends, infos = ours.step(chosen)
        frames = np.asarray(shown)
        for game, reference in enumerate(references):
            expected, reward, end, facts = reference.step(chosen[game])
            assert (rewards[game], ends[game]) == (reward, end)
            assert infos[game].get("episode") == facts
            seen = infos[game]["terminal_observation"] if end else frames[game]
            differing.append((seen != expected).mean())
            if facts:
                games.append(facts)
                assert not infos[game]["TimeLimit.truncated"]
                started = reference.start(ours._frames[game])
                assert (started != frames[game]).mean() < 0.01
    assert len(games) >= 2
    assert max(differing) < 0.01
    if name.startswith("SpaceInvaders"):
        assert max(facts["r"] for facts in games) > 20, "statistics are of the true points"


def test_other_shades_hardly_turn_a_gradient() -> None:
    """What the engine's frames change of the published network's gradient, on a game of Pong."""
    scale = load_task("pong").scales["paper"]
    torch.manual_seed(0)
    policy = learner(scale).policy
    ours, reference = AtariGames("pong", 1), Reference("PongNoFrameskip-v4")
    ours.seed(0)
    frames = _step(ours)
    pairs = [(frames[0], reference.start(ours._frames[0]))]
    actions = np.random.default_rng(0).integers(6, size=255)
    for action in actions:
        frames = _step(ours, action)
        pairs.append((frames[0], reference.step(action)[0].copy()))
    taken = torch.from_numpy(np.append(actions, 0))
    gradients = []
    advantages = torch.randn(256)
    for side in zip(*pairs, strict=True):  # the engine's frames, and the wrappers'
        seen = torch.from_numpy(np.stack(side))
        values, log_probabilities, _ = policy.evaluate_actions(seen, taken)
        loss = (advantages * log_probabilities).mean() + (values - 1).square().mean()
        found = torch.autograd.grad(loss, list(policy.parameters()))
        gradients.append(torch.cat([part.flatten() for part in found]))
    one, other = gradients
    assert not torch.equal(one, other)
    assert cosine_similarity(one, other, dim=0) > 0.999


def test_what_the_engine_does_otherwise_at_the_start_of_a_game() -> None:
    """The standard stack holds two buttons for four frames each; the engine fires for one frame."""
    ours = AtariGames("pong", 4)
    ours.seed(0)
    ours.reset()
    assert all(1 <= frame <= 31 for frame in ours._frames)
    assert len(set(ours._frames)) > 1
    standard = make_atari_env("PongNoFrameskip-v4", 1, wrapper_kwargs={"noop_max": 1})
    standard.reset()
    (frames,) = standard.env_method("get_wrapper_attr", "ale")
    assert frames.getEpisodeFrameNumber() == 9


def _random_games(games: VecEnv) -> tuple[np.ndarray, np.ndarray]:
    """Return rewards and lengths of two games of each on random actions."""
    games.seed(0)
    games.reset()
    actions = np.random.default_rng(0)
    ended: list[list[dict[str, float]]] = [[] for _ in range(games.num_envs)]
    while min(map(len, ended)) < 2:
        _, _, _, infos = games.step(actions.integers(6, size=games.num_envs))
        for own, info in zip(ended, infos, strict=True):
            own += [info["episode"]] if "episode" in info else []
    played = [facts for own in ended for facts in own[:2]]
    return np.array([f["r"] for f in played]), np.array([f["l"] for f in played])


def test_another_start_makes_no_other_game() -> None:
    """Rewards and lengths of random games, whose first frames the two stacks idle through otherwise."""
    ours = _random_games(AtariGames("pong", 8))
    standard = _random_games(make_atari_env("PongNoFrameskip-v4", 8))
    frames_a_step = 4
    for one, other, unit in zip(ours, standard, (1, frames_a_step), strict=True):
        other = other / unit  # ``Monitor`` counts frames below the wrapper that skips them
        error = np.hypot(one.std(ddof=1), other.std(ddof=1)) / np.sqrt(len(one))
        assert error < abs(one.mean()) / 20
        assert abs(one.mean() - other.mean()) < 3 * error


def test_seeds_decide_the_games() -> None:
    seen = []
    for seed in (3, 3, 4):
        games = AtariGames("pong", 2)
        games.seed(seed)
        seen.append(np.stack([_step(games), *(_step(games, 2, 3) for _ in range(60))]))
    assert np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])


def test_sticky_actions_are_those_of_the_id() -> None:
    """On the same seeds and actions, ALE/Pong-v5 ignores some of them."""
    shown = []
    for name in ("PongNoFrameskip-v4", "ALE/Pong-v5"):
        games = make(name, 1)
        games.seed(0)
        games.reset()
        actions = np.random.default_rng(0).integers(6, size=(200, 1))
        shown.append(np.stack([_step(games, *action) for action in actions]))
    assert not np.array_equal(shown[0], shown[1])


def test_other_environments_are_scaled_behind_their_statistics() -> None:
    poles = make("CartPole-v1", 2, reward_scale=0.02)
    poles.seed(0)
    poles.reset()
    ended: list[dict[str, float]] = []
    while not ended:
        _, rewards, _, infos = poles.step(np.array([1, 1]))
        assert rewards == pytest.approx([0.02, 0.02])
        ended = [info["episode"] for info in infos if "episode" in info]
    assert ended[0]["r"] == ended[0]["l"] > 5


def test_an_unknown_environment_is_named_with_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r'named "PogNoFrameskip-v4"; did you mean "PongNoFrameskip-v4"\?'
    ):
        find("PogNoFrameskip-v4")
    with pytest.raises(UserError, match=r'"CartPole"; did you mean "CartPole-v[01]"\?'):
        find("CartPole")
    with pytest.raises(UnavailableError, match=r"^nothing:Env-v0 cannot be imported: .*'nothing'"):
        find("nothing:Env-v0")
    with pytest.raises(UserError, match=r"and \d+ more") as refused:
        find("?")
    assert len(str(refused.value)) < 2000


def test_an_option_of_other_environments_is_refused() -> None:
    with pytest.raises(UserError, match='option of PongNoFrameskip-v4 is named "reward_scale"'):
        make("PongNoFrameskip-v4", 1, reward_scale=0.5)
    with pytest.raises(UserError, match='option of CartPole-v1 is named "frame_size"'):
        make("CartPole-v1", 1, frame_size=84)


def test_a_missing_or_damaged_rom_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    sentence = "ale-py has no usable ROM of pong .*pip install --force-reinstall ale-py"
    with pytest.raises(UnavailableError, match=sentence):
        make("PongNoFrameskip-v4", 1)
    (tmp_path / "pong.bin").write_bytes(b"not a game")
    with pytest.raises(UnavailableError, match=sentence):
        make("PongNoFrameskip-v4", 1)


@pytest.mark.parametrize("package", ["stable_baselines3", "gymnasium", "ale_py"])
def test_a_missing_package_is_named(package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from robustlr.errors import UnavailableError\n"
        "from robustlr.registry import load_task\n"
        "task = load_task('pong')\n"
        "try: task.check(task.scales['small'])\n"
        "except UnavailableError as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert package in found.stdout
    assert "pip install 'robustlr[rl]'" in found.stdout


@pytest.mark.skipif(find_spec("Box2D") is not None, reason="the package is installed")
def test_an_environment_that_needs_another_package_says_so() -> None:
    with pytest.raises(UnavailableError, match=r"^LunarLander-v3 needs more packages: .*Box2D"):
        make("LunarLander-v3", 1)
