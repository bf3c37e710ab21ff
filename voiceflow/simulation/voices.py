"""The embedded corpus: voices made with espeak-ng, for machines that have no other speech."""

import csv
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from voiceflow.audio import FloatArray, load_audio, write_flac
from voiceflow.errors import PlatformError

LANGUAGES = ("en-us", "en-gb", "en-gb-scotland", "de", "fr-fr", "es", "it", "pt-br", "nl", "sv", "pl", "cs")
_VARIANT_NAMES = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 croak klatt klatt2 klatt3 klatt4 adam Andy Alex Alicia "
    "Annie antonio anikaRobot aunty Denis Diogo Gene Gene2 grandma grandpa Hugo Jacky john "
    "kaukovalta linda Lee max Michael Mike norbert quincy rob robert sandro shelby steph Storm "
    "Tweaky travis victor zac"
)
VARIANTS = _VARIANT_NAMES.split()
SENTENCES = (
    "Good morning everybody, shall we begin?",
    "I think the first point is already done.",
    "Yes.",
    "No, not yet, we are still waiting for the numbers.",
    "Could you say that again, please?",
    "The meeting room on the second floor is free after three.",
    "Right, and who is going to write the report this time?",
    "Well, that depends on how long the tests take.",
    "I see what you mean.",
    "We should talk to the people in the other team before Friday.",
    "Maybe.",
    "The price went up by seven percent since last autumn.",
    "Let me look at my notes for a moment.",
    "That is exactly what I was about to say.",
    "On the one hand it is cheap, on the other hand it is slow.",
    "Thank you, that was very clear.",
)


def synthesise_corpus(folder: Path, *, num_speakers: int, sentences_each: int, seed: int) -> None:
    """Write a corpus of espeak-ng voices as utterances.csv and one FLAC file a speaker.

    A voice is a language, a variant, a pitch and a speed; none is used twice.

    Args:
        folder: Where to; made if missing.
        num_speakers: Distinct voices.
        sentences_each: Utterances of each.
        seed: The same seed (and espeak-ng release) gives the same corpus.

    Raises:
        PlatformError: If espeak-ng is not installed.
    """
    program = find_espeak()
    rng = np.random.default_rng(seed)
    voices = []
    for index in range(num_speakers):
        voices.append(
            {
                "voice": f"{LANGUAGES[index % len(LANGUAGES)]}+{VARIANTS[int(rng.integers(len(VARIANTS)))]}",
                "pitch": int(rng.integers(10, 95)),
                "speed": int(rng.integers(120, 210)),
                "sentences": [int(pick) for pick in rng.permutation(len(SENTENCES))[:sentences_each]],
            }
        )
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as executor:
        rows = list(executor.map(lambda item: _speaker(program, folder, *item), enumerate(voices)))
    with (folder / "utterances.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "speaker", "start_s", "end_s", "source"])
        writer.writerows(row for speaker_rows in rows for row in speaker_rows)


def _speaker(program: str, folder: Path, index: int, voice: dict[str, object]) -> list[list[object]]:
    speaker = f"es-{index:04d}"
    path = folder / "audio" / f"{speaker}.flac"
    pieces, rows, cursor = [], [], 0
    sentences = voice["sentences"]
    assert isinstance(sentences, list)
    for sentence in sentences:
        options = ["-p", str(voice["pitch"]), "-s", str(voice["speed"])]
        samples_N = speak(program, str(voice["voice"]), SENTENCES[sentence], *options)
        rows.append([f"audio/{speaker}.flac", speaker, cursor / 16000, (cursor + len(samples_N)) / 16000, "espeak-ng"])
        pieces += [samples_N, np.zeros(4000, np.float32)]
        cursor += len(samples_N) + 4000
    write_flac(path, np.concatenate(pieces) * np.float32(0.8))
    return rows


def find_espeak() -> str:
    """Path of espeak-ng.

    Raises:
        PlatformError: It is not installed.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise PlatformError("espeak-ng is not installed; run `apt-get install espeak-ng`, or configure a corpus")
    return program


def speak(program: str, voice: str, text: str, *options: str) -> FloatArray:
    """A text as espeak-ng says it, mono float32 at 16 kHz, shape (N,).

    Raises:
        PlatformError: espeak-ng does not know the voice, or fails.
    """
    result = subprocess.run([program, "-v", voice, *options, "--stdout", text], capture_output=True, check=False)
    if result.returncode != 0 or not result.stdout:
        raise PlatformError(f"espeak-ng failed for voice {voice}: {result.stderr.decode(errors='replace')}")
    # espeak-ng writes a WAV header for an endless stream; give it its true length.
    return load_audio(_with_length(result.stdout), name="espeak-ng")


def _with_length(wav: bytes) -> bytes:
    data = bytearray(wav)
    data[4:8] = (len(wav) - 8).to_bytes(4, "little")
    at = data.find(b"data")
    data[at + 4 : at + 8] = (len(wav) - at - 8).to_bytes(4, "little")
    return bytes(data)
