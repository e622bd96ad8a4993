"""Derived scalars that can be asked for with some dictionaries."""

from __future__ import annotations

from tdb_server.domain.axes import LATENT_TYPES, hook_point_of_scalar
from tdb_server.domain.derived_scalar import DerivedScalar
from tdb_server.domain.model_info import Site


def ranked_scalars(*sites: Site) -> list[DerivedScalar]:
    """All that are ranked, in any request, of a model with dictionaries of these sites alone."""
    unknown = {*LATENT_TYPES.values()} - {site.node_type for site in sites}
    return [
        one
        for one in DerivedScalar
        if one is not DerivedScalar.ATTN_WRITE_TO_LATENT_SUMMED_OVER_HEADS
        and ((hook_point := hook_point_of_scalar(one)) is None or LATENT_TYPES.get(hook_point) not in unknown)
    ]
