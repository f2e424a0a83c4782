"""`collm tune-policy`: PPO, DQN or LinUCB over traces, exported to a policy file.

PPO (Schulman et al., arXiv 1707.06347) and DQN (Mnih et al. 2015) are stable-baselines3's, with a
tanh network of two times 32; one thread on the CPU, since such networks are too small to share.
They start from `collm.tune.policy_warm`: from noise, PPO needs millions of steps to find what the
traces tell outright. What reinforcement adds is kept only where it raises the reward on texts that
were kept out; otherwise the start is the policy, and the result says so.

LinUCB passes over the rows once, learning from each row whose token the cloud gave.

On SmolLM2-135M (66,000 rows) it did not: 200,000 steps of PPO, at rates of 2e-5 to 2e-4 and λ of
0.5 to 0.95, took the reward from −0.940 to −0.947 or less. The start uses what every action would
have earned, PPO only what its own actions did.

Rows of a text do not depend on what was taken before, so a short horizon is as good as a long one:
rewards are centred and GAE's λ is 0.8, which keeps other rows' luck out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from collm.errors import UsageError
from collm.model.policy_file import PolicyFile
from collm.policy.bandit import ALPHA, LinUcb
from collm.policy.learned import LINUCB, NETWORK, LearnedPolicy, network_layers
from collm.tune.policy_env import PolicyEnv, Weights, play, trace_features
from collm.tune.policy_families import policy_of
from collm.tune.policy_warm import (
    HIDDEN,
    WarmSettings,
    decisions,
    network_tensors,
    split_texts,
    warm_start,
)
from collm.tune.trace_file import Traces

F32 = npt.NDArray[np.float32]

KINDS = ("ppo", "dqn", "linucb")
STEPS = 200_000
_ENVS = 16
_PPO_RATE = 1e-4
_CHECKS = 10
"""How often during training the policy is tried on the texts that were kept out."""
Told = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A policy, and what it earns per row on texts that training did not see."""

    policy: PolicyFile
    reward: float
    start_reward: float
    """The start's: without reinforcement (LinUCB: before it learnt anything)."""
    always_cloud: float
    """Asking the cloud for every token."""


def train_policy(
    traces: Traces,
    kind: str,
    weights: Weights,
    *,
    steps: int = STEPS,
    seed: int = 0,
    warm: WarmSettings | None = None,
    progress: Told | None = None,
) -> Trained:
    """Train on the traces' texts, a fifth kept out to choose by. Raises UsageError."""
    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: expected {', '.join(KINDS)}")
    torch.set_num_threads(1)
    if kind == "linucb":
        return _train_linucb(traces, weights, seed, progress)
    fit_R, choose_R = split_texts(traces, seed)
    fit, choose = _rows_of(traces, fit_R), _rows_of(traces, choose_R)
    network = warm_start(traces, weights, warm or WarmSettings(), seed=seed, progress=progress)
    start = network_tensors(network)
    chooser = _Chooser(choose, weights)
    start_reward = chooser.reward(start)
    best, reward = start, start_reward
    if steps:
        reached = _reinforce(kind, fit, weights, network, chooser, steps, seed, progress)
        if reached is not None and reached[1] > start_reward:
            best, reward = reached
    about = _about(traces, kind, weights, seed) | {
        "steps": steps,
        "reward": reward,
        "start_reward": start_reward,
        "reinforced": best is not start,
    }
    return Trained(
        policy=policy_of(traces, NETWORK, best, about),
        reward=reward,
        start_reward=start_reward,
        always_cloud=_always_cloud(choose, weights),
    )


class _Chooser:
    """Reward per row of a network that decides without chance, on rows kept out."""

    def __init__(self, traces: Traces, weights: Weights) -> None:
        self._traces, self._weights = traces, weights
        self._features_ERF = trace_features(traces)

    def reward(self, tensors: dict[str, F32]) -> float:
        layers = network_layers(tensors, self._features_ERF.shape[2])
        policy = LearnedPolicy(layers, self._traces.cuts)
        takes = np.stack([policy.scores(rows) >= 0 for rows in self._features_ERF], axis=1)
        return play(self._traces, self._weights, takes)


class _Watch(BaseCallback):
    """Tells how far training is, stops at NaN, keeps the best network."""

    def __init__(
        self,
        layers: Callable[[Any], torch.nn.Module],
        chooser: _Chooser,
        steps: int,
        progress: Told | None,
    ) -> None:
        super().__init__()
        self._layers, self._chooser = layers, chooser
        self._steps, self._told = steps, progress
        self._every = max(1, steps // _CHECKS)
        self._next = self._every
        self.best: tuple[dict[str, F32], float] | None = None
        self.is_broken = False

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self._next += self._every
            self.look()
        return not self.is_broken

    def look(self) -> None:
        """Try the policy as it is now."""
        tensors = network_tensors(self._layers(self.model))
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            self.is_broken = True
            return
        reward = self._chooser.reward(tensors)
        if self.best is None or reward > self.best[1]:
            self.best = (tensors, reward)
        if self._told is not None:
            done = min(self.num_timesteps, self._steps)
            self._told(f"reward {reward:.4f}", done, self._steps)


def _reinforce(
    kind: str,
    traces: Traces,
    weights: Weights,
    network: torch.nn.Sequential,
    chooser: _Chooser,
    steps: int,
    seed: int,
    progress: Told | None,
) -> tuple[dict[str, F32], float] | None:
    features_ERF = trace_features(traces)
    centre = -play(traces, weights, decisions(network, features_ERF))
    envs = DummyVecEnv([lambda: PolicyEnv(traces, weights, features_ERF, centre)] * _ENVS)
    shape: dict[str, Any] = {"activation_fn": torch.nn.Tanh, "net_arch": [HIDDEN, HIDDEN]}
    model: Any
    if kind == "ppo":
        model = PPO(
            "MlpPolicy", envs, learning_rate=1e-3, n_steps=512, batch_size=1024, n_epochs=4,
            gamma=1.0, gae_lambda=0.8, ent_coef=0.0, clip_range=0.1, target_kl=0.02,
            policy_kwargs=shape, seed=seed, device="cpu",
        )  # fmt: skip
        actor = _ppo_actor
    else:
        model = DQN(
            "MlpPolicy", envs, learning_rate=1e-4, buffer_size=min(200_000, steps + _ENVS),
            learning_starts=min(5_000, steps // 4), batch_size=512, train_freq=4, gamma=0.9,
            gradient_steps=2, target_update_interval=2_000, exploration_initial_eps=0.1,
            exploration_final_eps=0.02, policy_kwargs=shape, seed=seed, device="cpu",
        )  # fmt: skip
        actor = _dqn_actor
    _load(actor(model), network)
    if kind == "dqn":
        model.q_net_target.load_state_dict(model.q_net.state_dict())
    watch = _Watch(actor, chooser, steps, progress)
    if kind == "ppo":
        # The start knows what to do, the critic nothing yet: what it says at first would spoil it.
        actor(model).requires_grad_(False)
        model.learn(steps // 4, callback=watch)
        actor(model).requires_grad_(True)
        model.lr_schedule = lambda _: _PPO_RATE
        model.learn(steps - steps // 4, callback=watch, reset_num_timesteps=False)
    else:
        model.learn(steps, callback=watch)
    if not watch.is_broken:
        watch.look()
    if watch.is_broken:
        raise UsageError(
            f"{kind}'s weights are no longer finite numbers; give --quality-weight and "
            "--cloud-weight nearer to 1"
        )
    envs.close()
    return watch.best


def _ppo_actor(model: Any) -> torch.nn.Module:
    return torch.nn.Sequential(model.policy.mlp_extractor.policy_net, model.policy.action_net)


def _dqn_actor(model: Any) -> torch.nn.Module:
    network: torch.nn.Module = model.q_net.q_net
    return network


def _load(into: torch.nn.Module, network: torch.nn.Module) -> None:
    """Copy the linear layers of one network into those of another."""
    ours = [layer for layer in into.modules() if isinstance(layer, torch.nn.Linear)]
    theirs = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            mine.weight.copy_(other.weight)
            mine.bias.copy_(other.bias)


def _train_linucb(traces: Traces, weights: Weights, seed: int, progress: Told | None) -> Trained:
    """One pass, texts in random order; what was taken stays unknown, as it does in use."""
    features_ERF = trace_features(traces)
    exits, _, width = features_ERF.shape
    drops = traces.drops[~traces.right]
    mean_wrong = weights.wrong + weights.consequence * (float(drops.mean()) if len(drops) else 0)
    cost = min(0.5, (weights.cloud + weights.latency) / max(mean_wrong, 1e-9))
    bandit = LinUcb(traces.cuts, width, alpha=ALPHA, cost=cost)
    fit_R, choose_R = split_texts(traces, seed)
    choose = _rows_of(traces, choose_R)
    chosen_features = trace_features(choose)

    def reward() -> float:
        takes = [bandit.scores(rows, arm) >= 0 for arm, rows in enumerate(chosen_features)]
        return play(choose, weights, np.stack(takes, axis=1))

    start = reward()
    right = traces.right
    order = np.random.default_rng(seed).permutation(traces.texts)
    texts = [text for text in order.tolist() if fit_R[traces.starts[text]]]
    for done, text in enumerate(texts):
        for row in range(int(traces.starts[text]), int(traces.starts[text + 1])):
            seen = features_ERF[:, row].astype(np.float64)
            if any(bandit.score(arm, seen[arm]) >= 0 for arm in range(exits)):
                continue
            for arm in range(exits):
                bandit.update(arm, seen[arm], float(right[row, arm]))
        if progress is not None:
            progress("learning", done + 1, len(texts))
    if not np.isfinite(bandit.weights).all():
        raise UsageError("the bandit's weights are not finite numbers; trace more text")
    tensors: Any = bandit.tensors()
    about = _about(traces, "linucb", weights, seed) | {"updates": bandit.updates}
    return Trained(
        policy=policy_of(traces, LINUCB, tensors, about),
        reward=reward(),
        start_reward=start,
        always_cloud=_always_cloud(choose, weights),
    )


def _always_cloud(traces: Traces, weights: Weights) -> float:
    return play(traces, weights, np.zeros(traces.tokens.shape, np.bool_))


def _about(traces: Traces, kind: str, weights: Weights, seed: int) -> dict[str, Any]:
    return {
        "trained_by": kind,
        "weights": asdict(weights),
        "seed": seed,
        "corpus": traces.corpus,
        "texts": traces.texts,
        "rows": len(traces),
        "rolled_out": int(traces.rolled.sum()),
    }


def _rows_of(traces: Traces, rows: npt.NDArray[np.bool_]) -> Traces:
    """The texts whose rows are marked."""
    return traces.of_texts([t for t in range(traces.texts) if rows[traces.starts[t]]])
