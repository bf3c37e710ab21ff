"""Plans of simulated conversations: who, where, from which seed; held-out and training ones are made from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from voiceflow.audio import FloatArray
from voiceflow.config import PrepareConfig
from voiceflow.simulation.acoustics import CONDITIONS, HEADSET
from voiceflow.turns import Turn

MIN_TURN_S = 0.02
"""What the end of the recording leaves of a turn, if it is shorter than this, is nobody's turn."""


@dataclass(frozen=True)
class ConversationPlan:
    """What a conversation will be, drawn before any audio is read."""

    name: str
    split: str
    condition: str
    speakers: tuple[str, ...]
    seed: tuple[int, ...]
    away_s: tuple[float, float] | None = None
    """When the first speaker says nothing; others must go on, and he is the next to speak afterwards."""


@dataclass(frozen=True)
class Conversation:
    """Audio of shape (N,) at 16 kHz and its exact turns."""

    samples_N: FloatArray
    turns: list[Turn]
    style: str = ""
    """How people take turns in it, of `prepare.variety.styles`; "" in held-out conversations, which have one way."""


def plan_conversations(
    config: PrepareConfig, split: str, speakers: Sequence[str], number: int
) -> list[ConversationPlan]:
    """The first `number` of `endless_plans`."""
    return list(islice(endless_plans(config, split, speakers), number))


def endless_plans(config: PrepareConfig, split: str, speakers: Sequence[str]) -> Iterator[ConversationPlan]:
    """Draw speakers and conditions for the conversations of one split.

    Training draws the number of speakers and the condition by weight, and has headsets beside them; held-out splits go
    through all conditions in turn, so that every slice has its share.

    Args:
        config: Seed, weights.
        split: ``train``, ``dev`` or ``test``.
        speakers: Those of this split.
    """
    split_number = ("train", "dev", "test").index(split)
    rng = np.random.default_rng((config.seed, split_number))
    number_weights = np.array(config.num_speakers_weights)
    number_weights = number_weights / number_weights.sum()
    condition_weights = np.array([getattr(config.conditions, name) for name in CONDITIONS])
    # Held-out splits follow the same shares, without chance: the number that lags most is next.
    drawn = np.zeros(len(number_weights))
    pool: list[str] = []
    for index in count():
        if split == "train":
            num_speakers = 1 + int(rng.choice(len(number_weights), p=number_weights))
            condition = str(rng.choice(CONDITIONS, p=condition_weights / condition_weights.sum()))
            if rng.random() < config.variety.headset_share:
                condition = HEADSET
        else:
            num_speakers = 1 + int(np.argmax(number_weights * (index + 1) - drawn))
            condition = CONDITIONS[(index + index // len(CONDITIONS)) % len(CONDITIONS)]
        drawn[num_speakers - 1] += 1
        chosen: list[str] = []
        while len(chosen) < min(num_speakers, len(speakers)):
            if not pool:
                pool = list(rng.permutation(np.array(speakers)))
            candidate = str(pool.pop())
            if candidate not in chosen:
                chosen.append(candidate)
        yield ConversationPlan(
            f"{split}-{index:05d}", split, condition, tuple(chosen), (config.seed, split_number, index)
        )
