"""Audio in: spectrograms are those of transformers, WAV files are read."""

import wave

import numpy as np
import pytest
from family_weights import golden, recording

import mijax
from mijax.models import AudioInput

MOST = 2**15


def write(path, samples, *, rate=16000, width=2):
    """Write samples `[sample]` or `[sample, channel]`, from -1 to 1."""
    samples = np.asarray(samples)
    whole = np.round(samples * 2.0 ** (8 * width - 1)).astype("<i8")
    data = whole[..., None].view(np.uint8)[..., :width]
    if width == 1:
        data = data ^ 128
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data.tobytes())
    return path


@pytest.mark.parametrize(("mels", "every"), [(80, 1), (128, 3)])
def test_spectrograms_are_those_of_transformers(mels, every):
    found = np.asarray(AudioInput(mels, 100)(recording()))[:, ::every]
    np.testing.assert_allclose(found, golden("whisper")[f"mel_{mels}"], atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_wav_file_is_its_samples(width, tmp_path):
    to_input, steps = AudioInput(8, 20), 2.0 ** (8 * width - 1)
    samples = np.round(0.9 * np.sin(np.arange(3000) / 9) * steps) / steps
    file = write(tmp_path / "one.wav", samples, width=width)
    np.testing.assert_allclose(to_input(file), to_input(samples), atol=1e-6)
    both = np.stack([samples, np.zeros(3000)], 1)
    file = write(tmp_path / "two.wav", both, width=width)
    np.testing.assert_allclose(to_input(str(file)), to_input(samples / 2), atol=1e-6)


def test_integers_are_parts_of_the_largest():
    samples = np.array([0, 1, -MOST, MOST - 1] * 100, np.int16)
    to_input = AudioInput(8, 20)
    np.testing.assert_array_equal(to_input(samples), to_input(samples / MOST))


def test_a_tone_is_in_the_filter_of_its_frequency():
    """Filters are even up to 1000 Hz: with 80, one is 37.2 Hz wide at the center."""
    tone = np.sin(2 * np.pi * 500 * np.arange(16000) / 16000)
    loudest = np.asarray(AudioInput(80, 100)(tone))[:, 50].argmax()
    mel = 15 + 27 * np.log(8) / np.log(6.4)
    assert abs((loudest + 1) * mel / 81 * 200 / 3 - 500) < 40


@pytest.mark.parametrize(
    ("audio", "says"),
    [
        (np.zeros((2, 8)), r"shape \(2, 8\)"),
        (np.zeros(0), r"shape \(0,\)"),
        (np.zeros(8, np.int32), "16 bits"),
        (np.zeros(3201), r"0.2 s, but the model reads 0.2 s"),
        ("nothing.wav", "is not a WAV file"),
    ],
)
def test_what_is_no_recording_is_refused(audio, says):
    with pytest.raises(mijax.MijaxError, match=says) as caught:
        AudioInput(8, 20)(audio)
    assert "\n" not in str(caught.value)


def test_what_a_file_has_to_be(tmp_path):
    slow = write(tmp_path / "slow.wav", np.zeros(9), rate=8000)
    with pytest.raises(mijax.MijaxError, match="has 8000 samples for each second"):
        AudioInput()(slow)
    empty = write(tmp_path / "empty.wav", np.zeros(0))
    with pytest.raises(mijax.MijaxError, match="no samples"):
        AudioInput()(empty)
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    with pytest.raises(mijax.MijaxError, match="is not a WAV file"):
        AudioInput()(broken)
    with pytest.raises(mijax.MijaxError, match="mels is 0"):
        AudioInput(mels=0)
