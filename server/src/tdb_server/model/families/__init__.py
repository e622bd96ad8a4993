"""Model families: from a Hugging Face `config.json` to the decoder's own configuration, a file for each.

A family says which switches of `DecoderConfig` it sets, and what its checkpoints call the weights. What the
decoder cannot compute is refused, before any weight is read.
"""

from __future__ import annotations

from tdb_server.errors import ModelBroken, UnsupportedModel
from tdb_server.model.config import DecoderConfig
from tdb_server.model.families import gemma, gpt2, gpt_neox, llama, olmo, phi3, stablelm
from tdb_server.model.families.entries import Block
from tdb_server.model.families.family import Family
from tdb_server.model.families.weight_names import WeightNames
from tdb_server.model.model_files import SINGLE_FILE

FAMILIES: dict[str, Family] = {
    name: family
    for one in (gemma, gpt2, gpt_neox, llama, olmo, phi3, stablelm)
    for name, family in one.FAMILIES.items()
}
"""Every family the decoder can compute, by its `model_type`."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def decoder_config_from_hugging_face(config: Block) -> DecoderConfig:
    """Translates the content of a `config.json`, as written by transformers 5 or before.

    Raises:
        UnsupportedModel: unknown family, activation function or option that changes the mathematics.
        ModelBroken: a number is missing or makes no sense.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        kind = " (a mixture of experts)" if any(name in config for name in _EXPERTS) else ""
        raise UnsupportedModel(
            f"config.json: model_type {family!r}{kind} is not supported; {', '.join(sorted(FAMILIES))} are"
        )
    if config.get("quantization_config") is not None:
        raise UnsupportedModel("config.json: quantized weights are not supported; a GGUF file is")
    if config.get("transformers_weights") not in (None, SINGLE_FILE):
        raise UnsupportedModel(
            f"config.json: transformers_weights {config['transformers_weights']!r}: weights in a file of "
            f"another name than {SINGLE_FILE} are not supported"
        )
    if not config.get("is_causal", True):
        raise UnsupportedModel(
            f"config.json: is_causal {config['is_causal']!r}: attention to later tokens is not supported"
        )
    decoder_config = FAMILIES[family].configure(config)
    if decoder_config.n_heads % decoder_config.n_key_value_heads:
        raise ModelBroken(
            f"config.json: {decoder_config.n_heads} heads cannot share "
            f"{decoder_config.n_key_value_heads} key/value heads evenly"
        )
    return decoder_config


def weight_names(family: str) -> WeightNames:
    """What checkpoints of a family call the weights, by its `model_type`."""
    return FAMILIES[family].names
