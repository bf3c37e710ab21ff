"""How far two models differ on one stream while it runs: DER of one, taking the other for the truth.

Shapes: T steps of 80 ms, R and H labels of the reference and the hypothesis.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from voiceflow.timebase import FrameGrid
from voiceflow.turns import Turn


class CrossDer:
    """Compares piece by piece; labels are matched by all that both have said so far, so that one that changes its
    labels on the way pays for it."""

    def __init__(self) -> None:
        self.compared_s = 0.0
        """Up to here they have been compared."""
        self._grid = FrameGrid()
        self._reference: dict[str, int] = {}
        self._hypothesis: dict[str, int] = {}
        self._together_RH = np.zeros((0, 0), np.int64)

    def compare(self, reference: Sequence[Turn], hypothesis: Sequence[Turn], *, until_s: float) -> tuple[float, float]:
        """Take the next piece.

        Args:
            reference: All turns that end after `compared_s` and begin before `until_s`; others do no harm.
            hypothesis: The same of the other model.
            until_s: Before it neither will change what it said.

        Returns:
            Seconds of error (missed, false alarm and confusion) and of the reference's speech in the piece.
        """
        from scipy.optimize import linear_sum_assignment

        first, last = (round(time_s / self._grid.frame_s) for time_s in (self.compared_s, until_s))
        if last <= first:
            return 0.0, 0.0
        self.compared_s = until_s
        spoken_TR = self._raster(reference, self._reference, first, last)
        spoken_TH = self._raster(hypothesis, self._hypothesis, first, last)
        together_RH = spoken_TR.T.astype(np.int64) @ spoken_TH.astype(np.int64)
        known = self._together_RH.shape
        together_RH[: known[0], : known[1]] += self._together_RH
        self._together_RH = together_RH
        rows, columns = linear_sum_assignment(together_RH, maximize=True)
        correct = int((spoken_TR[:, rows] & spoken_TH[:, columns]).sum())
        wanted = np.maximum(spoken_TR.sum(axis=1), spoken_TH.sum(axis=1)).sum()
        frame_s = self._grid.frame_s
        return float(wanted - correct) * frame_s, float(spoken_TR.sum()) * frame_s

    def _raster(self, turns: Sequence[Turn], known: dict[str, int], first: int, last: int) -> npt.NDArray[np.bool_]:
        spans = [(round(t.start_s / self._grid.frame_s), round(t.end_s / self._grid.frame_s), t) for t in turns]
        spans = [(start, end, turn) for start, end, turn in spans if end > first and start < last]
        for _, _, turn in spans:
            known.setdefault(turn.speaker, len(known))
        spoken = np.zeros((last - first, len(known)), np.bool_)
        for start, end, turn in spans:
            spoken[max(0, start - first) : end - first, known[turn.speaker]] = True
        return spoken
