"""Names by which files say where a dictionary reads and writes, as sites."""

import re
from typing import Any

from mijax._errors import OutputError
from mijax.core import Site

# TransformerLens' names inside a block. Those that mean something else than any site
# (a norm's output before its weight, keys and values of grouped heads) are left out.
IN_BLOCK = {
    "hook_resid_pre": "resid_pre",
    "attn.hook_q": "q",
    "attn.hook_z": "z",
    "hook_attn_out": "attn_out",
    "hook_resid_mid": "resid_mid",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_post": "mlp_post",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
    "hook_resid_post": "resid_post",
}
HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
# Names of modules, as in Hugging Face's models: the module's output.
MODULE = re.compile(
    r"(?:.*\.)?(?:layers|h)\.(\d+)(?:\.(mlp|attn|self_attn|attention))?"
)
MODULES = {None: "resid_post", "mlp": "mlp_out"} | dict.fromkeys(
    ("attn", "self_attn", "attention"), "attn_out"
)
SUBMODULE = re.compile(
    r"(resid_pre|resid_mid|resid_post|resid_out|mlp_out|attn_out)_layer_?(\d+)"
)


def site_of_hook(name: Any, head: Any = None) -> Site | None:
    """Returns the site of a TransformerLens hook, `None` where there is none."""
    found = HOOK.fullmatch(name) if isinstance(name, str) else None
    if found is None or found[2] not in IN_BLOCK:
        return None
    return Site(IN_BLOCK[found[2]], layer=int(found[1]), head=head)


def site_of_module(name: str) -> Site | None:
    """Returns the site of a module's output, `None` where there is none."""
    found = MODULE.fullmatch(name)
    return found and Site(MODULES[found[2]], layer=int(found[1]))


def site_of_submodule(name: Any) -> Site | None:
    """Returns the site of a name such as `resid_post_layer_8`, `None` of others."""
    found = SUBMODULE.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        return None
    return Site(found[1].replace("resid_out", "resid_post"), layer=int(found[2]))


def hook_of_site(site: Site | None) -> str | None:
    """Returns the TransformerLens hook of a site.

    Raises:
        OutputError: a site that has none, or a part of a site.
    """
    if site is None:
        return None
    names = {place: hook for hook, place in reversed(IN_BLOCK.items())}
    part = site.position is not None or site.feature is not None
    if site.name not in names or site.layer is None or part:
        raise OutputError(
            f"This format cannot say {site}: it knows sites of one layer, of "
            f"{', '.join(names)}. Leave the site out."
        )
    return f"blocks.{int(site.layer)}.{names[site.name]}"


def submodule_of_site(site: Site) -> str:
    """Returns the name of a site such as `resid_post_layer_8`.

    Raises:
        OutputError: a site that has none, or a part of a site.
    """
    parts = (site.position, site.head, site.feature)
    name = f"{site.name}_layer_{site.layer}"
    if site_of_submodule(name) is None or any(part is not None for part in parts):
        raise OutputError(
            f"This format cannot say {site}: it knows whole sites of one layer, of "
            "resid_pre, resid_mid, resid_post, mlp_out, attn_out. Leave the site out."
        )
    return name
