"""Names and axes that the sites of every decoder (`AbstractModel`) have."""

from typing import Any

from mijax._errors import SiteError, nearest
from mijax.core._sites import BLOCK_SITES, HEAD_SITES, INDICES, SITES, Site

# Name of the last axis, for which `feature` stands, where it is not `embed`.
LAST_AXES = {
    **dict.fromkeys(("q", "k", "v", "q_rotated", "k_rotated", "z"), "head_dim"),
    **dict.fromkeys(("scores", "pattern"), "key_position"),
    **dict.fromkeys(("mlp_pre", "mlp_gate", "mlp_up", "mlp_post"), "mlp"),
    **dict.fromkeys(("attn_norm_scale", "mlp_norm_scale"), "scale"),
    "logits": "vocab",
}


def check_decoder_site(site: Site) -> None:
    """Refuse names and axes that no decoder (`AbstractModel`) has.

    Raises:
        SiteError: an unknown name, or an index that the site does not have.
    """
    if site.name not in SITES:
        raise SiteError(f"There is no site {site.name!r}.{nearest(site.name, SITES)}")
    if site.layer is not None and site.name not in BLOCK_SITES:
        raise SiteError(f"Site {site.name!r} has no layer: it is outside the blocks.")
    if site.head is not None and site.name not in HEAD_SITES:
        raise SiteError(
            f"Site {site.name!r} has no heads; sites per head: {', '.join(HEAD_SITES)}."
        )
    for axis in site.axes or {}:
        if axis != last_axis_of(site.name):
            names = (*INDICES, last_axis_of(site.name))
            raise SiteError(
                f"Site {site.name!r} has no axis {axis!r}.{nearest(axis, names)}"
            )


def last_axis_of(name: str) -> str:
    """Return the name of the last axis of a decoder's site."""
    return LAST_AXES.get(name, "embed")


def with_feature(site: Any) -> Any:
    """Return a decoder's site whose index on the last axis is its feature.

    Anything else than a site stays as it is.

    Raises:
        SiteError: the last axis is given twice.
    """
    if not isinstance(site, Site):
        return site
    last = last_axis_of(site.name)
    index = (site.axes or {}).get(last)
    if index is None:
        return site
    if site.feature is not None:
        raise SiteError(
            f"Site {site.name!r} is given feature= and {last}=, which are one axis."
        )
    rest = {axis: i for axis, i in site.indices.items() if axis != last}
    return Site(site.name, **rest, feature=index)
