"""What the network is taught: how many speak, voices apart, and who has which slot.

Slots are taught on the network's own course: the decoder runs over the excerpt, and at each step
the right answer is the slot that, by its history, belongs to the speaker who is speaking, or the
open slot for one who has none. Gradients flow through the comparison at each step, not through time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from voiceflow.models.diarizer import Diarizer, Frames, Slots, combine
from voiceflow.training.data import Batch

SLOT_STRIDE = 4
"""Of so many steps one counts in the loss of the slots: that loss is most of the time of training."""
NEAR_STEPS = 15
"""Frames closer than this (1.2 s) to an anchor do not count towards its prototypes: too easy."""


@dataclass(frozen=True)
class Losses:
    """The parts, each a mean; `total` is what is minimised."""

    speech: Tensor
    overlap: Tensor
    voices: Tensor
    slots: Tensor

    @property
    def total(self) -> Tensor:
        """Weighted sum."""
        return self.speech + self.overlap + self.voices + self.slots


def targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """What each answered step should say.

    Returns:
        Activities (B, K, 8) delayed by each row's look-ahead, and validity (B, K).
    """
    num_steps = batch.active_BKS.shape[1]
    index_BK = torch.arange(num_steps).unsqueeze(0) - batch.lookahead_B.unsqueeze(1)
    gathered = batch.active_BKS.gather(1, index_BK.clamp(min=0).unsqueeze(2).expand(-1, -1, batch.active_BKS.shape[2]))
    return gathered & (index_BK >= 0).unsqueeze(2), index_BK >= 0


def compute_losses(
    net: Diarizer, batch: Batch, *, teacher_forcing: float, generator: torch.Generator, bf16: bool
) -> Losses:
    """All losses of one batch.

    Args:
        net: The network, in training mode.
        batch: Excerpts.
        teacher_forcing: Share of rows whose slots are filled from the true turns.
        generator: Draws those rows and the anchors.
        bf16: Whether the encoder runs under bfloat16 autocast.
    """
    batch_size = batch.features_BKF.shape[0]
    level, recurrent, ring, _ = net.split_state(net.initial_state(batch_size))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        frames, *_ = net.encode(batch.features_BKF, level, recurrent, ring, batch.lookahead_B)
    active_BKS, valid_BK = targets(batch)
    number_BK = active_BKS.sum(dim=2)
    speech = functional.binary_cross_entropy_with_logits(frames.speech_BK, (number_BK > 0).float(), reduction="none")
    overlap = functional.binary_cross_entropy_with_logits(frames.overlap_BK, (number_BK > 1).float(), reduction="none")
    spoken = valid_BK & (number_BK > 0)
    return Losses(
        _mean(speech, valid_BK),
        _mean(overlap, spoken),
        voice_loss(net, frames, active_BKS, generator),
        slot_loss(net, frames, active_BKS, teacher_forcing, generator),
    )


def _mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum() / where.sum().clamp(min=1)


def voice_loss(net: Diarizer, frames: Frames, active_BKS: Tensor, generator: torch.Generator) -> Tensor:
    """Each frame of one speaker against the mean embeddings of the voices in its own conversation.

    Source:
        Snell et al., Prototypical networks for few-shot learning, 2017.
    """
    single_BK = active_BKS.sum(dim=2) == 1
    num_anchors = max(96, active_BKS.shape[1] // 4)
    order = torch.rand(single_BK.shape, generator=generator).masked_fill(~single_BK, 2.0).argsort(dim=1)
    index_BA = order[:, :num_anchors]
    usable_BA = single_BK.gather(1, index_BA)
    anchors = frames.embeddings_BKE.gather(1, index_BA.unsqueeze(2).expand(-1, -1, frames.embeddings_BKE.shape[2]))
    labels_BAS = active_BKS.gather(1, index_BA.unsqueeze(2).expand(-1, -1, active_BKS.shape[2])).float()
    labels_BAS = labels_BAS * usable_BA.unsqueeze(2)
    far_BAA = ((index_BA.unsqueeze(2) - index_BA.unsqueeze(1)).abs() > NEAR_STEPS).float()
    # prototypes (B, A, S, E) of what is far enough from each anchor
    members = far_BAA.unsqueeze(3) * labels_BAS.unsqueeze(1)  # (B, A, A', S)
    prototypes = members.transpose(2, 3).flatten(1, 2) @ anchors
    prototypes = functional.normalize(prototypes.unflatten(1, (index_BA.shape[1], -1)), dim=3, eps=1e-3)
    exists_BAS = members.sum(dim=2) > 2.0
    cosine_BAS = (anchors.unsqueeze(2) * prototypes).sum(dim=3)
    logits = (net.match_scale.clamp(4.0, 30.0) * cosine_BAS).masked_fill(~exists_BAS, -1e4)
    right = labels_BAS.argmax(dim=2)
    counted = usable_BA & exists_BAS.gather(2, right.unsqueeze(2)).squeeze(2) & (exists_BAS.sum(dim=2) > 1)
    loss = functional.cross_entropy(logits.flatten(0, 1), right.flatten(), reduction="none").view_as(right)
    return _mean(loss, counted)


def slot_loss(
    net: Diarizer, frames: Frames, active_BKS: Tensor, teacher_forcing: float, generator: torch.Generator
) -> Tensor:
    """Cross-entropy of the slot decision along the decoder's own course."""
    course, right_BKS = roll_out(net, frames, active_BKS, teacher_forcing, generator)
    # Steps beside each other teach the same: some will do.
    some = slice(int(torch.randint(SLOT_STRIDE, (1,), generator=generator)), None, SLOT_STRIDE)
    course, right_BKS = Slots(*(part[:, some] for part in course)), right_BKS[:, some]
    speech = torch.sigmoid(frames.speech_BK[:, some]).detach() * frames.valid_BK[:, some]
    overlap = torch.sigmoid(frames.overlap_BK[:, some]).detach() * speech
    embeddings, surroundings = frames.embeddings_BKE[:, some], frames.surroundings_BKD[:, some]
    logits, _ = net.slot_logits(embeddings, speech, overlap, surroundings, course)
    mass_BK = right_BKS.sum(dim=2)
    share = right_BKS / mass_BK.clamp(min=1.0).unsqueeze(2)
    loss_BK = -(share * logits.log_softmax(dim=2)).sum(dim=2)
    return _mean(loss_BK, mass_BK > 0)


@torch.no_grad()
def roll_out(
    net: Diarizer, frames: Frames, active_BKS: Tensor, teacher_forcing: float, generator: torch.Generator
) -> tuple[Slots, Tensor]:
    """Run the decoder over an excerpt and note its memory before each step, and the right slots.

    Returns:
        Slots with a steps dimension, (B, K, ...), and right slots (B, K, S), 1 where active.
    """
    embeddings = frames.embeddings_BKE.detach()
    batch_size, num_steps = frames.valid_BK.shape
    slots = net.empty_slots(batch_size)
    belongs = torch.zeros(batch_size, net.config.num_slots, active_BKS.shape[2])  # steps of each speaker in each slot
    forced_B1 = (torch.rand(batch_size, 1, generator=generator) < teacher_forcing).float()
    speech_BK = torch.sigmoid(frames.speech_BK) * frames.valid_BK
    overlap_BK = torch.sigmoid(frames.overlap_BK) * speech_BK
    course: list[Slots] = []
    right: list[Tensor] = []
    for step in range(num_steps):
        active_BS = active_BKS[:, step].float()
        embedding, speech, overlap = embeddings[:, step], speech_BK[:, step], overlap_BK[:, step]
        logits, is_open = net.slot_logits(embedding, speech, overlap, frames.surroundings_BKD[:, step], slots)
        right_BS = _right_slots(belongs, active_BS, is_open)
        course.append(slots)
        right.append(right_BS)
        activity = combine(logits.softmax(dim=1), speech, overlap)
        own_gain = (activity > 0.5).float() * (speech - overlap).clamp(min=0.0).unsqueeze(1)
        alone = (active_BS.sum(dim=1, keepdim=True) == 1).float()
        gain = forced_B1 * right_BS * alone + (1.0 - forced_B1) * own_gain
        activity = forced_B1 * right_BS + (1.0 - forced_B1) * activity
        before = slots.weights_BS
        slots = net.update(slots, embedding, gain, activity)
        fade = (slots.weights_BS / (before + gain).clamp(min=1e-6)).unsqueeze(2)
        belongs = (belongs + gain.unsqueeze(2) * active_BS.unsqueeze(1)) * fade
    stacked = Slots(*(torch.stack(parts, dim=1) for parts in zip(*course, strict=True)))
    return stacked, torch.stack(right, dim=1)


def _right_slots(belongs: Tensor, active_BS: Tensor, is_open: Tensor) -> Tensor:
    """Slots of the active speakers: for each the slot that is mostly his, else the open one.

    Args:
        belongs: Steps of each speaker in each slot, shape (B, slots, speakers).
        active_BS: Who speaks, shape (B, speakers).
        is_open: The open slot, shape (B, slots).
    """
    mine = belongs * (belongs >= belongs.amax(dim=2, keepdim=True)) * (belongs > 0.25)
    strongest, slot = mine.max(dim=1)  # (B, speakers)
    has_slot = (strongest > 0).float()
    chosen = functional.one_hot(slot, belongs.shape[1]).float() * (active_BS * has_slot).unsqueeze(2)
    newcomers = (active_BS * (1.0 - has_slot)).sum(dim=1, keepdim=True).clamp(max=1.0)
    return (chosen.sum(dim=1) + newcomers * is_open).clamp(max=1.0)
