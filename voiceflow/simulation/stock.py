"""What training conversations are made of beside voices: rooms, noises and sounds, of a bounded number, made once."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from voiceflow.audio import FloatArray, check_finite, check_rate, read_file, resample
from voiceflow.config import PrepareConfig
from voiceflow.corpora.read import AudioPlace
from voiceflow.errors import AudioError
from voiceflow.simulation.acoustics import HEADSET, noise, rumble
from voiceflow.simulation.rooms import MAX_RESPONSE_S, PLACES, Room, headset_room, image_room
from voiceflow.simulation.sounds import KINDS, make_sound, unit_power
from voiceflow.timebase import SAMPLE_RATE_HZ
from voiceflow.workers import in_parallel

Int16Array = npt.NDArray[np.int16]
Track = Callable[[str, int, int], None]

NOISE_S = 20.0
SEAM_S = 0.25
"""The end of a noise fades into its beginning so long, so that it may go round."""
MAX_SOUND_S = 3.0
ROOM_KINDS = ("close", "room", "far", HEADSET)
FLOOR = "floor"
RUMBLES, MAX_RECORDED = 6, 400
"""How many there are, and recorded sounds at most; as many recorded noises as made ones."""


@dataclass(frozen=True)
class Stock:
    """Rooms by kind, noises and rumbles at unit power that go round, sounds by kind."""

    rooms: dict[str, list[Room]]
    noises: list[FloatArray]
    rumbles: list[FloatArray]
    sounds: dict[str, list[FloatArray]]

    def save(self, folder: Path) -> None:
        """Write one .npy a kind, which `load_stock` maps into memory: processes share it."""
        folder.mkdir(parents=True, exist_ok=True)
        for kind, rooms in self.rooms.items():
            save_pieces(folder / f"rooms.{kind}", [room.responses_PN.ravel() for room in rooms])
        save_pieces(folder / "noises", self.noises)
        save_pieces(folder / "rumbles", self.rumbles)
        for kind, sounds in self.sounds.items():
            save_pieces(folder / f"sounds.{kind}", sounds)


def load_stock(folder: Path) -> Stock:
    """What `Stock.save` wrote."""
    rooms = {
        kind: [Room(kind, row.reshape(PLACES, -1)) for row in load_pieces(folder / f"rooms.{kind}")]
        for kind in ROOM_KINDS
    }
    kinds = [path.name.split(".")[1] for path in sorted(folder.glob("sounds.*.ends.npy"))]
    return Stock(
        rooms,
        load_pieces(folder / "noises"),
        load_pieces(folder / "rumbles"),
        {kind: load_pieces(folder / f"sounds.{kind}") for kind in kinds},
    )


def make_stock(
    config: PrepareConfig,
    *,
    breaths: Sequence[Int16Array] = (),
    noises: Sequence[AudioPlace] = (),
    rooms: Sequence[AudioPlace] = (),
    progress: Track = lambda what, done, total: None,
) -> Stock:
    """Rooms by the image method, noises and sounds; and recorded ones where there are any.

    The same config and recordings give the same stock, with any number of processes.

    Args:
        config: Seed, number of rooms, processes.
        breaths: Speechless pieces of the recordings of training voices, see `speech.speaker_segments`.
        noises: Recordings without speech, such as MUSAN's.
        rooms: Recorded impulse responses, such as those of RIRS; neighbours by name are taken for one room.
        progress: Called with what is being made, how many are done, and of how many.

    Raises:
        AudioError: A recording cannot be read, or is silent.
    """
    seed, count = config.seed, config.variety.stock_size
    jobs: list[tuple[Any, ...]] = [(seed, kind, number) for kind in ROOM_KINDS for number in range(count)]
    jobs += [(seed, FLOOR, number) for number in range(count)]
    jobs += [(seed, kind, number) for kind in KINDS for number in range(count)]
    made: dict[str, list[Any]] = defaultdict(list)
    results = in_parallel(_make_one, jobs, num_workers=config.num_workers)
    for done, ((_, kind, _), result) in enumerate(zip(jobs, results, strict=True), start=1):
        made[kind].append(result)
        progress("make rooms and sounds", done, len(jobs))
    by_kind: dict[str, list[Room]] = {kind: made[kind] for kind in ROOM_KINDS}
    floors: list[FloatArray] = made[FLOOR]
    sounds: dict[str, list[FloatArray]] = {kind: made[kind] for kind in KINDS}
    rng = np.random.default_rng((seed, 77))
    rumbles = [_round(rumble(rng, _length() + _seam())) for _ in range(RUMBLES)]
    floors += [piece for place in _drawn(rng, noises, count) for piece in _recorded_noise(rng, place)]
    if noises:
        sounds["recorded"] = [unit_power(_recorded_sound(rng, place)) for place in _drawn(rng, noises, MAX_RECORDED)]
    if breaths:
        chosen = rng.permutation(len(breaths))[:MAX_RECORDED]
        # Their speech is at a root mean square of 0.1 of full scale: a breath is as loud as it was beside it.
        sounds["breaths"] = [
            breaths[index][: int(MAX_SOUND_S * SAMPLE_RATE_HZ)].astype(np.float32) / np.float32(3276.8)
            for index in chosen
        ]
    for kind, recorded in _recorded_rooms(rng, rooms, count).items():
        by_kind[kind] += recorded
    return Stock(by_kind, floors, rumbles, sounds)


def _make_one(seed: int, kind: str, number: int) -> Room | FloatArray:
    """A room, a noise or a sound; each has its own seed."""
    rng = np.random.default_rng((seed, 71, [*ROOM_KINDS, FLOOR, *KINDS].index(kind), number))
    if kind in ROOM_KINDS:
        return headset_room(rng, image_room(rng, "room")) if kind == HEADSET else image_room(rng, kind)
    if kind == FLOOR:
        return _round(noise(rng, _length() + _seam()))
    return make_sound(rng, kind)


def _length() -> int:
    return int(NOISE_S * SAMPLE_RATE_HZ)


def _seam() -> int:
    return int(SEAM_S * SAMPLE_RATE_HZ)


def _round(samples_N: FloatArray) -> FloatArray:
    """Fade the end into the beginning, at unit power."""
    seam = min(_seam(), len(samples_N) // 4)
    share_N = np.linspace(0.0, 1.0, seam, dtype=np.float32)
    whole_N = samples_N[: len(samples_N) - seam].copy()
    whole_N[:seam] = whole_N[:seam] * np.sqrt(share_N) + samples_N[len(samples_N) - seam :] * np.sqrt(1.0 - share_N)
    return unit_power(whole_N)


def _drawn(rng: np.random.Generator, places: Sequence[AudioPlace], count: int) -> list[AudioPlace]:
    return [places[index] for index in rng.permutation(len(places))[:count]]


def _recorded_noise(rng: np.random.Generator, place: AudioPlace) -> list[FloatArray]:
    """A stretch of a recording; nothing of one that is too short to go round, and is a sound alone."""
    samples_N = _audible(place)
    wanted = _length() + _seam()
    if len(samples_N) < 4 * _seam():
        return []
    start = int(rng.integers(max(1, len(samples_N) - wanted)))
    return [_round(samples_N[start : start + wanted])]


def _recorded_sound(rng: np.random.Generator, place: AudioPlace) -> FloatArray:
    samples_N = _audible(place)
    wanted = int(MAX_SOUND_S * SAMPLE_RATE_HZ)
    start = int(rng.integers(max(1, len(samples_N) - wanted)))
    return samples_N[start : start + wanted]


def _audible(place: AudioPlace) -> FloatArray:
    samples_N = place.load()
    if not np.any(np.abs(samples_N) > 1e-4):
        raise AudioError(f"{place}: expected noise, got silence; take the file away")
    return samples_N


def _recorded_rooms(rng: np.random.Generator, places: Sequence[AudioPlace], count: int) -> dict[str, list[Room]]:
    """Recorded responses as rooms of `PLACES` mouths, by how much of their energy comes late."""
    ordered = sorted(places, key=str)
    groups = [ordered[first : first + PLACES] for first in range(0, len(ordered), PLACES)]
    found: dict[str, list[Room]] = {"close": [], "room": [], "far": []}
    for index in rng.permutation(len(groups))[: 3 * count]:
        heard = [_from_direct(place) for place in groups[index]]
        responses = [heard[place % len(heard)] for place in range(PLACES)]
        length = max(len(response_N) for response_N in responses)
        rows = np.stack([np.pad(response_N, (0, length - len(response_N))) for response_N in responses])
        late_db = 10.0 * np.log10(float((rows[:, 40:] ** 2).sum(axis=1).mean()) + 1e-9)
        kind = "close" if late_db < -6.0 else "room" if late_db < 6.0 else "far"
        found[kind].append(Room(kind, rows))
    return found


def _from_direct(place: AudioPlace) -> FloatArray:
    """A recorded response from its direct sound on, at an amplitude of 1, less what nobody hears any more."""
    samples_NC, rate_hz = read_file(place.source(), name=str(place))
    # One microphone: the mean of several is no response.
    samples_N = resample(check_finite(samples_NC[:, 0], str(place)), check_rate(rate_hz))
    direct = int(np.argmax(np.abs(samples_N))) if len(samples_N) else 0
    if not len(samples_N) or abs(samples_N[direct]) < 1e-6:
        raise AudioError(f"{place}: expected an impulse response, got silence")
    response_N: FloatArray = samples_N[direct : direct + int(MAX_RESPONSE_S * SAMPLE_RATE_HZ)] / samples_N[direct]
    return response_N


def save_pieces(stem: Path, pieces: Sequence[npt.NDArray[Any]]) -> None:
    """Write arrays of one type as one file, and where each ends; `load_pieces` maps them into memory."""
    np.save(f"{stem}.ends.npy", np.cumsum([0] + [len(piece) for piece in pieces]))
    np.save(f"{stem}.npy", np.concatenate(pieces) if pieces else np.zeros(0, np.int16))


def load_pieces(stem: Path) -> list[npt.NDArray[Any]]:
    """What `save_pieces` wrote."""
    samples = np.load(f"{stem}.npy", mmap_mode="r")
    return [samples[start:end] for start, end in pairwise(np.load(f"{stem}.ends.npy"))]
