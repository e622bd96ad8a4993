"""The keys of a GGUF file's architecture, read with care.

Each is read, or known to change nothing, or the file is refused with its name.
"""

from __future__ import annotations

import math
from typing import Any

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.gguf_file import GgufFile

FLOAT32_PRECISION = 1e-6
"""How much a number in the file may differ from the one that it stands for."""

PER_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
"""Keys that may be lists with an entry for each layer."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_group_count": (0,),
    "expert_group_used_count": (0,),
    "expert_shared_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0.0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (0.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "router_logit_softcapping": (0.0,),
    "tensor_data_layout": ("reference", "Meta AI original pth"),
    "use_parallel_residual": (False,),
}
"""Keys with the values that switch off what they stand for; with others the file is refused."""

HARMLESS = (
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)
"""Keys that steer nothing but scalings that are refused, where nothing reads them."""


class ArchitectureKeys:
    """The `{architecture}.*` keys of a file. It knows which were read, so that the others can be refused."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.architecture = architecture
        self._file = file
        self._prefix = f"{architecture}."
        self._values = {
            key.removeprefix(self._prefix): value
            for key, value in file.metadata.items()
            if key.startswith(self._prefix)
        }
        self._unread = set(self._values)
        self.n_layers = self.count("block_count")
        n_stored = len({name.split(".")[1] for name in file.tensors if name.startswith("blk.")})
        if self.n_layers > n_stored:
            raise self.broken(
                "block_count", f"is {self.n_layers}, but there are tensors of {n_stored} layers"
            )

    def take(self, key: str) -> Any:
        """A value as it is; None where the key is missing."""
        self._unread.discard(key)
        return self._values.get(key)

    def scalar(self, key: str) -> Any:
        """A value that all layers share; None where the key is missing.

        Raises:
            UnsupportedModel: it differs between layers, or is a list where none may be.
            ModelBroken: the list is not as long as there are layers.
        """
        value = self.take(key)
        if not isinstance(value, list):
            return value
        if key not in PER_LAYER:
            raise self.unsupported(key, "is a list, where one value is expected")
        if len(value) != self.n_layers:
            raise self.broken(key, f"has {len(value)} entries for {self.n_layers} layers")
        if len(set(value)) > 1:
            raise self.unsupported(
                key, f"differs between layers, which is not supported: {sorted(set(value))}"
            )
        return value[0]

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self.scalar(key)
        if value is None:
            value = default
        if value is None:
            raise self.broken(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.broken(key, f"must be a whole number above 0, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None, *, may_be_zero: bool = False) -> float:
        """A number above 0, or from 0."""
        value = self.scalar(key)
        if value is None:
            value = default
        if value is None:
            raise self.broken(key, "is missing")
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or value < 0 or (value == 0 and not may_be_zero):
            raise self.broken(key, f"must be a number above 0, not {value!r}")
        return float(value)

    def expect(self, key: str, *expected: float) -> None:
        """Refuses a key of another value than those expected; it may be missing."""
        value = self.scalar(key)
        is_expected = isinstance(value, int | float) and any(
            math.isclose(value, one, rel_tol=FLOAT32_PRECISION) for one in expected
        )
        if value is not None and not is_expected:
            raise self.unsupported(key, f"is {value!r}; only {expected[0]} is supported for this model")

    def broken(self, key: str, what: str) -> ModelBroken:
        """An error about a key."""
        return ModelBroken(f"{self._file.path}: {self._prefix}{key} {what}")

    def unsupported(self, key: str, what: str) -> UnsupportedModel:
        """An error about a key."""
        return UnsupportedModel(f"{self._file.path}: {self._prefix}{key} {what}")

    def refuse_unread(self) -> None:
        """Refuses a key that nothing has read and that is not known to change nothing."""
        for key in sorted(self._unread.difference(HARMLESS)):
            if key not in NEUTRAL:
                raise self.unsupported(key, "is a key that is not known here")
            value = self._values[key]
            if not isinstance(value, bool | int | float | str) or value not in NEUTRAL[key]:
                raise self.unsupported(key, f"is {value!r}; only {NEUTRAL[key][-1]!r} is supported")
