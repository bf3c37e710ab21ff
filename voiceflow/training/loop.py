"""The training loop: yields what happened at each step and logs nothing."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from voiceflow.config import ModelConfig, TrainConfig
from voiceflow.models.diarizer import Diarizer
from voiceflow.timebase import STEP_S
from voiceflow.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from voiceflow.training.data import LOG_FLOOR, Batch, BatchSampler, Example, HalfArray
from voiceflow.training.losses import compute_losses


@dataclass(frozen=True)
class StepMetrics:
    """What one optimiser step, or one evaluation after it, said."""

    step: int
    total_steps: int
    elapsed_s: float
    """Training time, earlier parts of a resumed run included."""
    progress: float
    """Share of the schedule done: the larger of steps and time."""
    losses: dict[str, float]
    learning_rate: float
    audio_s_per_s: float
    dev_der: float | None = None
    """Frame-level DER of the averaged weights on dev, where this step evaluated."""
    is_best: bool = False
    stopped: str | None = None
    """Why training ends with this step."""


class Trainer:
    """Everything mutable of one run; iterate `run()` to train.

    Args:
        config: Schedule and optimiser.
        model: Shape of the network.
        train: Examples to learn from.
        dev: Examples to decide on early stopping.
        folder: Where checkpoints go; a run found there is resumed exactly.
        initial: Weights to start from, or None for random ones.
        noises: Features of sounds that are no speech, mixed into excerpts.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: ModelConfig,
        *,
        train: list[Example],
        dev: list[Example],
        folder: Path,
        initial: dict[str, Tensor] | None = None,
        noises: Sequence[HalfArray] = (),
    ) -> None:
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        torch.set_flush_denormal(True)
        torch.manual_seed(config.seed)
        self.config = config
        self.folder = folder
        self.dev = dev
        self.sampler = BatchSampler(train, seed=config.seed, noises=noises)
        self.net = Diarizer(model)
        if initial is not None:
            self.net.load_state_dict(initial)
        self.average = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
        )
        self.step = 0
        self.elapsed_s = 0.0
        self.best_der = math.inf
        self.best_step = 0
        self.without_gain = 0
        checkpoint = load_checkpoint(folder)
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def progress(self) -> float:
        """Share of the schedule done."""
        by_time = self.elapsed_s / (60.0 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(self.step / self.config.steps, by_time))

    def run(self) -> Iterator[StepMetrics]:
        """Train to the end of the schedule, or until dev stops getting better.

        The weights to keep are in `best_weights()` afterwards.
        """
        while self.progress < 1.0:
            started = time.monotonic()
            losses, audio_s = self._train_step()
            self.elapsed_s += time.monotonic() - started
            evaluate = self.step % self.config.evaluate_every_steps == 0 or self.progress >= 1.0
            dev_der, is_best, stopped = None, False, None
            if evaluate:
                dev_der, is_best = self.keep_if_best()
                self.without_gain = 0 if is_best else self.without_gain + 1
                if self.without_gain >= self.config.patience:
                    stopped = f"dev DER has not improved in {self.config.patience} evaluations"
            if self.progress >= 1.0:
                stopped = "the schedule is done"
            if stopped or self.step % self.config.checkpoint_every_steps == 0:
                self._save()
            yield StepMetrics(
                self.step,
                self.config.steps,
                self.elapsed_s,
                self.progress,
                losses,
                self.optimizer.param_groups[0]["lr"],
                audio_s / max(1e-6, time.monotonic() - started),
                dev_der,
                is_best,
                stopped,
            )
            if stopped:
                return

    def keep_if_best(self) -> tuple[float, bool]:
        """Score the averaged weights on dev and keep them if none were better; returns DER and whether."""
        dev_der = self.evaluate()
        is_best = dev_der < self.best_der
        if is_best:
            self.best_der, self.best_step = dev_der, self.step
            partial = self.folder / "best.pt.partial"
            torch.save(self.average, partial)
            partial.replace(self.folder / "best.pt")
        return dev_der, is_best

    def best_weights(self) -> dict[str, Tensor]:
        """Averaged weights of the best evaluation."""
        weights: dict[str, Tensor] = torch.load(self.folder / "best.pt", weights_only=True)
        return weights

    def _train_step(self) -> tuple[dict[str, float], float]:
        config, progress = self.config, self.progress
        long = progress >= config.long_from
        chunk_s = config.long_chunk_s if long else config.chunk_s
        batch_size = max(1, round(config.batch_size * config.chunk_s / chunk_s))
        batch = self.sampler.draw(self.step, batch_size=batch_size, num_steps=int(chunk_s / STEP_S))
        learning_rate = self._learning_rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.net.train()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        # More and more rows live with the network's own decisions.
        teacher_forcing = max(0.1, config.teacher_forcing * (1.0 - 2.0 * progress))
        losses = compute_losses(self.net, batch, teacher_forcing=teacher_forcing, generator=generator, bf16=config.bf16)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.step += 1
        decay = min(config.average_decay, (1.0 + self.step) / (10.0 + self.step))
        with torch.no_grad():
            for name, value in self.net.state_dict().items():
                self.average[name].lerp_(value, 1.0 - decay)
        parts = {
            name: float(getattr(losses, name).detach()) for name in ("total", "speech", "overlap", "voices", "slots")
        }
        if not math.isfinite(parts["total"]):
            raise FloatingPointError(f"the loss is {parts} at step {self.step}; lower train.learning_rate")
        return parts, batch_size * chunk_s

    def _learning_rate(self, progress: float) -> float:
        warmup = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        return self.config.learning_rate * warmup * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress)))

    @torch.no_grad()
    def evaluate(self) -> float:
        """Frame-level DER of the averaged weights over dev, overlap scored, no collar."""
        net = Diarizer(self.net.config)
        net.load_state_dict(self.average)
        net.eval()
        return frame_der(net, self.dev, lookahead_steps=self.net.config.max_lookahead_steps)

    def _save(self) -> None:
        save_checkpoint(
            self.folder,
            Checkpoint(
                step=self.step,
                elapsed_s=self.elapsed_s,
                best_der=self.best_der,
                best_step=self.best_step,
                without_gain=self.without_gain,
                net=self.net.state_dict(),
                average=self.average,
                optimizer=self.optimizer.state_dict(),
            ),
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        self.elapsed_s = checkpoint.elapsed_s
        self.best_der = checkpoint.best_der
        self.best_step = checkpoint.best_step
        self.without_gain = checkpoint.without_gain
        self.net.load_state_dict(checkpoint.net)
        self.average = checkpoint.average
        self.optimizer.load_state_dict(checkpoint.optimizer)


@torch.no_grad()
def frame_der(net: Diarizer, examples: list[Example], *, lookahead_steps: int, onset: float = 0.5) -> float:
    """DER on the 80 ms grid: quick, close to the real one, for choosing among checkpoints."""
    errors = reference = 0.0
    groups = [examples[start : start + 16] for start in range(0, len(examples), 16)]
    for group in groups:
        longest = max(len(example.features_TF) for example in group) + lookahead_steps
        features = np.full((len(group), longest, group[0].features_TF.shape[1]), LOG_FLOOR)
        for row, example in enumerate(group):
            features[row, : len(example.features_TF)] = example.features_TF
        batch = Batch(torch.from_numpy(features), torch.empty(0), torch.full((len(group),), lookahead_steps))
        activity, _ = net(batch.features_BKF, net.initial_state(len(group)), batch.lookahead_B)
        for row, example in enumerate(group):
            hypothesis = activity[row, lookahead_steps : lookahead_steps + len(example.features_TF)].numpy() > onset
            truth = example.active_TS
            common = truth.T.astype(np.float32) @ hypothesis.astype(np.float32)
            rows, columns = linear_sum_assignment(-common)
            num_truth, num_hypothesis = truth.sum(axis=1), hypothesis.sum(axis=1)
            errors += float(np.maximum(num_truth, num_hypothesis).sum() - common[rows, columns].sum())
            reference += float(num_truth.sum())
    return errors / max(1.0, reference)
