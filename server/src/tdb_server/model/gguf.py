"""GGUF files, llama.cpp's format: read, dequantized to float32, and written as a Hugging Face folder.

The format holds weights, configuration and tokenizer in one file (github.com/ggml-org/ggml, docs/gguf.md).
Each tensor is dequantized and written before the next, so memory is needed for the largest of them alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from tdb_server.errors import ModelBroken, ModelError, UnsupportedModel
from tdb_server.model.gguf_tokenizer import write_tokenizer
from tdb_server.model.model_files import CONFIG_FILE, SINGLE_FILE
from tdb_server.model.progress import Progress, no_progress
from tdb_server.model.weight_names import WeightNames, weight_names

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
"""Those read here, by `general.architecture`; Mistral's files call themselves llama."""

Metadata = dict[str, Any]


def convert_gguf(path: Path, folder: Path, progress: Progress = no_progress) -> None:
    """Writes `config.json`, `model.safetensors` (float32) and the tokenizer's files into an existing folder.

    Args:
        path: the GGUF file.
        folder: where to write.
        progress: told how far it is.

    Raises:
        ModelBroken: the file is damaged or something in it is missing.
        UnsupportedModel: an architecture, tensor, option or tokenizer that is not known here.
        ModelError: the package `gguf` is not installed.
    """
    progress("reading GGUF", 0.0)
    reader = _open(path)
    try:
        metadata: Metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise ModelBroken(f"{path}: damaged metadata: {error}") from error
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{path}: architecture {architecture!r} is not supported; {', '.join(ARCHITECTURES)} are"
        )
    try:
        config = _hugging_face_config(metadata, reader.tensors)
    except KeyError as error:
        raise ModelBroken(f"{path}: {error.args[0]} is missing") from error
    write_tokenizer(path, metadata, folder)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1), encoding="utf-8")
    names = _hugging_face_names(weight_names(str(architecture)), len(_layers(reader.tensors)))
    unknown = sorted(tensor.name for tensor in reader.tensors if tensor.name not in names)
    if unknown:
        raise UnsupportedModel(f"{path}: tensor {unknown[0]} has no place in a {architecture} model here")
    with (folder / SINGLE_FILE).open("wb") as file:
        _write_safetensors(file, path, reader.tensors, names, config, progress)


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise ModelError(
            f"{path}: GGUF files need the package gguf: pip install transformer-debugger-server[demo]"
        ) from None
    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, OverflowError) as error:
        raise ModelBroken(f"{path}: not a readable GGUF file: {error}") from error


def _hugging_face_config(metadata: Metadata, tensors: list[Any]) -> dict[str, object]:
    """The `config.json` that says the same as the metadata.

    Raises:
        KeyError: something is missing.
        UnsupportedModel: experts, or rotation of a part of each head.
    """
    architecture: str = metadata["general.architecture"]
    values = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    shapes = {tensor.name: [int(n) for n in reversed(tensor.shape)] for tensor in tensors}
    common: dict[str, object] = {
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
    }
    if architecture == "gpt2":
        return common | {
            "model_type": "gpt2",
            "n_layer": values["block_count"],
            "n_embd": values["embedding_length"],
            "n_head": values["attention.head_count"],
            "n_inner": values["feed_forward_length"],
            "n_positions": values["context_length"],
            "layer_norm_epsilon": values["attention.layer_norm_epsilon"],
        }
    n_heads = values["attention.head_count"]
    d_head = values.get("attention.key_length", values["embedding_length"] // n_heads)
    if values.get("expert_count", 0) or values.get("rope.dimension_count", d_head) != d_head:
        raise UnsupportedModel("experts, and rotary positions in a part of each head, are not supported")
    rotary = {"rope_theta": values.get("rope.freq_base", 10000.0)}
    if values.get("rope.scaling.type", "none") != "none":
        rotary |= {"rope_type": values["rope.scaling.type"], "factor": values.get("rope.scaling.factor")}
    window = values.get("attention.sliding_window")
    return common | {
        "model_type": "mistral" if architecture == "llama" and window else architecture,
        "num_hidden_layers": values["block_count"],
        "hidden_size": values["embedding_length"],
        "num_attention_heads": n_heads,
        "num_key_value_heads": values.get("attention.head_count_kv", n_heads),
        "head_dim": d_head,
        "intermediate_size": values["feed_forward_length"],
        "max_position_embeddings": values["context_length"],
        "rms_norm_eps": values["attention.layer_norm_rms_epsilon"],
        "rope_parameters": rotary,
        "sliding_window": window,
        "use_sliding_window": bool(window),
        "max_window_layers": 0,
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
    }


def _layers(tensors: list[Any]) -> set[str]:
    return {tensor.name.split(".")[1] for tensor in tensors if tensor.name.startswith("blk.")}


def _hugging_face_names(names: WeightNames, n_layers: int) -> dict[str, str]:
    """From every name that a GGUF file of a family may use to the checkpoint's."""
    parts = {
        "token_embd": names.prefix + names.token_embedding,
        "position_embd": names.prefix + names.position_embedding,
        "output_norm": names.prefix + names.final_norm,
        "output": names.unembedding,
    }
    inside = {
        "attn_norm": names.attn_norm,
        "attn_output": names.attn_out,
        "ffn_norm": names.mlp_norm,
        "ffn_down": names.mlp_out,
    }
    inside |= dict(zip(("attn_q_norm", "attn_k_norm"), names.head_norms, strict=True))
    qkv = ("attn_qkv",) if len(names.qkv) == 1 else ("attn_q", "attn_k", "attn_v")
    inside |= dict(zip(qkv, names.qkv, strict=True))
    mlp_in = ("ffn_up",) if len(names.mlp_in) == 1 else ("ffn_gate", "ffn_up")
    inside |= dict(zip(mlp_in, names.mlp_in, strict=True))
    for layer_index in range(n_layers):
        for gguf_name, name in inside.items():
            parts[f"blk.{layer_index}.{gguf_name}"] = f"{names.prefix}{names.layers}.{layer_index}.{name}"
    return {f"{gguf}.{end}": f"{name}.{end}" for gguf, name in parts.items() for end in ("weight", "bias")}


def _write_safetensors(
    file: IO[bytes],
    path: Path,
    tensors: list[Any],
    names: dict[str, str],
    config: dict[str, object],
    progress: Progress,
) -> None:
    """Writes the header, for which the shapes suffice, and then one tensor after the other."""
    shapes = [_stored_shape(tensor, config) for tensor in tensors]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, shape in zip(tensors, shapes, strict=True):
        start, end = end, end + 4 * int(np.prod(shape))
        header[names[tensor.name]] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format asks for aligned data
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    written = 0
    for values in _dequantized(path, tensors, config):
        file.write(values.data)
        written += values.nbytes
        progress("dequantizing", written / end)


def _dequantized(path: Path, tensors: list[Any], config: dict[str, object]) -> Iterator[NDArray[np.float32]]:
    from gguf.quants import dequantize

    for tensor in tensors:
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedModel(f"{path}: {tensor.name} cannot be dequantized: {error}") from error
        if _is_transposed(tensor.name, config):
            values = values.T
        elif config["model_type"] in ("llama", "mistral"):
            values = _unpaired(tensor.name, values, config)
        yield np.ascontiguousarray(values, dtype=np.float32)


def _stored_shape(tensor: Any, config: dict[str, object]) -> list[int]:
    shape = [int(n) for n in tensor.shape]  # GGUF lists the fastest axis first
    return shape if _is_transposed(tensor.name, config) else shape[::-1]


def _is_transposed(name: str, config: dict[str, object]) -> bool:
    """Whether Hugging Face's checkpoints keep this matrix as [inputs, outputs], which GGUF never does."""
    return (
        config["model_type"] == "gpt2"
        and name.startswith("blk.")
        and name.endswith(("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight"))
    )


def _unpaired(name: str, values: NDArray[np.float32], config: dict[str, object]) -> NDArray[np.float32]:
    """Undoes llama.cpp's order of the query's and key's channels, [heads * e, ...].

    It rotates neighbouring channels together, where Hugging Face rotates channel i with channel i + e/2.
    """
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None:
        return values
    n_heads = int(str(config[heads]))
    pairs = values.reshape(n_heads, len(values) // n_heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
