"""Policies: the published network and schedule, any optimizer in them, and that they learn."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Distribution
from torch.optim.lr_scheduler import LambdaLR

from robustlr.errors import UserError
from robustlr.optim.nero import Nero
from robustlr.optim.rv_adamw import RVAdamW
from robustlr.registry import load_optimizer, optimizers
from robustlr.scale import Scale
from robustlr.space import Value
from robustlr.task import Config, Seeds
from robustlr.tasks._ppo import Learner, Rollouts, learner
from robustlr.tasks.reinforcement import PPOTask, cartpole_ppo, pong
from tests.runs import ignore, run_to_end, with_little_data


def _config(task: str, optimizer: str, **hyperparameters: Value) -> Config:
    return Config(task=task, optimizer=optimizer, hyperparameters=hyperparameters, seed=0)


def _short(task: PPOTask, rollouts: int, **options: Any) -> PPOTask:
    task = with_little_data(task)
    own = task.scales["small"]
    scale = replace(own, steps=256 * rollouts, options={**own.options, **options})
    return replace(task, scales={"small": scale})


def _policy(scale: Scale, optimizer: str, **hyperparameters: Value) -> ActorCriticPolicy:
    policy = learner(scale).policy
    policy.optimizer = _config("pong", optimizer, **hyperparameters).build_optimizer(policy)
    return policy


def test_the_published_network() -> None:
    policy = learner(pong.scales["paper"]).policy
    sizes = [p.numel() for p in policy.parameters()]
    assert (len(sizes), sum(sizes)) == (12, 866_439)
    rows = {name: p.detach().norm(dim=1) for name, p in policy.named_parameters() if p.dim() == 2}
    for name, norm in (("action_net.weight", 0.01), ("value_net.weight", 1.0)):
        assert rows[name] == pytest.approx(torch.full_like(rows[name], norm).tolist(), rel=1e-5)
    assert not any(p.any() for name, p in policy.named_parameters() if name.endswith("bias"))
    frames = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
    bright = policy.extract_features(torch.full_like(frames, 255))
    features = policy.features_extractor(torch.ones(2, 4, 84, 84))
    assert torch.equal(torch.as_tensor(bright), features), "pixels are divided by 255"


def test_advantages_are_normalised_over_a_whole_rollout() -> None:
    model = learner(cartpole_ppo.scales["small"])
    buffer = model.rollout_buffer
    assert isinstance(buffer, Rollouts)
    drawn = np.random.default_rng(0)
    buffer.rewards[:] = drawn.normal(size=buffer.rewards.shape)
    buffer.values[:] = drawn.normal(size=buffer.rewards.shape)
    ends = np.zeros(model.n_envs, dtype=bool)
    buffer.compute_returns_and_advantage(torch.zeros(model.n_envs), ends)
    true = buffer.returns - buffer.values
    assert abs(true.mean()) > 1e-3
    expected = (true - true.mean()) / true.std(ddof=1)
    assert np.allclose(buffer.advantages, expected, atol=1e-3)


class NotedSGD(torch.optim.SGD):
    """SGD with a tenth of the learning rate for biases, which notes all of them."""

    rates: ClassVar[list[list[float]]] = []

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.param_groups[1]["lr"] *= 0.1

    def step(self, closure: Any = None) -> Any:
        self.rates.append([group["lr"] for group in self.param_groups])
        return super().step(closure)


@pytest.mark.parametrize(
    ("warmup", "shares"), [(0.0, (1, 0.75, 0.5, 0.25)), (0.5, (0.5, 1, 1, 0.5))]
)
def test_the_learning_rate_changes_with_the_rollout_in_every_group(
    warmup: float, shares: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NotedSGD, "rates", [])
    task = _short(cartpole_ppo, rollouts=4, n_epochs=2)
    task = replace(task, scales={"small": replace(task.scales["small"], warmup=warmup)})
    task.run(_config(task.name, f"{__name__}:NotedSGD", lr=0.1), ignore)
    assert np.allclose(NotedSGD.rates, [[0.1 * f, 0.01 * f] for f in shares for _ in range(2)])


def test_pong_falls_to_nothing_over_4882_updates_as_published() -> None:
    scale = pong.scales["paper"]
    rollout = scale.options["environments"] * scale.options["n_steps"]
    assert scale.steps == 4882 * rollout
    assert scale.lr_factor(0) == 1
    assert scale.lr_factor(4881 * rollout) == pytest.approx(1 / 4882)


@pytest.mark.parametrize("name", optimizers())
def test_every_optimizer_trains_a_policy(name: str) -> None:
    task = _short(cartpole_ppo, rollouts=2)
    ended = run_to_end(task, _config(task.name, name, lr=0.01))
    policy, optimizer = ended.states[:2]
    assert not ended.outcome.diverged
    assert ended.outcome.steps == 512
    assert optimizer["param_groups"][0]["initial_lr"] == 0.01
    torch.manual_seed(Seeds.of(0).initialisation)
    begun = learner(task.scales["small"]).policy
    _config(task.name, name, lr=0.01).build_optimizer(begun)  # some change weights
    weights = {key: value for key, value in begun.state_dict().items() if "weight" in key}
    assert not any(torch.equal(policy[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", optimizers())
def test_every_optimizer_class_plugs_into_stable_baselines(name: str) -> None:
    """As its users pass one: the class and keyword arguments."""
    entry = load_optimizer(name)
    keywords: dict[str, Any] = {**entry.default, **entry.options}
    betas = [keywords.pop(beta, entry.arguments.get(beta)) for beta in ("beta1", "beta2")]
    if "beta1" in entry.arguments:
        keywords["betas"] = tuple(betas)
    policy = {"optimizer_class": entry.optimizer, "optimizer_kwargs": keywords}
    lr = keywords.pop("lr")
    model = PPO("MlpPolicy", "CartPole-v1", lr, 64, policy_kwargs=policy, seed=0, device="cpu")
    weights = [p for p in model.policy.parameters() if p.dim() > 1]  # Madam leaves biases at zero
    before = [p.clone() for p in weights]
    model.learn(128)
    assert all(p.isfinite().all() for p in model.policy.parameters())
    assert not any(torch.equal(p, q) for p, q in zip(before, weights, strict=True))


def test_nero_replaces_the_norms_of_the_orthogonal_initialisation() -> None:
    """What interferes: the action head begins with rows of norm 1, where PPO wants 0.01."""
    policy = _policy(pong.scales["small"], "nero", lr=0.01)
    assert isinstance(policy.optimizer, Nero)
    for parameter in policy.parameters():
        if parameter.dim() > 1:
            rows = parameter.detach().flatten(1)
            assert rows.norm(dim=1).tolist() == pytest.approx([1.0] * len(rows), rel=1e-5)
            assert rows.mean(dim=1).abs().max() < 1e-6


def test_rotational_variants_keep_the_norms_of_the_orthogonal_initialisation() -> None:
    """What interferes: a head with rows of norm 0.01 that only turn never leaves a uniform policy."""
    keys = {"lr": 0.01, "weight_decay": 0.1}
    policy = _policy(pong.scales["small"], "rv-adamw", **keys)
    assert isinstance(policy.optimizer, RVAdamW)
    decay = {id(p): g["weight_decay"] for g in policy.optimizer.param_groups for p in g["params"]}
    for parameter in policy.parameters():
        assert decay[id(parameter)] == (0.1 if parameter.dim() > 1 else 0.0)
    heads = {}
    for ortho_init in (True, False):
        task = _short(cartpole_ppo, rollouts=12, ortho_init=ortho_init)
        state = run_to_end(task, _config(task.name, "rv-adamw", **keys)).states[0]
        heads[ortho_init] = state["action_net.weight"].norm(dim=1).max().item()
    assert heads[True] == pytest.approx(0.01, rel=0.2)
    assert heads[False] > 0.3


def test_gradients_are_clipped_once_and_by_the_optimizer() -> None:
    seen: list[float] = []
    scale = _short(cartpole_ppo, rollouts=1).scales["small"]
    assert scale.gradient_clip == 0.5
    model = learner(scale)
    config = _config("cartpole-ppo", "sgd", lr=0.01)
    model.policy.optimizer = config.build_optimizer(model.policy, scale.gradient_clip)

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad.norm() for g in optimizer.param_groups for p in g["params"]]
        seen.append(torch.stack(grads).norm().item())

    model.policy.optimizer._optimizer_step_pre_hooks = {  # before its own hook
        -1: note,
        **model.policy.optimizer._optimizer_step_pre_hooks,
        10**6: note,
    }
    model.schedule = LambdaLR(model.policy.optimizer, lambda _: 1.0)
    with torch.no_grad():
        model.policy.value_net.bias.fill_(100.0)
    model.learn(256)
    assert seen[0] > 1, "the gradient arrives as it is"
    assert seen[1] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("environment", "optimizer", "lr"),
    [("CartPole-v1", "sgdm", 1e30), ("Pendulum-v1", "adam", 1e3)],
)
@pytest.mark.parametrize("compiled_before", [False, True])
def test_a_policy_that_is_not_a_number_has_diverged(
    environment: str,
    optimizer: str,
    lr: float,
    compiled_before: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of weights, or of the spread of a continuous action; torch checks less once it has compiled."""
    monkeypatch.setattr(Distribution, "_validate_args", not compiled_before)
    task = _short(cartpole_ppo, rollouts=8)
    task = replace(task, scales={"small": replace(task.scales["small"], data=environment)})
    curve: list[float] = []
    config = _config(task.name, optimizer, lr=lr)
    outcome = task.run(config, lambda step, value: curve.append(value))
    assert outcome == replace(outcome, value=task.worst, test_value=task.worst, diverged=True)
    assert curve[-1] == task.worst
    assert Distribution._validate_args == (not compiled_before), "it is left as it was"


def test_other_errors_are_not_taken_for_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Learner, *args: Any) -> None:
        raise ValueError("something else")

    monkeypatch.setattr(Learner, "train", broken)
    with pytest.raises(ValueError, match="something else"):
        _short(cartpole_ppo, rollouts=1).run(_config("cartpole-ppo", "sgd", lr=0.1), ignore)


def test_a_game_is_drawn(tmp_path: Path) -> None:
    _short(pong, rollouts=1).run(_config("pong", "adam", lr=1e-3), ignore, folder=tmp_path)
    picture = np.asarray(Image.open(tmp_path / "game.png"))
    assert picture.shape == (4 * 44, 8 * 44)
    frames = picture.reshape(4, 44, 8, 44).swapaxes(1, 2).reshape(32, 44, 44)
    assert len(np.unique(frames, axis=0)) > 24, "a game that goes on"
    assert frames.max(axis=(1, 2)).min() > 100, "with a ball, paddles or points"


def test_training_and_test_episodes_are_apart() -> None:
    task = _short(cartpole_ppo, rollouts=2, test_episodes=40)
    more = _short(cartpole_ppo, rollouts=2, test_episodes=2)
    config = _config(task.name, "adam", lr=0.01)
    one, other = (run_to_end(one, config) for one in (task, more))
    assert one.outcome.value == other.outcome.value
    assert one.outcome.test_value != other.outcome.test_value


def test_unknown_options_are_refused() -> None:
    scale = pong.scales["small"]
    with pytest.raises(
        UserError, match=r'of a policy is named "clip_rang"; did you mean "clip_range"'
    ):
        pong.check(replace(scale, options={**scale.options, "clip_rang": 0.2}))
    pong.check(replace(scale, options={**scale.options, "clip_range_vf": None}))
    one = {**scale.options, "environments": 1, "n_steps": 1}
    with pytest.raises(UserError, match="must be more than one step"):
        pong.check(replace(scale, batch_size=1, options=one))


def test_a_batch_that_does_not_divide_a_rollout_is_refused() -> None:
    scale = cartpole_ppo.scales["small"]
    with pytest.raises(UserError, match=r"batch_size = 100: .* is 1024 steps, no whole number"):
        cartpole_ppo.check(replace(scale, batch_size=100))
    with pytest.raises(UserError, match=r'"CartPole-v9"; did you mean "CartPole-v'):
        cartpole_ppo.check(replace(scale, data="CartPole-v9"))


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("environments", 0, "at least 1"),
        ("n_steps", 0, "at least 1"),
        ("episodes", 0, "at least 1"),
        ("gamma", 1.1, "at most 1"),
        ("clip_range", -0.1, "at least 0"),
        ("frame_size", 35, "at least 36"),
    ],
)
def test_options_that_make_no_sense_are_refused(option: str, value: float, bound: str) -> None:
    scale = pong.scales["small"]
    with pytest.raises(UserError, match=f"^{option} = {value}: it must be {bound}$"):
        pong.check(replace(scale, options={**scale.options, option: value}))
    pong.check(replace(scale, options={**scale.options, "frame_size": 36}))


def test_any_environment_is_a_task() -> None:
    own = cartpole_ppo.scales["small"]
    for environment in ("Acrobot-v1", "Pendulum-v1", "BreakoutNoFrameskip-v4"):
        options = dict(own.options)
        if environment.startswith("Breakout"):
            del options["reward_scale"]
        scale = replace(own, data=environment, options=options)
        task = PPOTask(name="mine", summary="mine", worst=-2000.0, scales={"small": scale})
        task.check(task.scales["small"])
        ended = run_to_end(_short(task, rollouts=1), _config("mine", "nero", lr=0.01))
        assert not ended.outcome.diverged


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 1e-2), ("adamw", 1e-2), ("nero", 3e-2)])
def test_cartpole_is_learnt(optimizer: str, lr: float) -> None:
    """500 is the most there is."""
    outcome = cartpole_ppo.run(_config("cartpole-ppo", optimizer, lr=lr), ignore)
    assert outcome.value >= 475
    assert outcome.test_value is not None
    assert outcome.test_value >= 475
