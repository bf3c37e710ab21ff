"""The streaming diarizer: a recurrent encoder, attention over the look-ahead, and slots of running voice profiles.

Notable choices:
- One call takes k steps of 80 ms and the state, and returns activities and the new state;
  training (k = hundreds), files and the ONNX export (k = 1) run this same code.
- Look-ahead is data, not architecture: an answer for step t is read when step t + L arrives, and
  local attention sees everything between. One set of weights serves every L.
- Who speaks is decided by comparing the frame's embedding with a running profile of each slot.
  Slots fill in order of arrival; a new voice holds its slot on trial until it has been heard
  for `confirm_steps`, so that a cough does not use one up.
- Speech and overlap heads say how many speak; the slots say who.

Shapes: B streams, K steps, F features, H hidden, R ring entries, S slots, E embedding, N state.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from voiceflow.config import ModelConfig
from voiceflow.features import ENERGY_FLOOR, STEP_FEATURES

SILENCE_LOG = math.log(ENERGY_FLOOR) + 0.5
"""A step none of whose features exceeds this is digital silence: it was not heard. Nobody speaks in it, and
nothing is learned from it; the look past the end of a stream is made of such steps."""
LEVEL_STEPS = 400.0
"""Steps over which the level of a stream is averaged at most: 32 s."""
TRIAL_DECAY = 0.9
"""What is left of a slot on trial after a step in which it is silent."""
RECENT_DECAY, SLOW_DECAY = 0.8, 0.98
"""Decays of a slot's short and long memory of having spoken."""

ATTENTION_BLOCK = 32
"""Steps whose surroundings are read together where many are scored at once."""


class Slots(NamedTuple):
    """The decoder's memory: profiles are sums of embeddings, weights their mass in steps.

    `blocked_B1` is how many of the last slots may never be taken: a stream with a limit on its
    speakers sets it in its first state, and a voice beyond the limit goes to the slot most like it.
    """

    profiles_BSE: Tensor
    weights_BS: Tensor
    recent_BS: Tensor
    slow_BS: Tensor
    blocked_B1: Tensor


class Frames(NamedTuple):
    """What the encoder says of each answered step."""

    embeddings_BKE: Tensor
    """Unit vectors of voice."""
    speech_BK: Tensor
    """Logit of at least one speaker."""
    overlap_BK: Tensor
    """Logit of at least two, given that there is speech."""
    valid_BK: Tensor
    """1 where the answered step has been heard, 0 before the stream began and in digital silence."""
    surroundings_BKD: Tensor
    """What the slot decision should know of the sound itself: voices are more alike over a telephone."""


class Diarizer(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden, slots = config.hidden, config.num_slots
        self.ring_steps = config.past_steps + 1 + config.max_lookahead_steps
        self.ring_dims = config.key_dims + config.value_dims + 1
        self.state_sizes = {
            "level": 2,  # see _running_level
            "recurrent": config.num_layers * 2 * hidden,
            "ring": self.ring_steps * self.ring_dims,
            "profiles": slots * config.embedding_dims,
            "weights": slots,
            "recent": slots,
            "slow": slots,
            "blocked": 1,
        }
        self.state_dims = sum(self.state_sizes.values())
        self._part_sizes = [
            part
            for name, size in self.state_sizes.items()
            for part in ([hidden] * (size // hidden) if name == "recurrent" else [size])
        ]
        # encoder
        self.input = nn.Linear(STEP_FEATURES + 2, hidden)
        self.input_norm = nn.LayerNorm(hidden)
        self.layers = nn.ModuleList(nn.LSTM(hidden, hidden, batch_first=True) for _ in range(config.num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(config.num_layers))
        self.frame = nn.Linear(hidden, config.key_dims + config.value_dims)
        # attention over the look-ahead
        self.query = nn.Linear(config.value_dims, config.key_dims)
        self.position = nn.Parameter(torch.zeros(config.num_heads, self.ring_steps))
        self.fuse = nn.Linear(2 * config.value_dims, 2 * config.value_dims)
        self.embed = nn.Linear(2 * config.value_dims, config.embedding_dims)
        self.count = nn.Linear(2 * config.value_dims, 2)
        # slots
        self.slot_match = nn.Linear(config.embedding_dims, config.slot_hidden, bias=False)
        self.slot_facts = nn.Linear(13, config.slot_hidden)
        self.slot_surroundings = nn.Linear(2 * config.value_dims, config.slot_hidden, bias=False)
        self.slot_score = nn.Linear(config.slot_hidden, 1)
        self.match_scale = nn.Parameter(torch.tensor(8.0))
        with torch.no_grad():
            self.count.bias.copy_(torch.tensor([1.0, -2.0]))

    def initial_state(self, batch: int) -> Tensor:
        """Zeros of shape (B, N): the state of streams that have not begun."""
        return torch.zeros(batch, self.state_dims)

    def split_state(self, state_BN: Tensor) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
        """Level, hidden and cell of each layer in turn, ring, and what the slots hold: in one copy."""
        level_B2, *rest = state_BN.split(self._part_sizes, dim=1)
        recurrent, (ring, *slot_parts) = rest[: 2 * len(self.layers)], rest[2 * len(self.layers) :]
        return level_B2, recurrent, ring, slot_parts

    def forward(self, features_BKF: Tensor, state_BN: Tensor, lookahead_B: Tensor) -> tuple[Tensor, Tensor]:
        """Score k steps of B streams.

        Args:
            features_BKF: Log-mel features, shape (B, k, 640).
            state_BN: State after the steps before, shape (B, N), float32.
            lookahead_B: Steps of look-ahead of each stream, shape (B,), int64.

        Returns:
            Activities in [0, 1], shape (B, k, S): column j of call n answers step
            n + j - look-ahead, zero where that is before the stream began. And the new state.
        """
        level_B2, recurrent, ring, slot_parts = self.split_state(state_BN)
        frames, level_B2, recurrent, ring = self.encode(features_BKF, level_B2, recurrent, ring, lookahead_B)
        slots = Slots(slot_parts[0].unflatten(1, (self.config.num_slots, -1)), *slot_parts[1:])
        activities = []
        for step in range(features_BKF.shape[1]):
            activity_BS, slots = self.decode(frames, step, slots)
            activities.append(activity_BS)
        new_state = torch.cat(
            [level_B2, *recurrent, ring, slots.profiles_BSE.flatten(1), *slots[1:]],
            dim=1,
        )
        return torch.stack(activities, dim=1), new_state

    def encode(
        self, features_BKF: Tensor, level_B2: Tensor, recurrent: Sequence[Tensor], ring: Tensor, lookahead_B: Tensor
    ) -> tuple[Frames, Tensor, list[Tensor], Tensor]:
        """Everything before the slots; arguments and results are the parts of the state.

        `recurrent` is hidden and cell of each layer in turn, shape (B, H) each.
        """
        # 1) level: how loud it has been is subtracted, and told as an input
        heard_BK = (features_BKF.amax(dim=2) > SILENCE_LOG).to(features_BKF.dtype)
        means_BK, level_B2 = _running_level(features_BKF.mean(dim=2), heard_BK, level_B2)
        level_BK1 = means_BK.unsqueeze(2)
        loudness_BK1 = features_BKF.mean(dim=2, keepdim=True) - level_BK1
        inputs = torch.cat([(features_BKF - level_BK1) * 0.3, loudness_BK1 * 0.3, level_BK1 * 0.1 + 1.0], dim=2)
        # 2) recurrence
        hidden_BKH = self.input_norm(functional.silu(self.input(inputs)))
        carried: list[Tensor] = []
        for layer, norm, hidden_BH, cell_BH in zip(
            self.layers, self.norms, recurrent[::2], recurrent[1::2], strict=True
        ):
            output_BKH, after = _recur(layer, hidden_BKH, hidden_BH, cell_BH)
            hidden_BKH = norm(hidden_BKH + output_BKH)
            carried += [part.float() for part in after]
        # 3) attention from the answered step to what lies around it
        frame_BKC = self.frame(hidden_BKH).float()
        new_entries = torch.cat([frame_BKC, heard_BK.unsqueeze(2)], dim=2)
        entries = torch.cat([ring.unflatten(1, (self.ring_steps, -1)), new_entries], dim=1)
        context_BKC, valid_BK = self._attend(entries, lookahead_B)
        # 4) heads
        context_BKC = functional.silu(self.fuse(context_BKC))
        embeddings = self.embed(context_BKC).float()
        embeddings = embeddings / (embeddings.square().sum(dim=2, keepdim=True) + 1e-6).sqrt()
        counts = self.count(context_BKC).float()
        surroundings = self.slot_surroundings(context_BKC).float()
        frames = Frames(embeddings, counts[:, :, 0], counts[:, :, 1], valid_BK, surroundings)
        return frames, level_B2, carried, entries[:, -self.ring_steps :].flatten(1)

    def _attend(self, entries: Tensor, lookahead_B: Tensor) -> tuple[Tensor, Tensor]:
        """Read each answered step and its surroundings from the ring and the new entries.

        Steps are read in blocks, whose surroundings overlap: a whole window for each step would be most of
        the memory and time of training.

        Returns:
            Shape (B, K, 2 V): the step's own values and the attended ones. And validity (B, K).
        """
        config, ring, device = self.config, self.ring_steps, entries.device
        num_steps = entries.shape[1] - ring
        answered_B1 = ring - 1 - lookahead_B.unsqueeze(1)
        steps_1K = torch.arange(num_steps, device=device).unsqueeze(0)
        own_BK1 = (steps_1K + 1 + answered_B1).unsqueeze(2)
        own_BKC = entries.gather(1, own_BK1.expand(-1, -1, entries.shape[2]))
        own_values = own_BKC[:, :, config.key_dims : -1]
        query = self.query(own_values).float()
        # Rows of a block (T) and the entries that any of them may see (M); n blocks
        block = min(ATTENTION_BLOCK, num_steps)
        spare = -num_steps % block
        if spare:
            query = functional.pad(query, (0, 0, 0, spare))
            entries = functional.pad(entries, (0, 0, 0, spare))
        seen = entries[:, None, 1:] if num_steps == 1 else entries[:, 1:].unfold(1, block + ring - 1, block).mT
        columns = torch.arange(block + ring - 1, device=device) - torch.arange(block, device=device).unsqueeze(1)
        relative_BTM = columns.unsqueeze(0) - answered_B1.unsqueeze(2)
        inside_BTM = (columns >= 0) & (columns < ring) & (relative_BTM >= -config.past_steps)
        bias_hBTM = self.position[:, (relative_BTM + config.past_steps).clamp(0, ring - 1)]
        usable = inside_BTM[:, None, None] & (seen[:, :, None, None, :, -1] > 0.5)  # (B, n, 1, T, M)
        with torch.autocast(device.type, enabled=False):
            heads = (config.num_heads, -1)
            keys = seen[..., : config.key_dims].unflatten(3, heads).transpose(2, 3)  # (B, n, heads, M, D)
            values = seen[..., config.key_dims : -1].unflatten(3, heads).transpose(2, 3)
            query = query.unflatten(1, (-1, block)).unflatten(3, heads).transpose(2, 3)  # (B, n, heads, T, D)
            scores = query @ keys.mT + bias_hBTM.transpose(0, 1).unsqueeze(1) + (~usable).to(query.dtype) * -1e4
            attended = (scores.softmax(dim=4) @ values).transpose(2, 3).flatten(3).flatten(1, 2)[:, :num_steps]
        return torch.cat([own_values, attended], dim=2), own_BKC[:, :, -1]

    def decode(self, frames: Frames, step: int, slots: Slots) -> tuple[Tensor, Slots]:
        """Give one answered step to slots; returns activities (B, S) and the slots after it."""
        embedding_BE, valid_B = frames.embeddings_BKE[:, step], frames.valid_BK[:, step]
        speech_B = torch.sigmoid(frames.speech_BK[:, step]) * valid_B
        overlap_B = torch.sigmoid(frames.overlap_BK[:, step]) * speech_B
        logits_BS, _ = self.slot_logits(embedding_BE, speech_B, overlap_B, frames.surroundings_BKD[:, step], slots)
        activity_BS = combine(logits_BS.softmax(dim=1), speech_B, overlap_B)
        clean_B1 = (speech_B - overlap_B).clamp(min=0.0).unsqueeze(1)
        gain_BS = (activity_BS > 0.5).to(activity_BS.dtype) * clean_B1
        return activity_BS, self.update(slots, embedding_BE, gain_BS, activity_BS)

    def slot_logits(
        self, embedding: Tensor, speech: Tensor, overlap: Tensor, surroundings: Tensor, slots: Slots
    ) -> tuple[Tensor, Tensor]:
        """Who speaks, if one does: logits over slots, any number of leading dimensions.

        Returns:
            Logits (..., S), -1e4 at slots that cannot be taken; and the mask (..., S) of the one
            open slot, into which a new voice would go (none where all are taken).
        """
        weights = slots.weights_BS
        norms = (slots.profiles_BSE.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()
        voices = slots.profiles_BSE / norms
        match = embedding.unsqueeze(-2) * voices
        cosine = match.sum(dim=-1)
        confirmed = (weights >= self.config.confirm_steps).to(weights.dtype)
        index = torch.arange(self.config.num_slots, device=weights.device).to(weights.dtype)
        is_open = (index == confirmed.sum(dim=-1, keepdim=True)).to(weights.dtype)
        is_open = is_open * (index < self.config.num_slots - slots.blocked_B1).to(weights.dtype)
        best_known = (cosine * confirmed - (1.0 - confirmed)).amax(dim=-1, keepdim=True)
        # How much a voice differs from itself, and from the other known voice most like it.
        constancy = norms.squeeze(-1) / weights.clamp(min=1.0)
        alike = voices @ voices.transpose(-1, -2) * confirmed.unsqueeze(-2) * confirmed.unsqueeze(-1)
        twin = (alike - torch.eye(self.config.num_slots, device=weights.device)).amax(dim=-1)
        facts = torch.stack(
            [
                cosine,
                steady_log(1.0 + weights) * 0.3,
                confirmed,
                slots.recent_BS,
                slots.slow_BS,
                (cosine - best_known) * is_open,
                best_known.expand_as(cosine),
                speech.unsqueeze(-1).expand_as(cosine),
                overlap.unsqueeze(-1).expand_as(cosine),
                confirmed.sum(dim=-1, keepdim=True).expand_as(cosine) / self.config.num_slots,
                steady_log(1.0 + weights.sum(dim=-1, keepdim=True)).expand_as(cosine) * 0.2,
                constancy,
                twin,
            ],
            dim=-1,
        )
        hidden = functional.silu(self.slot_match(match) * 4.0 + self.slot_facts(facts) + surroundings.unsqueeze(-2))
        logits = self.slot_score(hidden).squeeze(-1).float() + self.match_scale * cosine
        return logits - (1.0 - torch.maximum(confirmed, is_open)) * 1e4, is_open

    def update(self, slots: Slots, embedding_BE: Tensor, gain_BS: Tensor, activity_BS: Tensor) -> Slots:
        """Add the step's embedding to slots by `gain_BS` and let slots on trial fade."""
        weights = slots.weights_BS
        on_trial = (weights < self.config.confirm_steps).to(weights.dtype)
        keep = 1.0 - on_trial * (gain_BS <= 0.0).to(weights.dtype) * (1.0 - TRIAL_DECAY)
        grown = weights * keep + gain_BS
        shrink = self.config.profile_steps / grown.clamp(min=self.config.profile_steps)
        profiles = slots.profiles_BSE * keep.unsqueeze(2) + gain_BS.unsqueeze(2) * embedding_BE.unsqueeze(1)
        return Slots(
            profiles * shrink.unsqueeze(2),
            grown * shrink,
            slots.recent_BS * RECENT_DECAY + activity_BS * (1.0 - RECENT_DECAY),
            slots.slow_BS * SLOW_DECAY + activity_BS * (1.0 - SLOW_DECAY),
            slots.blocked_B1,
        )

    def empty_slots(self, batch: int) -> Slots:
        """Slots of streams that have not begun."""
        zeros = torch.zeros(batch, self.config.num_slots)
        return Slots(
            torch.zeros(batch, self.config.num_slots, self.config.embedding_dims), zeros, zeros, zeros, zeros[:, :1]
        )


def combine(who: Tensor, speech: Tensor, overlap: Tensor) -> Tensor:
    """Activity of each slot from who speaks and how many do.

    With one speaker slot s is active by `who[s]`. With two it is active if it is drawn first or
    second, without replacement, by the same odds.

    Args:
        who: Probabilities over slots, shape (..., S).
        speech: Probability of at least one speaker, shape (...).
        overlap: Probability of at least two, shape (...).

    Source:
        Plackett, The analysis of permutations, 1975.
    """
    odds = who / (1.0 - who + 1e-4)
    among_two = (who * (1.0 + odds.sum(dim=-1, keepdim=True) - odds)).clamp(max=1.0)
    return (speech - overlap).unsqueeze(-1) * who + overlap.unsqueeze(-1) * among_two


def steady_log(values: Tensor) -> Tensor:
    """Logarithm with the same bits for a value whatever stands beside it in a batch.

    ONNX Runtime's Log rounds differently outside whole vectors of 16: each value gets a vector of its own.
    """
    return torch.log(values.unsqueeze(-1).expand(*values.shape, 16))[..., 0]


def _running_level(means_BK: Tensor, heard_BK: Tensor, level_B2: Tensor) -> tuple[Tensor, Tensor]:
    """How loud at most `LEVEL_STEPS` heard steps were: a mean of amplitudes, so that pauses hardly count.

    Args:
        means_BK: Mean log-mel energy of each step.
        heard_BK: 1 where a step was heard.
        level_B2: State: the mean amplitude (the root of energy), and the number of steps it is of.

    Returns:
        Level of each step as log energy (B, K), and the new state.
    """
    level_B, count_B = level_B2[:, 0], level_B2[:, 1]
    amplitude_BK = torch.exp(0.5 * means_BK)
    levels = []
    for step in range(means_BK.shape[1]):
        count_B = (count_B + heard_BK[:, step]).clamp(max=LEVEL_STEPS)
        level_B = level_B + heard_BK[:, step] * (amplitude_BK[:, step] - level_B) / count_B.clamp(min=1.0)
        levels.append(level_B)
    return 2.0 * steady_log(torch.stack(levels, dim=1) + 1e-4), torch.stack([level_B, count_B], dim=1)


def _recur(
    layer: nn.Module, inputs_BKH: Tensor, hidden_BH: Tensor, cell_BH: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """An LSTM layer; a single step is written out, so that its matrices can be quantised in ONNX.

    Returns:
        Output of each step, and the hidden and cell state after the last.
    """
    assert isinstance(layer, nn.LSTM)
    weights: Any = layer  # nn.Module types its parameters as Tensor | Module
    if inputs_BKH.shape[1] > 1:
        dtype = inputs_BKH.dtype
        output_BKH, (hidden_1BH, cell_1BH) = layer(
            inputs_BKH, (hidden_BH.unsqueeze(0).to(dtype), cell_BH.unsqueeze(0).to(dtype))
        )
        return output_BKH, (hidden_1BH[0], cell_1BH[0])
    gates = functional.linear(inputs_BKH[:, 0], weights.weight_ih_l0, weights.bias_ih_l0)
    gates = gates + functional.linear(hidden_BH, weights.weight_hh_l0, weights.bias_hh_l0)
    let_in, keep, new, let_out = gates.chunk(4, dim=1)
    cell_BH = torch.sigmoid(keep) * cell_BH + torch.sigmoid(let_in) * torch.tanh(new)
    hidden_BH = torch.sigmoid(let_out) * torch.tanh(cell_BH)
    return hidden_BH.unsqueeze(1), (hidden_BH, cell_BH)
