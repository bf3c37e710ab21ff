"""Gates: pure functions from figures and thresholds to a verdict with reasons. A refusal is a value."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from voiceflow.config import EvaluateConfig, ExportConfig, LatencyConfig, PromoteConfig


@dataclass(frozen=True)
class Verdict:
    """Whether a gate lets a model pass, and why not."""

    gate: str
    passed: bool
    reasons: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"gate": self.gate, "passed": self.passed, "reasons": self.reasons, "figures": self.figures}


def _verdict(gate: str, reasons: list[str], figures: dict[str, Any]) -> Verdict:
    return Verdict(gate, not reasons, reasons, figures)


def der_gate(
    overall: Mapping[str, float], slices: Mapping[str, Mapping[str, float]], config: EvaluateConfig
) -> Verdict:
    """Strict DER overall and on each slice that is large enough to say something, and label stability."""
    reasons = []
    if overall["der"] > config.max_der:
        reasons.append(f"DER {overall['der']:.1%} is above {config.max_der:.1%}")
    for name, figures in slices.items():
        if figures["recordings"] >= config.min_slice_recordings and figures["der"] > config.max_der_per_slice:
            reasons.append(f"DER {figures['der']:.1%} on slice {name} is above {config.max_der_per_slice:.1%}")
    if overall["flips_per_minute"] > config.max_flips_per_minute:
        reasons.append(
            f"{overall['flips_per_minute']:.1f} label flips a minute are above {config.max_flips_per_minute:.1f}"
        )
    return _verdict("der", reasons, {"der": overall["der"], "flips_per_minute": overall["flips_per_minute"]})


def parity_gate(difference: float, config: ExportConfig) -> Verdict:
    """Torch and ONNX fp32 agree on whole streams."""
    limit = config.max_parity_difference
    reasons = [] if difference <= limit else [f"torch and ONNX differ by {difference:.2e}, above {limit:.0e}"]
    return _verdict("parity", reasons, {"max_difference": difference})


def int8_gate(
    fp32: Mapping[str, Mapping[str, float]], int8: Mapping[str, Mapping[str, float]], config: ExportConfig
) -> Verdict:
    """int8 loses at most so much DER on any slice."""
    losses = {name: int8[name]["der"] - figures["der"] for name, figures in fp32.items()}
    limit = config.max_int8_der_difference
    reasons = [
        f"int8 costs {100 * loss:.2f} points of DER on slice {name}, above {100 * limit:.2f}"
        for name, loss in losses.items()
        if loss > limit
    ]
    return _verdict("int8", reasons, {f"der_difference/{name}": round(loss, 6) for name, loss in losses.items()})


def size_gate(size_mb: float, state_kib: float, config: ExportConfig) -> Verdict:
    """The file and the state of a stream are small enough to ship and to carry."""
    reasons = []
    if size_mb > config.max_size_mb:
        reasons.append(f"the file has {size_mb:.2f} MB, above {config.max_size_mb} MB")
    if state_kib > config.max_state_kib:
        reasons.append(f"the state has {state_kib:.1f} KiB a stream, above {config.max_state_kib} KiB")
    return _verdict("size", reasons, {"size_mb": size_mb, "state_kib": state_kib})


def latency_gate(device: str, p99_ms: Mapping[int, float], streams_per_core: float, config: LatencyConfig) -> Verdict:
    """p99 of a step at each bounded batch size, streams held in real time by one thread, and what they cost.

    Args:
        device: A key of `latency.max_p99_ms`.
        p99_ms: Measured p99 in ms by batch size.
        streams_per_core: Best over batch sizes of batch / (step time / 80 ms).
        config: Bounds; a device whose bounds are `unmeasured`, or that is not listed, is refused.
    """
    bounds = config.max_p99_ms.get(device, "unmeasured")
    figures: dict[str, Any] = {f"p99_ms/{batch}": value for batch, value in p99_ms.items()}
    figures |= {"device": device, "streams_per_core": streams_per_core}
    if isinstance(bounds, str):
        reason = f"no bound has been measured on {device}: latency.max_p99_ms.{device} is 'unmeasured' in params.yaml"
        return Verdict("latency", False, [reason], figures)
    reasons = []
    for batch_text, bound in bounds.items():
        batch = int(batch_text)
        if batch not in p99_ms:
            reasons.append(f"batch {batch} was not measured on {device}; add it to latency.batch_sizes")
        elif p99_ms[batch] > bound:
            reasons.append(f"p99 of a step at batch {batch} on {device} is {p99_ms[batch]:.2f} ms, above {bound} ms")
    if device == "cpu" and streams_per_core < config.min_streams_per_core:
        reasons.append(f"one thread holds {streams_per_core:.0f} streams, below {config.min_streams_per_core:.0f}")
    price = config.usd_per_hour.get(device)
    if price is None:
        reasons.append(f"nobody has said what {device} costs: set latency.usd_per_hour.{device} in params.yaml")
    else:
        cost = figures["usd_per_1000_stream_hours"] = round(1000.0 * price / max(streams_per_core, 1e-9), 4)
        if cost > config.max_usd_per_1000_stream_hours:
            reasons.append(
                f"1000 stream-hours cost {cost:.2f} USD on {device}, above {config.max_usd_per_1000_stream_hours:.2f}"
            )
    return _verdict("latency", reasons, figures)


def device_gate(measured: str, config: PromoteConfig) -> Verdict:
    """Latency was measured where the model will run: what another device did says nothing about it."""
    reasons = (
        []
        if measured == config.target_device
        else [
            f"latency was measured on {measured!r}, but models run on {config.target_device!r} "
            "(promote.target_device); run the latency stage there"
        ]
    )
    return _verdict("device", reasons, {"measured": measured, "target": config.target_device})


def data_gate(model_revision: str, dataset_revision: str) -> Verdict:
    """The model is judged by held-out conversations of the very data it was trained on the rest of."""
    reasons = (
        []
        if model_revision == dataset_revision
        else [
            f"the model was made from data {_short(model_revision)}, the conversations it would be judged by are of "
            f"{_short(dataset_revision)}: voices of one may be in the training part of the other"
        ]
    )
    return _verdict("data", reasons, {"model": model_revision, "dataset": dataset_revision})


def _short(revision: str) -> str:
    return repr(revision[:12]) if revision else "no revision"


def behaviour_gate(faults: Sequence[str]) -> Verdict:
    """What probes of the file found (see voiceflow/probes.py)."""
    return _verdict("behaviour", list(faults), {"faults": len(faults)})


def stability_gate(champion: Mapping[str, float], challenger: Mapping[str, float], config: PromoteConfig) -> Verdict:
    """Labels change no more often than the champion's do.

    Args:
        champion: `flips_per_minute` and `revisions_per_minute` over the conversations.
        challenger: The same of the model that is judged.
        config: By what factor they may grow, and by how many a minute in any case.
    """
    reasons: list[str] = []
    figures: dict[str, float] = {}
    for name, word in (("flips_per_minute", "label flips"), ("revisions_per_minute", "revised turns")):
        before, now = champion[name], challenger[name]
        figures |= {name: round(now, 4), f"champion_{name}": round(before, 4)}
        limit = max(before * config.max_flips_factor, before + config.flips_slack_per_minute)
        if now > limit:
            reasons.append(f"{now:.2f} {word} a minute against the champion's {before:.2f}, above {limit:.2f}")
    return _verdict("stability", reasons, figures)


def long_stream_gate(champion_der: float, challenger_der: float, config: PromoteConfig) -> Verdict:
    """After minutes of one stream the model is still what it was: the late part of it beside the champion's."""
    loss = challenger_der - champion_der
    reasons = []
    if loss > config.max_long_loss:
        minutes = config.long_from_s / 60.0
        reasons.append(
            f"after {minutes:.0f} minutes of one stream DER is {challenger_der:.1%} against the champion's "
            f"{champion_der:.1%}, more than {100 * config.max_long_loss:.0f} points worse"
        )
    return _verdict("long_stream", reasons, {"der": challenger_der, "champion_der": champion_der})


def slowdown_gate(ratio: float, config: PromoteConfig) -> Verdict:
    """A step takes no longer than the champion's, both timed in turns in the same run."""
    reasons = (
        [f"a step takes {ratio:.2f} times the champion's, above {config.max_slowdown:.2f}"]
        if ratio > config.max_slowdown
        else []
    )
    return _verdict("slowdown", reasons, {"ratio": round(ratio, 4)})


Comparison = Literal["better", "not_worse", "worse", "inconclusive"]


@dataclass(frozen=True)
class Compared:
    """A challenger beside the champion, over the same conversations."""

    verdict: Comparison
    gain: float
    """DER of the champion less that of the challenger, as a fraction."""
    low: float
    high: float
    """Bounds of the gain's interval."""


def compare(
    champion_errors_s: Sequence[float],
    challenger_errors_s: Sequence[float],
    reference_s: Sequence[float],
    config: PromoteConfig,
) -> Compared:
    """Paired bootstrap of the DER gain over conversations.

    Args:
        champion_errors_s: Missed, false alarm and confusion of each conversation, in seconds.
        challenger_errors_s: The same conversations in the same order.
        reference_s: Reference speech of each.
        config: Confidence, resamples, seed and margin.

    Returns:
        `better` if the lower bound is above 0; `not_worse` if it is above minus the margin; `worse`
        if the upper bound is below minus the margin; else `inconclusive`.

    Source:
        Bisani and Ney, Bootstrap estimates for confidence intervals, ICASSP 2004.
    """
    champion, challenger, speech = (
        np.asarray(values, np.float64) for values in (champion_errors_s, challenger_errors_s, reference_s)
    )
    if not len(champion) == len(challenger) == len(speech) > 0:
        raise ValueError(f"expected equally many conversations, got {len(champion)}, {len(challenger)}, {len(speech)}")
    draws = np.random.default_rng(config.seed).integers(len(speech), size=(config.bootstrap_resamples, len(speech)))
    total = np.maximum(speech[draws].sum(axis=1), 1e-9)
    gains: npt.NDArray[np.float64] = (champion - challenger)[draws].sum(axis=1) / total
    tail = 50.0 * (1.0 - config.confidence)
    low, high = (float(value) for value in np.percentile(gains, [tail, 100.0 - tail]))
    gain = float((champion - challenger).sum() / max(speech.sum(), 1e-9))
    verdict: Comparison = "inconclusive"
    if low > 0:
        verdict = "better"
    elif low >= -config.not_worse_margin:
        verdict = "not_worse"
    elif high < -config.not_worse_margin:
        verdict = "worse"
    return Compared(verdict, gain, low, high)


@dataclass(frozen=True)
class Decision:
    """What promotion does with a model."""

    becomes: Literal["champion", "challenger", "nothing"]
    reasons: list[str]


def decide(
    gates: Sequence[Verdict], overall: Compared, slices: Mapping[str, Compared], *, accept_equal: bool = False
) -> Decision:
    """Champion on better overall and not worse on every slice; challenger on not worse everywhere; else nothing.

    Args:
        gates: All gates; one refusal is enough.
        overall: Against the champion over all conversations.
        slices: Against the champion on each slice that is large enough.
        accept_equal: Let a model that is only not worse overall become champion.
    """
    refused = [f"gate {gate.gate}: {reason}" for gate in gates if not gate.passed for reason in gate.reasons]
    weak = [
        f"{name} is {compared.verdict} (DER gain {100 * compared.gain:+.1f} points, "
        f"95 % {100 * compared.low:+.1f} to {100 * compared.high:+.1f})"
        for name, compared in {"overall": overall, **{f"slice {name}": value for name, value in slices.items()}}.items()
        if compared.verdict not in ("better", "not_worse")
    ]
    if refused or weak:
        return Decision("nothing", refused + weak)
    interval = f"95 % {100 * overall.low:+.1f} to {100 * overall.high:+.1f}"
    told = f"overall {overall.verdict}: DER gain {100 * overall.gain:+.1f} points, {interval}"
    if overall.verdict == "better" or accept_equal:
        return Decision("champion", [told + (" (accepted as equal)" if overall.verdict != "better" else "")])
    return Decision("challenger", [told])
