"""The start of a policy's network: behaviour cloning of the action that pays, from whole traces.

Traces tell what every action would have earned, so the start need not be explored for. From the
deepest exit to the shallowest the realised advantage of taking is

    A = reward(take) − reward(going on, and deciding later as the network now does),

and the network is fitted to the sign of A with |A| as the example's weight. The optimum of this
cost-sensitive classification (Zadrozny et al. 2003) is the policy of greatest reward, and its
logit is the log of the odds of gain to loss, so that a bias moves it along a sensible curve. Later
decisions change while it is fitted, so A is computed anew in every round.

Texts are split: what is fitted on is four fifths, the rest say which epoch was best.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from collm.errors import UsageError
from collm.tune.policy_env import Rewards, Weights, rewards, trace_features
from collm.tune.trace_file import Traces

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

HIDDEN = 32
_BATCH = 1024
_VALIDATION = 0.2


@dataclass(frozen=True, kw_only=True)
class WarmSettings:
    """How the start is fitted."""

    rounds: int = 3
    epochs: int = 16
    """Per round."""
    rate: float = 3e-3
    decay: float = 1e-2
    """AdamW's weight decay."""


Told = Callable[[str, int, int], None]


def new_network(width: int) -> torch.nn.Sequential:
    """features -> 32 -> 32 -> (go on, take), tanh between."""
    return torch.nn.Sequential(
        torch.nn.Linear(width, HIDDEN),
        torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, HIDDEN),
        torch.nn.Tanh(),
        torch.nn.Linear(HIDDEN, 2),
    )


def split_texts(traces: Traces, seed: int) -> tuple[Bools, Bools]:
    """Rows to fit on, and rows to choose by; whole texts. With one text both are all rows."""
    if traces.texts < 2:
        everything = np.ones(len(traces), np.bool_)
        return everything, everything
    order = np.random.default_rng(seed).permutation(traces.texts)
    kept = order[: max(1, round(_VALIDATION * traces.texts))]
    chosen: Bools = np.isin(traces.text_of, kept)
    return ~chosen, chosen


def advantages(earned: Rewards, takes_RE: Bools) -> F32:
    """What taking earns over going on and then doing as `takes_RE` says: [R, E]."""
    made = np.empty_like(earned.take)
    later = np.zeros(len(made), np.float32)  # after the last exit nothing more is to be paid
    for i in reversed(range(made.shape[1])):
        going_on = earned.go_on[i] + later
        made[:, i] = earned.take[:, i] - going_on
        later = np.where(takes_RE[:, i], earned.take[:, i], going_on).astype(np.float32)
    return made


def warm_start(
    traces: Traces,
    weights: Weights,
    settings: WarmSettings,
    *,
    seed: int = 0,
    progress: Told | None = None,
) -> torch.nn.Sequential:
    """A network that decides well under the reward. Raises UsageError where it comes out as NaN."""
    torch.manual_seed(seed)
    features_ERF = trace_features(traces)
    exits, rows, width = features_ERF.shape
    network = new_network(width)
    earned = rewards(traces, weights)
    fit_R, choose_R = split_texts(traces, seed)
    x_RF = torch.from_numpy(features_ERF.reshape(exits * rows, width))
    fit = torch.from_numpy(np.flatnonzero(np.tile(fit_R, exits)))
    choose = torch.from_numpy(np.flatnonzero(np.tile(choose_R, exits)))
    batch = min(_BATCH, max(64, len(fit) // 32))
    steps = -(-len(fit) // batch) * settings.epochs
    # Before there is a network: whoever is right is taken.
    takes_RE = traces.right
    best, best_loss = copy.deepcopy(network), np.inf
    for round_number in range(settings.rounds):
        gain = torch.from_numpy(advantages(earned, takes_RE).T.reshape(-1).copy())
        scale = gain.abs().mean()
        optimiser = torch.optim.AdamW(
            network.parameters(), settings.rate, weight_decay=settings.decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.rate, total_steps=steps)
        best_loss = np.inf  # losses of different rounds are of different examples
        for epoch in range(settings.epochs):
            order = fit[torch.randperm(len(fit))]
            for start in range(0, len(order), batch):
                chosen = order[start : start + batch]
                loss = _loss(network, x_RF[chosen], gain[chosen] / scale)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            with torch.no_grad():
                found = float(_loss(network, x_RF[choose], gain[choose] / scale))
            if not np.isfinite(found):
                raise UsageError("the policy's loss is not finite; are the weights sensible?")
            if found < best_loss:
                best, best_loss = copy.deepcopy(network), found
            if progress is not None:
                done = round_number * settings.epochs + epoch + 1
                progress(f"cloning, loss {found:.4f}", done, settings.rounds * settings.epochs)
        network = copy.deepcopy(best)
        takes_RE = decisions(network, features_ERF)
    return network


def decisions(network: torch.nn.Module, features_ERF: F32) -> Bools:
    """Whether the network takes after each exit, [R, E]."""
    with torch.no_grad():
        logits = network(torch.from_numpy(features_ERF)).numpy()
    made: Bools = (logits[..., 1] >= logits[..., 0]).T
    return made


def network_tensors(network: torch.nn.Module) -> dict[str, F32]:
    """The linear layers as a policy file has them."""
    linear = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    made = {}
    for i, layer in enumerate(linear):
        made[f"layers.{i}.weight"] = layer.weight.detach().numpy().astype(np.float32).copy()
        made[f"layers.{i}.bias"] = layer.bias.detach().numpy().astype(np.float32).copy()
    return made


def _loss(network: torch.nn.Module, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    logits = network(x)
    difference = logits[:, 1] - logits[:, 0]
    signs = torch.sign(gain)
    return (gain.abs() * torch.nn.functional.softplus(-signs * difference)).mean()
