import numpy as np
import pytest

from voiceflow.gates import (
    Compared,
    Verdict,
    compare,
    decide,
    der_gate,
    int8_gate,
    latency_gate,
    parity_gate,
    size_gate,
)


def figures(der, recordings=20, flips=1.0):
    return {"der": der, "recordings": recordings, "flips_per_minute": flips}


def test_der_gate_passes_and_refuses_with_its_reason(params):
    assert der_gate(figures(0.2), {"room": figures(0.3)}, params.evaluate).passed
    refused = der_gate(figures(0.9), {"room": figures(0.95)}, params.evaluate)
    assert not refused.passed
    assert "DER 90.0%" in refused.reasons[0]
    assert "slice room" in refused.reasons[1]


def test_a_slice_of_few_recordings_does_not_refuse(params):
    assert der_gate(figures(0.2), {"room": figures(0.99, recordings=2)}, params.evaluate).passed


def test_unstable_labels_are_refused(params):
    assert "flips" in der_gate(figures(0.2, flips=99.0), {}, params.evaluate).reasons[0]


def test_parity_size_and_int8_gates_pass_and_refuse(params):
    assert parity_gate(1e-6, params.export).passed
    assert not parity_gate(1e-2, params.export).passed
    assert size_gate(2.0, 16.0, params.export).passed
    assert len(size_gate(20.0, 100.0, params.export).reasons) == 2
    fp32 = {"overall": figures(0.2), "far": figures(0.3)}
    assert int8_gate(fp32, {"overall": figures(0.203), "far": figures(0.29)}, params.export).passed
    assert "slice far" in int8_gate(fp32, {"overall": figures(0.2), "far": figures(0.32)}, params.export).reasons[0]


def test_latency_gate_passes_and_refuses_and_names_the_device(params):
    fast = {1: 0.5, 8: 1.0, 32: 2.0, 128: 6.0}
    assert latency_gate("cpu", fast, 2000.0, params.latency).passed
    slow = latency_gate("cpu", fast | {32: 500.0}, 20.0, params.latency)
    assert "on cpu is 500.00 ms" in slow.reasons[0]
    assert "20 streams" in slow.reasons[1]


@pytest.mark.parametrize("device", ["t4", "cuda", "tensorrt"])
def test_a_device_whose_bounds_nobody_measured_is_refused(params, device):
    verdict = latency_gate(device, {1: 0.1, 8: 0.1, 32: 0.1, 128: 0.1}, 1e6, params.latency)
    assert not verdict.passed
    assert "unmeasured" in verdict.reasons[0]


def errors(params, champion, challenger):
    rng = np.random.default_rng(0)
    speech = np.full(60, 50.0)
    noise = rng.normal(0, 1, 60)
    return compare(champion * speech + noise, challenger * speech + noise, speech, params.promote)


def test_comparison_tells_better_not_worse_and_worse(params):
    assert errors(params, 0.30, 0.20).verdict == "better"
    assert errors(params, 0.20, 0.20).verdict == "not_worse"
    assert errors(params, 0.20, 0.30).verdict == "worse"


def test_comparison_is_inconclusive_when_the_interval_spans_the_margin(params):
    rng = np.random.default_rng(0)
    speech = np.full(12, 50.0)
    assert compare(rng.normal(10, 8, 12), rng.normal(10, 8, 12), speech, params.promote).verdict == "inconclusive"


BETTER, SAME, WORSE = (Compared(v, 0.0, 0.0, 0.0) for v in ("better", "not_worse", "worse"))
PASSED, REFUSED = Verdict("der", True), Verdict("latency", False, ["too slow"])


@pytest.mark.parametrize(
    ("gates", "overall", "slices", "accept_equal", "becomes"),
    [
        ([PASSED], BETTER, {"far": SAME}, False, "champion"),
        ([PASSED], SAME, {"far": SAME}, False, "challenger"),
        ([PASSED], SAME, {"far": SAME}, True, "champion"),
        ([PASSED], BETTER, {"far": WORSE}, True, "nothing"),
        ([PASSED], WORSE, {}, True, "nothing"),
        ([PASSED, REFUSED], BETTER, {}, True, "nothing"),
    ],
)
def test_what_a_model_becomes(gates, overall, slices, accept_equal, becomes):
    decision = decide(gates, overall, slices, accept_equal=accept_equal)
    assert decision.becomes == becomes
    assert decision.reasons
