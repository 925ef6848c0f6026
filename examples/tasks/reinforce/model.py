"""Games of CartPole, as batches that a policy plays, and the picture."""

import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch


class Games:
    """Batches of games that the policy plays, as it is when the batch is read.

    Batch i of an epoch depends on nothing but the policy and (seed, epoch, i), so a resumed training plays it
    again. A batch is (states, (actions, advantages)) with a row for each step of its games. The advantage of
    a step is the discounted sum of the rewards from there on, scaled to mean 0 and sd 1 in the batch.
    """

    def __init__(self, policy, n_batches, n_games, seed, discount=0.99):
        self.policy, self.n_batches, self.n_games, self.seed = policy, n_batches, n_games, seed
        self.discount, self.epoch = discount, 0

    def set_epoch(self, epoch):
        """Play other games in each epoch."""
        self.epoch = epoch

    def __len__(self):
        return self.n_batches

    def __getitem__(self, i):
        if i >= len(self):
            raise IndexError(i)
        states, actions, is_played = self.play(
            int(np.random.default_rng([self.seed, self.epoch, i]).integers(2**31))
        )
        returns = torch.zeros(is_played.shape)
        after = torch.zeros(self.n_games)
        for t in reversed(range(len(returns))):
            after = returns[t] = is_played[t] * (1 + self.discount * after)  # the reward of each step is 1
        returns = returns[is_played]
        return states[is_played], (actions[is_played], (returns - returns.mean()) / returns.std())

    @torch.no_grad()
    def play(self, seed):
        """Play n_games games side by side; return states, actions and is_played, (steps, games, ...)."""
        envs = gym.make_vec("CartPole-v1", self.n_games, vectorization_mode="vector_entry_point")
        generator = torch.Generator().manual_seed(seed)
        state, _ = envs.reset(seed=seed)
        is_played, steps = torch.ones(self.n_games, dtype=torch.bool), []
        device = next(self.policy.parameters()).device
        while is_played.any():
            state = torch.from_numpy(state)
            chances = self.policy(state.to(device)).softmax(1).cpu()
            action = torch.multinomial(chances, 1, generator=generator).squeeze(1)
            steps.append((state, action, is_played))
            state, _, is_over, is_cut, _ = envs.step(action.numpy())
            is_played = is_played & ~torch.from_numpy(is_over | is_cut)
        return [torch.stack(parts) for parts in zip(*steps, strict=True)]


def draw(history, trained, untrained, seed):
    """Draw the mean return of each epoch, and the pole's angle in games of both policies."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    for phase, label in (("train", "training"), ("eval", "validation")):
        rows = [row for row in history if row["train"] == phase]
        axes[0].plot([row["epoch"] for row in rows], [row["mean_return"] for row in rows], ".-", label=label)
    axes[0].axhline(195, color="grey", linewidth=1, linestyle="--", label="the bar, 195")
    axes[0].set(xlabel="epoch", title="mean return")
    axes[0].legend()
    for ax, policy, title in zip(axes[1:], (untrained, trained), ("untrained", "trained"), strict=True):
        states, _, is_played = Games(policy, 1, 8, seed).play(seed)
        for game in range(8):
            ax.plot(states[:, game, 2][is_played[:, game]].rad2deg().numpy(), linewidth=1)
        for angle in (-12, 12):
            ax.axhline(angle, color="grey", linewidth=1, linestyle="--")
        ax.set(xlabel="step", xlim=(0, 500), title=f"angle of the pole in 8 games, {title}", ylabel="degrees")
    return figure
