"""`StopGradient`: outputs stay, gradients stop where it is placed."""

import jax
import jax.numpy as jnp
import numpy as np

import mijax
from mijax import Site
from mijax.core import StopGradient

TOKENS = jnp.array([[5, 6, 7, 8], [1, 2, 3, 4]])
METRIC = mijax.logit_difference(3, 4)


def model():
    return mijax.testing.tiny_gpt2(jax.random.key(0))


def test_outputs_stay():
    stop = StopGradient().at("resid_mid", layer=1)
    plain = mijax.run(model(), TOKENS)
    np.testing.assert_array_equal(mijax.run(model(), TOKENS, stop), plain)


def test_gradients_stop_at_the_place_and_nowhere_else():
    def at(name, edits=None):
        return mijax.gradients(model(), TOKENS, METRIC, Site(name), edits)

    stop = StopGradient().at("z", layer=1, head=2, position=3)
    found, plain = at("v", stop), at("v")
    np.testing.assert_array_equal(found[:, 2], plain[:, 2])
    np.testing.assert_array_equal(found[:, 1, :, [0, 1, 3]], plain[:, 1, :, [0, 1, 3]])
    # The metric reads the last position, so position 3 is all that head 2 is for.
    assert not np.any(found[:, 1, 3, 2])
    assert np.any(found[:, 1, 0, 2])
    assert np.any(plain[:, 1, 3, 2])
    assert np.any(found[:, 0] != plain[:, 0])


def test_no_way_around_gives_no_gradient():
    stop = StopGradient().at("resid_post", layer=1)
    found = mijax.gradients(model(), TOKENS, METRIC, Site("resid_pre"), stop)
    assert not np.any(found[:, :2])
    assert np.any(found[:, 2])
