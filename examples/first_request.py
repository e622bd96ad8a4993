"""The library in fifteen lines: which nodes make the model say " Mary"? Start `tdb-server serve` first."""

from tdb_client import Client, head

PROMPT = "When Mary and John went to the store, John gave a drink to"

with Client("127.0.0.1:50051") as client:
    plain = client.debug(PROMPT, " Mary", " John")
    print(f"logit difference {plain.loss:.2f}, top logit {plain.logits.tokens[0]!r}")
    for row in plain.nodes.strongest()[:10]:
        print(f"{plain.nodes.direct_effect[row]:+7.3f}  {plain.nodes.words[row]}")

    layer_23_head_1 = head(23, 1, token=-1)  # spelled "L23 head 1 @ -1"
    ablated = client.debug(PROMPT, " Mary", " John", ablate=[layer_23_head_1])
    print(f"without {layer_23_head_1}: {ablated.loss:.2f}")
