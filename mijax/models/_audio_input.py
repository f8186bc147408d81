"""Preprocessing of audio as a value: samples to the input of a speech model."""

import dataclasses
import os
import wave
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ConfigError, LoadError, ShapeError

RATE = 16000
WINDOW, HOP = 400, 160
# Mel scale of Slaney's Auditory Toolbox: linear up to 1000 Hz, logarithmic above.
LINEAR, BREAK, STEP = 200 / 3, 1000.0, np.log(6.4) / 27
# Quieter than the loudest value by this many powers of ten is silence.
RANGE = 8.0


@dataclasses.dataclass(frozen=True)
class AudioInput:
    r"""Samples of a voice to the input of a speech model, a log-mel spectrogram.

    Audio is filled up with silence. Each frame is 25 ms, one for every 10 ms, under a
    Hann window; its power is summed by `mels` triangular filters, of equal area, that
    are spaced evenly on the mel scale up to 8 kHz. With $p$ these sums,
    $x = \max(\log_{10} \max(p, 10^{-10}), m - 8) / 4 + 1$, where $m$ is the largest
    logarithm (Radford et al. 2022, arXiv:2212.04356).

    Attributes:
        mels: number of filters.
        frames: number of frames, 100 for each second.

    Raises:
        ConfigError: a number below 1.

    Examples:
        >>> import numpy as np
        >>> to_input = AudioInput(mels=80, frames=200)
        >>> to_input(np.sin(np.arange(16000) / 10)).shape
        (80, 200)
    """

    mels: int = 80
    frames: int = 3000

    def __post_init__(self) -> None:
        if min(self.mels, self.frames) < 1:
            raise ConfigError(
                f"mels is {self.mels} and frames is {self.frames}: give at least 1."
            )

    def __call__(self, audio: Any) -> Float[Array, "mel frame"]:
        """Turn one recording into the input of the model.

        Args:
            audio: samples `[sample]` at 16 kHz, floats from -1 to 1 or 16-bit integers,
                or the path of a WAV file of PCM at 16 kHz, of which channels are
                averaged.

        Returns:
            float32.

        Raises:
            LoadError: no WAV file, a broken one, or another sampling rate.
            ShapeError: an array of another rank or kind, or a recording that is longer
                than the model reads.
        """
        samples = samples_of(audio)
        most = self.frames * HOP
        if len(samples) > most:
            raise ShapeError(
                f"The audio has {len(samples) / RATE:.1f} s, but the model reads "
                f"{most / RATE:g} s: cut it into parts."
            )
        return jax.device_put(self._spectrogram(samples).astype(np.float32))

    def _spectrogram(
        self, samples: Float[np.ndarray, " sample"]
    ) -> Float[np.ndarray, "mel frame"]:
        padded = np.pad(samples, (0, self.frames * HOP - len(samples)))
        padded = np.pad(padded, WINDOW // 2, mode="reflect")
        # A frame is centered at its first sample; the one behind the end is left out.
        every = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)
        frames = every[: self.frames * HOP : HOP]
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
        power = np.abs(np.fft.rfft(frames * window)) ** 2
        loud = np.log10(np.maximum(mel_filters(self.mels) @ power.T, 1e-10))
        return np.maximum(loud, loud.max() - RANGE) / 4 + 1


def mel_filters(count: int) -> Float[np.ndarray, "mel frequency"]:
    """Return triangular filters of the frequencies of a frame, of equal area.

    Args:
        count: number of filters.
    """
    frequency = np.fft.rfftfreq(WINDOW, 1 / RATE)
    edge = BREAK / LINEAR
    mel = np.linspace(0, edge + np.log(RATE / 2 / BREAK) / STEP, count + 2)
    border = np.where(mel < edge, LINEAR * mel, BREAK * np.exp(STEP * (mel - edge)))
    low, center, high = (border[i : count + i, None] for i in range(3))
    rising = (frequency - low) / (center - low)
    falling = (high - frequency) / (high - center)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)


def samples_of(audio: Any) -> Float[np.ndarray, " sample"]:
    """Return the samples of a recording, from -1 to 1.

    Raises:
        LoadError: no WAV file, a broken one, or another sampling rate.
        ShapeError: an array of another rank or kind.
    """
    if isinstance(audio, str | os.PathLike):
        return read_wav(Path(audio))
    samples = np.asarray(audio)
    if samples.ndim != 1 or not samples.size or samples.dtype.kind not in "fi":
        raise ShapeError(
            "Audio is an array [sample] of floats or 16-bit integers, or the path of a "
            f"WAV file; got {samples.dtype} of shape {samples.shape}."
        )
    if samples.dtype.kind == "i":
        if samples.dtype != np.int16:
            raise ShapeError(
                f"Integer samples have 16 bits, got {samples.dtype}: divide by the "
                "largest value and give floats."
            )
        return samples / 2.0**15
    return samples.astype(np.float64)


def read_wav(path: Path) -> Float[np.ndarray, " sample"]:
    """Read a WAV file of PCM, and average its channels.

    Raises:
        LoadError: no such file, a broken one, or another sampling rate.
    """
    try:
        with wave.open(str(path), "rb") as file:
            rate, width = file.getframerate(), file.getsampwidth()
            channels = file.getnchannels()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise LoadError(
            f"{path} is not a WAV file of PCM ({error}): give one, or an array of "
            "samples at 16 kHz."
        ) from error
    if rate != RATE:
        raise LoadError(
            f"{path} has {rate} samples for each second, expected {RATE}: resample it."
        )
    whole = np.frombuffer(
        data[: len(data) // (width * channels) * width * channels], np.uint8
    )
    # Samples are little-endian; 8 bits are unsigned. The high bytes of 32 hold any.
    wide = np.zeros((len(whole) // width, 4), np.uint8)
    wide[:, 4 - width :] = whole.reshape(-1, width)
    if width == 1:
        wide[:, 3] ^= 128
    samples = wide.view("<i4")[:, 0] / 2.0**31
    if not len(samples):
        raise LoadError(f"{path} has no samples: give a recording.")
    return samples.reshape(-1, channels).mean(1)
