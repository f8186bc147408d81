"""Names and axes that the sites of every decoder (`AbstractModel`) have."""

from typing import Any

from mijax._errors import SiteError, nearest
from mijax.core._sites import (
    BLOCK_SITES,
    HEAD_SITES,
    INDICES,
    SECOND_AXES,
    SITES,
    Site,
    has_second_axis,
)

# Name of the last axis, for which `feature` stands, where it is not `embed`.
LAST_AXES = {
    **dict.fromkeys(("q", "k", "v", "q_rotated", "k_rotated", "z"), "head_dim"),
    "z_gate": "head_dim",
    **dict.fromkeys(("conv_out", "mixer_scan", "mixer_gate", "mixer_out"), "channel"),
    **dict.fromkeys(("ssm_delta", "gdn_alpha", "gdn_beta"), "scale"),
    **dict.fromkeys(("ssm_b", "ssm_c", "mixer_state"), "state"),
    **dict.fromkeys(("scores", "pattern"), "key_position"),
    **dict.fromkeys(("mlp_pre", "mlp_gate", "mlp_up", "mlp_post"), "mlp"),
    **dict.fromkeys(("attn_norm_scale", "mlp_norm_scale", "shared_gate"), "scale"),
    **dict.fromkeys(("q_latent", "kv_latent"), "latent"),
    **dict.fromkeys(("router_logits", "router_weights"), "expert"),
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
    if site.head is not None and not has_second_axis(site.name):
        raise SiteError(
            f"Site {site.name!r} has no heads; sites per head: {', '.join(HEAD_SITES)}."
        )
    own = (last_axis_of(site.name), *second_axis_of(site.name))
    for axis in site.axes or {}:
        if axis not in own:
            names = (*INDICES, *own)
            raise SiteError(
                f"Site {site.name!r} has no axis {axis!r}.{nearest(axis, names)}"
            )


def last_axis_of(name: str) -> str:
    """Return the name of the last axis of a decoder's site."""
    return LAST_AXES.get(name, "embed")


def second_axis_of(name: str) -> tuple[str, ...]:
    """Return the name of a site's axis between position and feature, if not `head`."""
    return (SECOND_AXES[name],) if name in SECOND_AXES else ()


def own_names(name: str) -> dict[str, str]:
    """Return the index that stands for each axis that a site names itself."""
    found = dict.fromkeys(second_axis_of(name), "head")
    return found | {last_axis_of(name): "feature"}


def with_feature(site: Any) -> Any:
    """Return a decoder's site whose index on the last axis is its feature.

    An index of an expert is its head. Anything else than a site stays as it is.

    Raises:
        SiteError: an axis is given twice.
    """
    if not isinstance(site, Site):
        return site
    for axis, index in own_names(site.name).items():
        value = (site.axes or {}).get(axis)
        if value is None:
            continue
        if getattr(site, index) is not None:
            raise SiteError(
                f"Site {site.name!r} is given {index}= and {axis}=, which are one axis."
            )
        rest = {other: i for other, i in site.indices.items() if other != axis}
        site = Site(site.name, **rest | {index: value})
    return site
