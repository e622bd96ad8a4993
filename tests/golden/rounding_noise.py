"""The one part of the goldens that no other machine can answer alike.

`previous_layer_resid_post_mlp` read backward is the gradient at the residual stream. Summed over channels it
is zero, because a layer norm follows; the golden response has the rounding noise of the machine that made it.
"""

from __future__ import annotations

from typing import Any

_NAME = "previous_layer_resid_post_mlp:b"


def noise_sums(response: dict[str, Any]) -> dict[str, Any] | None:
    """The sums that are zero but for rounding, where a response has them."""
    sub_response = response.get("inferenceSubResponses", [{}])[0]
    result = sub_response.get("processingResponseDataByName", {}).get(_NAME)
    if result is None:
        return None
    found: dict[str, Any] = result["intermediateSumActivationsByDstByGroupId"]["singleton"]
    return found["previous_layer_resid_post_mlp"]  # type: ignore[no-any-return]


def without_rounding_noise(golden: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The golden with its noise replaced by the answer's, once both are seen to be nothing but noise."""
    wanted, got = noise_sums(golden["response"]), noise_sums(answer)
    if wanted is not None and got is not None:
        assert all(abs(number) < 1e-5 for number in (*wanted["value"], *got["value"]))
        wanted["value"] = got["value"]
    return golden
