"""Live audio for a stream: the microphone, or samples that another program writes to standard input."""

import asyncio
import sys
from collections.abc import AsyncIterator

import numpy as np

from voiceflow.audio import decode_pcm
from voiceflow.errors import PlatformError
from voiceflow.timebase import SAMPLE_RATE_HZ

PIECE_BYTES = 3200


async def standard_input() -> AsyncIterator[np.ndarray]:
    """Raw 16-bit mono samples at 16 kHz as they come; a sample may be split between reads."""
    loop = asyncio.get_running_loop()
    rest = b""
    while data := await loop.run_in_executor(None, sys.stdin.buffer.read1, PIECE_BYTES):
        data = rest + data
        whole = len(data) // 2 * 2
        rest = data[whole:]
        if whole:
            yield decode_pcm(data[:whole], "pcm_s16le")


async def microphone() -> AsyncIterator[np.ndarray]:
    """What the default microphone hears, until cancelled.

    Raises:
        PlatformError: No sounddevice package, or no microphone.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as err:  # OSError: no PortAudio
        raise PlatformError(
            f"expected the sounddevice package and PortAudio for the microphone ({err}): "
            "pip install sounddevice, apt-get install libportaudio2"
        ) from err
    loop = asyncio.get_running_loop()
    heard: asyncio.Queue[np.ndarray] = asyncio.Queue()

    def hear(block: np.ndarray, *_: object) -> None:
        loop.call_soon_threadsafe(heard.put_nowait, block[:, 0].copy())

    try:
        device = sounddevice.InputStream(
            samplerate=SAMPLE_RATE_HZ, channels=1, dtype="float32", blocksize=PIECE_BYTES // 2, callback=hear
        )
    except Exception as err:  # PortAudioError is only there with PortAudio
        raise PlatformError(f"no microphone: {err}") from err
    with device:
        while True:
            yield await heard.get()
