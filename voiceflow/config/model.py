"""The network and what is done with it: `model`, `train`, `decision`, `evaluate`, `export`, `latency`."""

from typing import Literal

from pydantic import Field

from voiceflow.config.base import Section


class TrainConfig(Section):
    """How the network is trained."""

    seed: int = Field(ge=0)
    steps: int = Field(ge=1)
    """Optimiser steps of the whole schedule."""
    batch_size: int = Field(ge=1)
    chunk_s: float = Field(ge=2)
    """Length of the training excerpts in the first part of the schedule."""
    long_chunk_s: float = Field(ge=2)
    """Length in the second part, with proportionally fewer excerpts in a batch."""
    long_from: float = Field(ge=0, le=1)
    """Share of the schedule after which excerpts are long."""
    teacher_forcing: float = Field(ge=0, le=1)
    """Share of excerpts whose speaker profiles come from the true turns at first; it falls to a tenth."""
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    average_decay: float = Field(ge=0, lt=1)
    """Decay of the moving average of weights that is evaluated and exported."""
    evaluate_every_steps: int = Field(ge=1)
    patience: int = Field(ge=1)
    """Evaluations without a better dev DER before training stops."""
    checkpoint_every_steps: int = Field(ge=1)
    max_minutes: float | None = Field(gt=0)
    """Wall-clock limit; the learning rate follows whichever of steps and time is further on."""
    num_noises: int = Field(ge=0)
    """Half minutes of sounds that are no speech, made at the start and mixed into excerpts."""
    bf16: bool
    """bfloat16 autocast; accumulations and the decoder stay float32."""
    num_threads: int = Field(ge=0)
    """Torch threads; 0 takes torch's default."""
    init_from: Literal["scratch", "pretrained"]
    """Random weights, or the weights that ship in the package."""


class ModelConfig(Section):
    """Shape of the network."""

    hidden: int = Field(ge=8)
    """Width of the recurrent layers."""
    num_layers: int = Field(ge=1)
    value_dims: int = Field(ge=4)
    """Values of a frame kept for the look-ahead attention."""
    key_dims: int = Field(ge=2)
    num_heads: int = Field(ge=1)
    embedding_dims: int = Field(ge=4)
    past_steps: int = Field(ge=0)
    """Steps before the answered one that attention may look back on."""
    max_lookahead_steps: int = Field(ge=0)
    num_slots: int = Field(ge=1, le=16)
    slot_hidden: int = Field(ge=4)
    """Width of the decision between slots."""
    confirm_steps: float = Field(gt=0)
    """Clean speech, in steps, after which a new voice keeps its slot for good."""
    profile_steps: float = Field(gt=0)
    """Steps over which a speaker's profile is averaged at most."""


class DecisionConfig(Section):
    """From activities to turns; tuned on dev, written into the model file, which wins."""

    onset: float = Field(gt=0, lt=1)
    offset: float = Field(gt=0, lt=1)
    min_on_s: float = Field(ge=0)
    min_off_s: float = Field(ge=0)
    min_speaker_s: float = Field(ge=0)
    """Speech after which a voice is surely a speaker of its own; one heard for less, and gone, is given to the
    speaker it is most like."""
    forget_after_s: float = Field(gt=0)
    """Silence after which such a voice is gone."""
    merge_cosine: float = Field(gt=0, le=1)
    """Two speakers whose voices are more alike than this are one; 1 for never."""


class EvaluateConfig(Section):
    """How models are scored, and the DER gate."""

    latency_s: float = Field(gt=0)
    """Latency at which the headline figures are measured."""
    collars_per_side_s: list[float]
    max_der: float = Field(gt=0)
    """Gate: strict DER over the test split, as a fraction."""
    max_der_per_slice: float = Field(gt=0)
    """Gate: strict DER of the worst slice of at least `min_slice_recordings` recordings."""
    min_slice_recordings: int = Field(ge=1)
    max_flips_per_minute: float = Field(gt=0)
    """Gate: label flips, the mark of unstable identities."""


class ExportConfig(Section):
    """Which files are written, and their gates."""

    opset: int = Field(ge=17)
    max_parity_difference: float = Field(gt=0)
    """Gate: largest difference of activity between torch and ONNX fp32 over whole streams."""
    max_int8_der_difference: float = Field(gt=0)
    """Gate: int8 DER above fp32 on any slice, as a fraction."""
    max_size_mb: float = Field(gt=0)
    max_state_kib: float = Field(gt=0)


class LatencyConfig(Section):
    """How one model step is timed, and the latency gate of each device."""

    batch_sizes: list[int] = Field(min_length=1)
    repeats: int = Field(ge=10)
    warmup: int = Field(ge=1)
    max_p99_ms: dict[str, dict[str, float] | Literal["unmeasured"]]
    """Gate per device: p99 in ms by batch size. `unmeasured` refuses on that device."""
    min_streams_per_core: float = Field(gt=0)
    """Gate: streams held in real time by one thread at the best batch size (CPU)."""
    usd_per_hour: dict[str, float]
    """Price of what a figure was measured on: one core, one GPU with its share of the node."""
    max_usd_per_1000_stream_hours: float = Field(gt=0)
    """Gate: what the model step of 1000 streams costs in an hour, at the streams that were held."""
