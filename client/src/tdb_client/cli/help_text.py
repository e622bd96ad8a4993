"""What `tdb --help` and each command's help teach, beside the list of options."""

from __future__ import annotations

from tdb_client.cli.exit_codes import MEANINGS

PROMPT = '"When Mary and John went to the store, John gave a drink to"'

BASELINE = '"When John and Mary went to the store, Mary gave a drink to"'

FIRST_STEPS = f"""\
first steps:
  tdb doctor                       is a server there, and does it fit?
  tdb info                         which model does it hold?
  tdb debug --prompt {PROMPT} \\
            --target " Mary" --distractor " John"
                                   which nodes make it say " Mary" rather than " John"?
  tdb workbench                    the same and more by clicking, in the web browser
  tdb ablate ... --strongest 20    what does each of the strongest nodes matter?
  tdb sweep prompts.jsonl --out results
                                   and which components do it on average over many prompts?
  tdb edges --help                 what do components pass to each other?
  tdb lens --help                  what would it say behind each layer?
  tdb activations --help           numbers of any place, or gradients there, for numpy
  tdb debug --help                 ablations, pages to look at, tables for programs
  tdb circuit --help               the few heads and MLPs that do most of it
  eval "$(tdb completion bash)"    completes commands and options on Tab

In gradients the final norm's scale is held constant, and that of the norm through which a traced node reads
(`Client.infer` in Python: the latter alone, unless told to hold others).
The server is $TDB_SERVER or --server HOST:PORT; `tdb-server serve` starts one.

exit codes:
{"".join(f"  {code:<4} {meaning}" + chr(10) for code, meaning in MEANINGS.items())}"""

NODES = """\
nodes, the same here, in Python and in what is printed:
  L9 head 6 @ 13 -> 2      head 6 of layer 9, token 13 attending to token 2; to ablate, this pair alone
  L9 head 6 @ -1           to ablate the same head's whole row: all that the last token attends to
  L5 neuron 123 @ 7        an MLP neuron; L5 mlp latent 9 @ 7, L5 attention latent 9 @ 7 are latents
  L9 whole head 6 @ -1     what the head reads there as one vector; L5 mlp @ 7 is a whole MLP
  L5 neuron 123 @ 7 = 2.5  to ablate to another value than 0; of a row, each token gets it
  ... = baseline           to what it is in the --baseline prompt; ... * 0.5 and ... + 2 change it
  ... through V            to trace a head, what lets the gradient through: Q, K, QK or V
  Layers and tokens count from 0, negative tokens from the end of the prompt; `tdb tokenize` numbers them.
  Where the model begins texts with a token of its own (`tdb info` says so), that is token 0: see --add-bos.
"""

EXAMPLES = {
    "info": """\
examples:
  tdb info
  tdb info --json | jq .n_layers
""",
    "workbench": """\
examples:
  tdb workbench                              a page that asks $TDB_SERVER, in the web browser
  tdb workbench --no-browser --port 8080     for a browser elsewhere: `ssh -L 8080:127.0.0.1:8080 HERE` there

The page is handed out on this machine alone, under an address that nobody else knows. A server that was
started with --http-port has the same page at its own address.
""",
    "tokenize": """\
examples:
  tdb tokenize "When Mary and John"      which token is number 1?
  tdb tokenize --add-bos "When Mary"     the same with the token that begins a text, as in prompts
  tdb tokenize " Mary"                   is it one token? Mostly the space in front matters
""",
    "edges": f"""\
examples:
  tdb edges --prompt {PROMPT} \\
            --baseline "When Mary and John went to the store, Mary gave a drink to" \\
            --target " Mary" --distractor " John"
  tdb edges ... --method eap_ig --steps 10     gradients from ten runs between the baseline and the prompt
  tdb edges ... --loss log_prob                of the target's log-probability
  tdb edges ... --mib importances.json         the scores of all edges for MIB's circuit track
  tdb edges ... -k 200 --graph graph.json      the 200 strongest for viewers of attribution graphs
  tdb edges ... --json | jq '.edges[:10]'

A score is how much the objective would fall, to first order, if the one at the end of the edge saw of the one
at its start what that writes in the baseline.
""",
    "debug": f"""\
examples:
  tdb debug --prompt {PROMPT} \\
            --target " Mary" --distractor " John"
  tdb debug --chat --prompt "Is Paris in France?" --target Yes --distractor No --show-tokens
                                                     why does the answer in a chat begin so?
  tdb debug ... --sort act_times_grad --rows 0       all nodes, by their estimated total effect
  tdb debug ... --ablate "L23 head 1 @ -1"           beside the run without that head
  tdb debug ... --baseline {BASELINE}
                                                     what the order of the names makes of it
  tdb debug ... --baseline TEXT --ablate "L23 head 3 @ -1 = baseline"
                                                     one head as if it saw the baseline
  tdb debug ... --html report.html                   the same as a page, to look at, print and send
  tdb debug ... --csv > nodes.csv                    the node table for a spreadsheet or pandas
  tdb debug ... --json | jq '.sub_requests[0].result.loss'

{NODES}""",
    "trace": f"""\
examples:
  tdb trace "L23 head 3 @ 13 -> 9" --type Q --prompt {PROMPT}
                                                     what makes its query look there?
  tdb trace "L23 head 3 @ 13 -> 9 through V" --target " Mary" --prompt ...
                                                     what gives it something to write towards " Mary"?
  tdb trace "L11 head 8 @ 13 -> 4 through V" --downstream "L23 head 3 @ 13 -> 9 through Q" --prompt ...
                                                     the same, towards what another head reads
  tdb trace "L20 neuron 426 @ 13" --prompt ... --html report.html

{NODES}""",
    "ablate": f"""\
Every node is ablated in a run of its own, which says the objective and nothing else: many nodes are cheap.
A node of the table is one arrow of a head (@ 13 -> 2); to ablate its whole row, write it without.

examples:
  tdb ablate "L23 head 3 @ -1" "L20 head 0 @ -1" --prompt {PROMPT} \\
             --target " Mary" --distractor " John"
  tdb ablate ... --strongest 50 --sort act_times_grad
                                                     does act × grad estimate well what an ablation does?
  tdb ablate ... --nodes-from debug.json             all nodes of what `tdb debug --json` has printed
  tdb ablate ... --strongest 20 --loss log_prob      how the target's log-probability changes
  tdb ablate "L5 neuron 123 @ 7 = 2.5" ... --csv > effects.csv

{NODES}""",
    "lens": f"""\
Each layer's residual stream is read through the final norm, as if the model ended there.

examples:
  tdb lens --prompt {PROMPT} --tokens " Mary" " John"
  tdb lens --prompt ... --at 4 -1 --layers 20 21 22 23 --top 10
  tdb lens --prompt ... --tokens " Mary" --top 0 --csv > lens.csv
  tdb lens --prompt ... --json | jq '.top_tokens[-1][0][0].token'
""",
    "activations": f"""\
Places are resid_post_mlp, attn_v_out, mlp_post_act and such: docs/api.md lists them with their shapes, `tdb
info` says which the model has not. The file holds an array for each layer (layer_3, or all_layers where the
place has none), what its axes are (dimensions), and the tokens along the first of them (token_indices,
tokens, token_ids).

examples:
  tdb activations --prompt {PROMPT} \\
                  --place mlp_post_act --layers 20 21 --at -1 --out mlp.npz
  tdb activations --prompt ... --place attn_qk_probs --layers 23 --out patterns.npz
  tdb activations --prompt ... --place resid_post_mlp --gradients --target " Mary" --distractor " John" \\
                  --out gradients.npz
""",
    "sweep": f"""\
A line is {{"prompt": TEXT, "target": TOKENS, "distractor": TOKENS, "baseline": TEXT, "id": NAME}}:
tokens are texts or vocabulary indices, one or a list, and so are baselines; the last three may be left out.
All lines are checked before any is run. FOLDER gets
  table.csv           means and standard errors over the lines of what each head, each MLP and the embedding
                      add; beside them neurons and latents: what a prompt's answer does not list of these
                      (see -k) counts as 0 in it, and `lines` says how many list it
  objectives.jsonl    the objective of each line
  done.jsonl          what is done: the same command goes on where it was cut off
Calls have priority sweep, so that others go first, unless --priority says otherwise.

examples:
  tdb sweep prompts.jsonl --out results
  tdb sweep prompts.jsonl --out results --by node --parquet
  tdb sweep prompts.jsonl --out ablations --ablate-each "L23 head 3 @ -1" "L20 head 0 @ -1"

{NODES}""",
    "circuit": f"""\
examples:
  tdb circuit --prompt {PROMPT} \\
              --target " Mary" --distractor " John" \\
              --baseline {BASELINE}
  tdb circuit ... --faithfulness 0.7                 a smaller one, which keeps less
  tdb circuit ... --html circuit.html --json circuit.json

It ranks all heads and MLPs by what their activations do in the prompt and not in the baseline, sets others to
the baseline's to see how much of the objective a few of them keep, and grows, swaps and prunes these.
Without --baseline others are set to 0, which models have never seen.
""",
    "doctor": """\
It looks the name up, connects, shakes hands (TLS), asks for health, shows its token, compares versions and
says what the server holds; at the first thing that does not work it stops and says what to do.

examples:
  tdb doctor
  tdb doctor --server gpu.example:50051 --tls --token-file ~/.tdb-token
  tdb doctor --json
""",
    "completion": """\
examples:
  eval "$(tdb completion bash)"                                  in ~/.bashrc
  tdb completion zsh > "${fpath[1]}/_tdb"                        once
  tdb completion fish > ~/.config/fish/completions/tdb.fish      once
""",
}
