"""train: from a prepared dataset to averaged weights, decision thresholds and a learning curve."""

import csv
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voiceflow.config import DecisionConfig, ModelConfig, TrainConfig
from voiceflow.errors import DataError, ModelError
from voiceflow.export import make_metadata
from voiceflow.features import step_features
from voiceflow.metrics import score, summarise
from voiceflow.models.diarizer import Diarizer
from voiceflow.models.step import TorchStep
from voiceflow.simulation.sounds import background_events, textures, tunes
from voiceflow.stages.dataset import Recording, read_recordings, read_samples, read_turns
from voiceflow.streaming.batch import stream_recordings
from voiceflow.streaming.session import StreamSettings
from voiceflow.timebase import SAMPLE_RATE_HZ, STEP_S, FrameGrid
from voiceflow.training.data import LOG_FLOOR, Example, HalfArray, make_example
from voiceflow.training.grow import grow
from voiceflow.training.loop import StepMetrics, Trainer
from voiceflow.turns import scores_to_turns, turns_to_activity
from voiceflow.workers import in_parallel

Watcher = Callable[[StepMetrics], None]


def train(
    config: TrainConfig,
    model: ModelConfig,
    decision: DecisionConfig,
    dataset: Path,
    output: Path,
    *,
    watch: Watcher = lambda metrics: None,
    loading: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Train, and write weights.pt, decision.json, curve.csv, curve.png and train.json.

    A run that was cut off is resumed exactly when called again with the same output.

    Args:
        config: Schedule.
        model: Shape of the network.
        decision: Thresholds to start the search from.
        dataset: What `prepare` wrote.
        output: Folder of the results and checkpoints.
        watch: Called after each optimiser step.
        loading: Called as recordings are read.

    Returns:
        The content of train.json.
    """
    output.mkdir(parents=True, exist_ok=True)
    recordings = {split: read_recordings(dataset, split) for split in ("train", "dev")}
    for split, found in recordings.items():
        if not found:
            raise DataError(f"{dataset}: expected recordings of split {split}, found none")
    total = sum(len(found) for found in recordings.values())
    examples: dict[str, list[Example]] = {"train": [], "dev": []}
    jobs = [(dataset, recording) for found in recordings.values() for recording in found]
    for done, example in enumerate(in_parallel(_load_example, jobs), start=1):
        examples[jobs[done - 1][1].split].append(example)
        loading(done, total)
    initial = pretrained_weights(model, seed=config.seed) if config.init_from == "pretrained" else None
    trainer = Trainer(
        config,
        model,
        train=examples["train"],
        dev=examples["dev"],
        folder=output,
        initial=initial,
        noises=make_noises(config.num_noises, seed=config.seed),
    )
    if initial is not None and trainer.step == 0:
        # The start counts as a result: training on must not end with less.
        trainer.keep_if_best()
    told = curve_until(output / "curve.csv", trainer.step)
    with (output / "curve.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows(told)
        stopped = "the schedule was done before"
        for metrics in trainer.run():
            losses = [round(metrics.losses[name], 5) for name in ("total", "speech", "overlap", "voices", "slots")]
            der = "" if metrics.dev_der is None else round(metrics.dev_der, 5)
            writer.writerow([metrics.step, round(metrics.elapsed_s, 1), *losses, f"{metrics.learning_rate:.6f}", der])
            if metrics.dev_der is not None:
                file.flush()
            watch(metrics)
            stopped = metrics.stopped or stopped
    weights = trainer.best_weights()
    torch.save(weights, output / "weights.pt")
    net = load_net(model, output / "weights.pt")
    tuned = tune_decision(net, examples["dev"], decision)
    tuned = tune_speakers(net, dataset, recordings["dev"], tuned)
    (output / "decision.json").write_text(tuned.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (output / "model.json").write_text(model.model_dump_json(indent=2) + "\n", encoding="utf-8")
    plot_curve(output / "curve.csv", output / "curve.png")
    summary = {
        "steps": trainer.step,
        "best_step": trainer.best_step,
        "dev_frame_der": round(trainer.best_der, 6),
        "training_minutes": round(trainer.elapsed_s / 60.0, 2),
        "stopped": stopped,
        "num_parameters": sum(value.numel() for value in trainer.net.parameters()),
        "init_from": config.init_from,
        "seed": config.seed,
    }
    (output / "train.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


NOISE_S = 30.0
CURVE = ["step", "elapsed_s", "total", "speech", "overlap", "voices", "slots", "learning_rate", "dev_der"]


def curve_until(path: Path, step: int) -> list[list[str]]:
    """Rows of a learning curve up to a step: what a killed run did after its last checkpoint is done again."""
    if step == 0 or not path.is_file():
        return [CURVE]
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if len(row) == len(CURVE)]
    return [CURVE, *(row for row in rows[1:] if int(row[0]) <= step)]


def _load_example(dataset: Path, recording: Recording) -> Example:
    return make_example(recording.name, read_samples(dataset, recording), read_turns(dataset, recording))


def make_noises(count: int, *, seed: int) -> list[HalfArray]:
    """Features (T, 640) of half minutes of breath, handling, clicks and tones; of textures of noise; of music."""
    return list(in_parallel(_make_noise, [(seed, number) for number in range(count)]))


def _make_noise(seed: int, number: int) -> HalfArray:
    rng = np.random.default_rng((seed, 77, number))
    length = int(NOISE_S * SAMPLE_RATE_HZ)
    match number % 3:
        case 0:
            samples_N = background_events(rng, length, per_s=float(rng.uniform(1.0, 12.0)))
        case 1:
            samples_N = textures(rng, length)
        case _:
            samples_N = tunes(rng, length)
    features_TF: HalfArray = step_features(samples_N * np.float32(0.1)).astype(np.float16)
    return features_TF


def load_net(model: ModelConfig, weights: Path) -> Diarizer:
    """The network with weights that `train` wrote, ready to score.

    Raises:
        ModelError: Weights of another shape.
    """
    net = Diarizer(model)
    try:
        state: dict[str, Tensor] = torch.load(weights, weights_only=True)
        net.load_state_dict({name: value.float() for name, value in state.items()})
    except (OSError, RuntimeError) as err:
        raise ModelError(f"{weights}: not weights of the network in params.yaml, section model ({err})") from err
    return net.eval()


def load_trained(folder: Path) -> tuple[Diarizer, DecisionConfig]:
    """Network and thresholds from the output of `train`."""
    model = ModelConfig.model_validate_json((folder / "model.json").read_text(encoding="utf-8"))
    decision = DecisionConfig.model_validate_json((folder / "decision.json").read_text(encoding="utf-8"))
    return load_net(model, folder / "weights.pt"), decision


def pretrained_weights(model: ModelConfig, *, seed: int) -> dict[str, Tensor]:
    """The float weights that ship in the package, to train on from; made larger where `model` is larger."""
    from voiceflow.runtime import pretrained_path

    shipped = pretrained_path()
    weights: dict[str, Tensor] = torch.load(shipped.with_name("weights.pt"), weights_only=True)
    before = ModelConfig.model_validate_json(shipped.with_name("model.json").read_text(encoding="utf-8"))
    return grow({name: value.float() for name, value in weights.items()}, before, model, seed=seed)


@torch.no_grad()
def tune_decision(net: Diarizer, dev: list[Example], start: DecisionConfig) -> DecisionConfig:
    """Thresholds with the least frame-level DER on dev, by grid search."""
    lookahead = net.config.max_lookahead_steps
    activities = []
    for example in dev:
        padding = np.full((lookahead, example.features_TF.shape[1]), LOG_FLOOR)
        features_TF = np.concatenate([example.features_TF.astype(np.float32), padding])
        activity, _ = net(torch.from_numpy(features_TF[None]), net.initial_state(1), torch.tensor([lookahead]))
        activities.append(activity[0, lookahead:].numpy())
    best, best_errors = start, np.inf
    for onset, drop, min_on_s, min_off_s in itertools.product(
        (0.35, 0.4, 0.45, 0.5, 0.55, 0.6), (0.0, 0.1, 0.2), (0.16, 0.24), (0.16, 0.24, 0.4)
    ):
        candidate = start.model_copy(
            update={
                "onset": onset,
                "offset": round(onset - drop, 3),
                "min_on_s": min_on_s,
                "min_off_s": min_off_s,
            }
        )
        errors = sum(_frame_errors(candidate, scores, example) for scores, example in zip(activities, dev, strict=True))
        if errors < best_errors:
            best, best_errors = candidate, errors
    return best


COUNT_WEIGHT = 0.05
"""A wrong number of speakers in every recording is as bad as this much DER."""


def tune_speakers(net: Diarizer, dataset: Path, dev: Sequence[Recording], start: DecisionConfig) -> DecisionConfig:
    """When voices are merged, by grid search over dev in true streaming mode.

    What is least is the mean DER of the labels as first told and as they ended, with a share for recordings
    of up to four speakers whose number of speakers is wrong.
    """
    samples = [read_samples(dataset, recording) for recording in dev]
    references = [read_turns(dataset, recording) for recording in dev]
    best, best_cost = start, np.inf
    for min_speaker_s, merge_cosine in itertools.product((0.0, 0.7, 1.2, 1.6, 2.4), (1.0, 0.85)):
        candidate = start.model_copy(update={"min_speaker_s": min_speaker_s, "merge_cosine": merge_cosine})
        metadata = make_metadata(net, version="0", decision=candidate, data_revision="", git_commit="", run_id="")
        sessions = stream_recordings(samples, TorchStep(net, metadata), StreamSettings("pcm_f32le", latency_s=1.04))
        told, final = (
            [
                score(reference, turns, duration_s=recording.duration_s)
                for recording, reference, turns in zip(dev, references, answers, strict=True)
            ]
            for answers in (
                [session.turns_as_told for session in sessions],
                [session.turns for session in sessions],
            )
        )
        few = [one for one in final if one.num_speakers <= 4]
        miscounted = sum(one.num_speakers != one.num_speakers_found for one in few) / max(1, len(few))
        cost = (summarise(told)["der"] + summarise(final)["der"]) / 2.0 + COUNT_WEIGHT * miscounted
        if cost < best_cost:
            best, best_cost = candidate, cost
    return best


def _frame_errors(decision: DecisionConfig, scores_TS: Any, example: Example) -> float:
    from scipy.optimize import linear_sum_assignment

    turns = scores_to_turns(
        scores_TS,
        grid=FrameGrid(),
        onset=decision.onset,
        offset=decision.offset,
        min_on_s=decision.min_on_s,
        min_off_s=decision.min_off_s,
    )
    speakers = [f"speaker_{slot}" for slot in range(scores_TS.shape[1])]
    active = turns_to_activity(turns, speakers=speakers, num_frames=len(scores_TS), frame_s=STEP_S) > 0.5
    truth = example.active_TS
    common = truth.T.astype(np.float32) @ active.astype(np.float32)
    rows, columns = linear_sum_assignment(-common)
    return float(np.maximum(truth.sum(1), active.sum(1)).sum() - common[rows, columns].sum())


def plot_curve(table: Path, picture: Path) -> None:
    """Loss and dev DER over steps, as a PNG."""
    from voiceflow.stages.plots import new_figure, save_figure

    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = new_figure(1, 2)
    steps = [int(row["step"]) for row in rows]
    for name in ("total", "speech", "overlap", "voices", "slots"):
        axes[0].plot(steps, [float(row[name]) for row in rows], label=name, linewidth=1)
    axes[0].set(xlabel="optimiser step", ylabel="loss", yscale="log")
    axes[0].legend()
    scored = [(int(row["step"]), 100 * float(row["dev_der"])) for row in rows if row["dev_der"]]
    axes[1].plot([step for step, _ in scored], [der for _, der in scored], marker="o")
    axes[1].set(xlabel="optimiser step", ylabel="frame DER on dev, %")
    save_figure(figure, picture)
