"""Tests that may be looked at after every observation, and odds for arms that are tried while they serve.

A `Wager` bets on a mean: its capital grows where the mean is beyond a bound, and exceeds 1 / alpha with a probability
of at most alpha where it is not, however often one looks. Nothing is assumed of the observations but their range.

Source:
    Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 2024.
    Thompson, On the likelihood that one unknown probability exceeds another, Biometrika 1933.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

STAKES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
"""Shares of the largest safe bet; the capital is the mean of what each would have won."""


@dataclass
class Wager:
    """Evidence that the mean of observations in [low, high] is above, or below, a bound."""

    bound: float
    side: Literal["above", "below"]
    low: float = 0.0
    high: float = 1.0
    logs: list[float] = field(default_factory=lambda: [0.0] * len(STAKES))
    """Logarithm of the capital of each stake."""
    num_seen: int = 0

    def __post_init__(self) -> None:
        if not self.low < self.bound < self.high:
            raise ValueError(f"expected a bound between {self.low} and {self.high}, got {self.bound}")

    def see(self, value: float) -> None:
        """Take an observation; one outside the range counts as its edge."""
        value = min(self.high, max(self.low, value))
        won, worst = value - self.bound, self.bound - self.low
        if self.side == "below":
            won, worst = -won, self.high - self.bound
        # The largest bet that cannot ruin is 1 / worst.
        self.logs = [log + float(np.log1p(stake * won / worst)) for stake, log in zip(STAKES, self.logs, strict=True)]
        self.num_seen += 1

    @property
    def capital(self) -> float:
        """What became of 1: evidence against the bound's other side."""
        return float(np.exp(np.logaddexp.reduce(self.logs) - np.log(len(STAKES))))

    def is_won(self, alpha: float) -> bool:
        """Whether it is proved at this level, now or at any time before or after."""
        return self.capital >= 1.0 / alpha

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bound": self.bound,
            "side": self.side,
            "low": self.low,
            "high": self.high,
            "logs": self.logs,
            "num_seen": self.num_seen,
        }


@dataclass
class Arm:
    """What is known of the reward of one variant, in [0, 1]."""

    wins: float = 1.0
    losses: float = 1.0

    def see(self, reward: float, *, weight: float = 1.0) -> None:
        """Take a reward, as so many observations."""
        reward = min(1.0, max(0.0, reward))
        self.wins += weight * reward
        self.losses += weight * (1.0 - reward)


def thompson_shares(arms: Mapping[str, Arm], *, seed: int, floor: float = 0.0, draws: int = 4000) -> dict[str, float]:
    """Share of new streams of each arm: how likely it is the best, by what was seen.

    Args:
        arms: Variants by name.
        seed: Draws are the same for the same seed.
        floor: Least share of any arm, so that none is judged by its first minutes for ever.
        draws: Samples of the posterior.

    Raises:
        ValueError: No arms, or a floor that leaves nothing to share.
    """
    if not arms or floor * len(arms) > 1.0:
        raise ValueError(f"expected arms and a floor of at most 1 / their number, got {len(arms)} and {floor}")
    rng = np.random.default_rng(seed)
    samples: npt.NDArray[np.float64] = np.stack([rng.beta(arm.wins, arm.losses, draws) for arm in arms.values()])
    best = np.bincount(samples.argmax(axis=0), minlength=len(arms)) / draws
    shares: Sequence[float] = (floor + (1.0 - floor * len(arms)) * best).tolist()
    return dict(zip(arms, shares, strict=True))
