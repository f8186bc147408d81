"""An encoder-decoder that transcribes speech (Whisper)."""

from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import ShapeError
from mijax.core import site
from mijax.nn._basic import Embedding
from mijax.nn._encoder_decoder import AbstractEncoderDecoder, Stack
from mijax.nn._transformer import Transformer


@final
class SpeechToText(AbstractEncoderDecoder):
    """An encoder-decoder whose source is a log-mel spectrogram (Whisper).

    Two convolutions, each with a GELU after it, read the spectrogram; the second one
    keeps every other frame. Their outputs are the sites `encoder.conv_1` and
    `encoder.conv_2`. Silence at the end of a recording is not masked: the encoder reads
    it, as in training.

    Attributes:
        conv_1: the first convolution.
        conv_2: the second convolution.
        positions: positions of the source, `weight[source, embed]`.
        encoder: blocks and final norm of the encoder.
        decoder: the decoder.
        start: tokens that every target begins with.

    Examples:
        >>> import jax, mijax
        >>> spec = mijax.models.WhisperSpec(
        ...     layers=2, embed=16, heads=2, mlp=24, vocab=64, mels=8, source=10
        ... )
        >>> model = mijax.models.init(spec, jax.random.key(0))
        >>> x = spec.input(np.sin(np.arange(3000) / 10))
        >>> both = mijax.model(model, model.example)
        >>> mijax.run(both, model.inputs(x, [5, 6, 7])).shape
        (3, 64)
        >>> mijax.generate(model, x, steps=4).shape
        (4,)
    """

    conv_1: eqx.nn.Conv1d
    conv_2: eqx.nn.Conv1d
    positions: Embedding
    encoder: Stack
    decoder: Transformer
    start: tuple[int, ...] = eqx.field(static=True)

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one input: the spectrogram, and two tokens of a target."""
        frames = 2 * self.positions.weight.shape[0]
        source = (self.conv_1.in_channels, frames)
        return {
            "source": jax.ShapeDtypeStruct(source, jnp.float32),
            "target": jax.ShapeDtypeStruct((2,), jnp.int32),
        }

    def embed_source(self, inputs: Any) -> Float[Array, "source embed"]:
        """Return the convolutions of a spectrogram, with positions."""
        x = inputs["source"].astype(self.conv_1.weight.dtype)
        for name, conv in (("conv_1", self.conv_1), ("conv_2", self.conv_2)):
            x = jax.nn.gelu(conv(x), approximate=False)
            x = site(name, x, "channel position")
        return x.T + self.positions.weight

    def sources(self, source: Any) -> dict[str, Array]:
        """Return one spectrogram or a batch.

        Args:
            source: `[mel, frame]` or `[batch, mel, frame]`, as the preprocessing of the
                model returns it.

        Raises:
            ShapeError: something else.
        """
        x, shape = np.asarray(source), self.example["source"].shape
        if x.shape[-2:] != shape or x.ndim > 3 or x.dtype.kind != "f":
            raise ShapeError(
                f"Expected a spectrogram {list(shape)} or a batch of them, got "
                f"{x.dtype} of shape {list(x.shape)}. Use the preprocessing that comes "
                "with the model, lm.input(audio)."
            )
        return {"source": jax.device_put(x.astype(np.float32))}
