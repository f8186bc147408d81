"""Logistic regression of two classes, as `probes.Logistic` solves it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mijax.probes import Logistic
from mijax.probes.internal import Data, per_feature


def balanced(positive: Bool[Array, " example"]) -> Float[Array, " example"]:
    """Returns weights of mean 1 under which both classes count the same."""
    share = positive.mean()
    return jnp.where(positive, 0.5 / share, 0.5 / (1 - share))


def logistic(
    x: Float[Array, "example feature"],
    positive: Bool[Array, " example"],
    weight: Float[Array, " example"],
    l2: Float[Array, ""],
) -> tuple[Float[Array, " feature"], Float[Array, ""]]:
    r"""Minimizes $\sum_n a_n \ell_n + \tfrac{l_2}{2} \lVert w \rVert^2$.

    The penalty applies to features of variance 1; a feature without variance has no
    weight.

    Args:
        x: features.
        positive: which examples are of the class.
        weight: of examples.
        l2: penalty.

    Returns:
        Weights of the features as given, and the bias.
    """
    total = weight.sum()
    share = weight / total
    frame = per_feature(x, share)
    data = Data(frame.enter(x), positive.astype(int), share, classes=2)
    # `Logistic` minimizes the mean loss, so its penalty is per unit of weight.
    found = Logistic().solve(data, l2 / total, jax.random.key(0)).params
    w = found.weight[:, 0] / frame.scale
    return w, found.bias[0] - frame.mean @ w
