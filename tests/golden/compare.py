"""Says where an answer differs from a golden answer, both as bodies of the activation server.

    problems = differences(golden, got)    # golden: the contents of a file of this folder; [] when they agree

Numbers agree within TOL, relative to the largest magnitude of their list. The order of nodes is free. At the
edge of a top-k, nodes that tie within TOL may differ; so may tokens of a token list. A negative token index
may be given as its absolute value. The golden bottom-k of the groups that are top-only (write_norm,
activation, logits) may be missing, and so may masked attention cells, inactive latents and nodes that a group
selected at exactly zero. What the reference does not compute is not compared, nor are times and memory.
"""

import math

TOL = 2e-4
TOP_ONLY = {"write_norm", "activation", "logits"}
NOT_IN_THE_REFERENCE = {
    "inputTokensThatUpvoteAttnQ",
    "inputTokensThatUpvoteAttnK",
}  # it returns nothing for them


def close(a, b, scale=1.0):
    if a is None or b is None:
        return a is None and b is None
    if not (math.isfinite(a) and math.isfinite(b)):
        return a == b or (math.isnan(a) and math.isnan(b))
    return abs(a - b) <= TOL * max(scale, abs(b), 1e-3)


def _scale(xs):
    flat = [abs(x) for x in _flat(xs) if isinstance(x, (int, float)) and math.isfinite(x) and abs(x) != 999]
    return max(flat, default=1.0)


def _flat(x):
    if isinstance(x, list):
        for y in x:
            yield from _flat(y)
    else:
        yield x


def _numbers(want, got, path, out):
    w, g = list(_flat(want)), list(_flat(got))
    if len(w) != len(g):
        out.append(f"{path}: {len(g)} numbers, wanted {len(w)}")
        return
    s = _scale(want)
    bad = [i for i, (a, b) in enumerate(zip(g, w, strict=False)) if not close(a, b, s)]
    if bad:
        i = bad[0]
        out.append(
            f"{path}: {len(bad)} of {len(w)} numbers off, first at {i}: {g[i]} wanted {w[i]} (scale {s:.3g})"
        )


def node_key(n, n_tokens):
    t = [x + n_tokens if x is not None and x < 0 and i == 0 else x for i, x in enumerate(n["tensorIndices"])]
    return (n["nodeType"], n.get("layerIndex"), tuple(t), n.get("passType", "forward"))


def _not_a_node(key):
    return (
        key[0] == "attention_head"
        and key[2][1] is not None
        and key[2][0] is not None
        and key[2][1] > key[2][0]
    )


def _top_k(want, got, n_tokens, k, path, out):  # noqa: C901 - the rules of one list, in their order
    wn = [node_key(n, n_tokens) for n in want["nodeIndices"]]
    gn = [node_key(n, n_tokens) for n in got["nodeIndices"]]
    if len(set(gn)) != len(gn):
        out.append(f"{path}.nodeIndices: a node is given twice")
    wa, ga = want["activationsByGroupId"], got["activationsByGroupId"]
    if set(wa) != set(ga):
        out.append(f"{path}.activationsByGroupId: groups {sorted(ga)} wanted {sorted(wa)}")
        return
    wi = {x: i for i, x in enumerate(wn)}
    common = [(wi[x], j, x) for j, x in enumerate(gn) if x in wi]
    scales = {g: _scale(wa[g]) for g in wa}
    for g, s in scales.items():
        bad = [(x, ga[g][j], wa[g][i]) for i, j, x in common if not close(ga[g][j], wa[g][i], s)]
        if bad:
            out.append(f"{path}.{g}: {len(bad)} of {len(common)} nodes off, first {bad[0]}")
    # a wanted node may be missing only if, in no group, it is one of the k largest (or smallest) of its type
    gs, unexplained = set(gn), []
    for i, key in enumerate(wn):
        if key in gs or _not_a_node(key) or all(wa[g][i] == 0 for g in wa):
            continue
        for g in wa:
            v, s = wa[g][i], scales[g]
            if v == 0:
                continue  # selected by a tie at zero
            same = [ga[g][j] for j, x in enumerate(gn) if x[0] == key[0] and not _not_a_node(x)]
            larger = sum(x > v - TOL * s for x in same)
            smaller = sum(x < v + TOL * s for x in same)
            if k and (larger < k or (smaller < k and g not in TOP_ONLY)):
                unexplained.append((key, g, v))
                break
    if unexplained:
        out.append(f"{path}.nodeIndices: {len(unexplained)} missing, first {unexplained[0]}")
    # a node may be extra only if, in some group, it ties with a golden node that it stands in for
    gone = [i for i, x in enumerate(wn) if x not in gs]
    extra = [
        x
        for j, x in enumerate(gn)
        if x not in wi
        and not any(wn[i][0] == x[0] and close(ga[g][j], wa[g][i], scales[g]) for i in gone for g in wa)
    ]
    if len(extra) > max(1, len(gn) // 50):
        out.append(f"{path}.nodeIndices: {len(extra)} of {len(gn)} nodes not in the golden, first {extra[0]}")
    masked = [x for x in gn if _not_a_node(x)]
    if masked:
        out.append(
            f"{path}.nodeIndices: {len(masked)} masked attention cells given as nodes, first {masked[0]}"
        )
    wv, gv = want.get("vocabTokenStringsForIndices"), got.get("vocabTokenStringsForIndices")
    if (wv is None) != (gv is None):
        out.append(f"{path}.vocabTokenStringsForIndices: {'missing' if gv is None else 'unexpected'}")
    elif wv is not None:
        for i, j, x in common:
            if wv[i] != gv[j]:
                out.append(f"{path}.vocabTokenStringsForIndices: {gv[j]!r} wanted {wv[i]!r} at {x}")
                break
    ws, gsum = (x["intermediateSumActivationsByDstByGroupId"] for x in (want, got))
    for g in ws:
        for d in ws[g]:
            if g not in gsum or d not in gsum[g]:
                out.append(f"{path}.intermediateSum.{g}.{d}: missing")
                continue
            if ws[g][d]["tensorType"] != gsum[g][d]["tensorType"]:
                kinds = f"{gsum[g][d]['tensorType']} wanted {ws[g][d]['tensorType']}"
                out.append(f"{path}.intermediateSum.{g}.{d}: {kinds}")
                continue
            _numbers(ws[g][d]["value"], gsum[g][d]["value"], f"{path}.intermediateSum.{g}.{d}", out)


def _top_tokens(want, got, path, out):
    if (want is None) != (got is None):
        out.append(f"{path}: {'missing' if got is None else 'unexpected'}")
        return
    if want is None:
        return
    for side in ("top", "bottom"):
        w, g = want[side], got[side]
        if len(w) != len(g):
            out.append(f"{path}.{side}: {len(g)} tokens, wanted {len(w)}")
            return
        s = max((abs(t["scalar"]) for t in want["top"] + want["bottom"]), default=1.0)
        for key, sc in (("scalar", s), ("normalizedScalar", 1.0)):
            for i, (a, b) in enumerate(zip(g, w, strict=False)):
                if not close(a[key], b[key], sc):
                    out.append(f"{path}.{side}[{i}].{key}: {a[key]} wanted {b[key]}")
                    return
        by = {}
        for t in w:
            by.setdefault(t["token"], []).append(t["scalar"])
        for t in g[:-1]:
            if t["token"] not in by and not any(close(t["scalar"], x["scalar"], s) for x in w):
                out.append(f"{path}.{side}: token {t['token']!r} not in the golden list")
                return
            if t["token"] in by and not any(close(t["scalar"], x, s) for x in by[t["token"]]):
                out.append(f"{path}.{side}: token {t['token']!r} has {t['scalar']} wanted {by[t['token']]}")
                return


def _per_node(want, got, n_tokens, field, compare, path, out):
    wi = {
        node_key(n, n_tokens): i
        for i, n in enumerate(want["nodeIndices"])
        if not _not_a_node(node_key(n, n_tokens))
    }
    if len(got["nodeIndices"]) != len(got[field]):
        out.append(f"{path}: {len(got['nodeIndices'])} nodes and {len(got[field])} values")
        return
    seen = 0
    for j, n in enumerate(got["nodeIndices"]):
        k = node_key(n, n_tokens)
        if k in wi:
            seen += 1
            before = len(out)
            compare(want[field][wi[k]], got[field][j], f"{path}[{k}]", out)
            if len(out) > before:
                return
    if wi and seen < 0.4 * len(wi):
        out.append(f"{path}: only {seen} of {len(wi)} golden nodes scored")


def _attended(want, got, path, out):
    if (want is None) != (got is None):
        out.append(f"{path}: {'missing' if got is None else 'unexpected'}")
        return
    if want is None:
        return
    if len(want["attributions"]) != len(got["attributions"]):
        out.append(f"{path}: {len(got['attributions'])} tokens, wanted {len(want['attributions'])}")
        return
    _numbers(want["attributions"], got["attributions"], path + ".attributions", out)
    s = _scale(want["attributions"])
    for i, (a, b) in enumerate(zip(got["tokenIndices"], want["tokenIndices"], strict=False)):
        if a != b and not any(
            close(got["attributions"][i], v, s) for j, v in enumerate(want["attributions"]) if j != i
        ):
            out.append(f"{path}.tokenIndices[{i}]: {a} wanted {b}")
            return


def _data(want, got, n_tokens, k, path, out):
    if "activationsByGroupId" in want:
        _top_k(want, got, n_tokens, k, path, out)
    elif "topTokensList" in want:
        _per_node(want, got, n_tokens, "topTokensList", _top_tokens, path, out)
    elif "topTokensAttendedToList" in want:
        _per_node(want, got, n_tokens, "topTokensAttendedToList", _attended, path, out)
    elif "tokenAndAttentionScalarsList" in want:
        w, g = want["tokenAndAttentionScalarsList"], got["tokenAndAttentionScalarsList"]
        if len(w) != len(g):
            out.append(f"{path}: {len(g)} tokens, wanted {len(w)}")
            return
        for i, (a, b) in enumerate(zip(w, g, strict=False)):
            for k, v in a.items():
                if isinstance(v, str):
                    if b[k] != v:
                        out.append(f"{path}[{i}].{k}: {b[k]!r} wanted {v!r}")
                else:
                    _numbers([v], [b[k]], f"{path}[{i}].{k}", out)
    else:
        _numbers(want["activations"], got["activations"], path + ".activations", out)
        if [node_key(n, n_tokens) for n in want["nodeIndices"]] != [
            node_key(n, n_tokens) for n in got["nodeIndices"]
        ]:
            out.append(f"{path}.nodeIndices differ")
        _top_tokens(want.get("topTokens"), got.get("topTokens"), path + ".topTokens", out)


def _inference(want, got, path, out):
    for k in ("tokensAsInts", "tokensAsStrings"):
        if want[k] != got[k]:
            out.append(f"{path}.{k}: {got[k]} wanted {want[k]}")
    for k in ("loss", "activationValueForBackwardPass"):
        if not close(got.get(k), want.get(k), 1.0):
            out.append(f"{path}.{k}: {got.get(k)} wanted {want.get(k)}")


def _k(request, i, name):
    """top_and_bottom_k of a named result, None where there is none."""
    if "subRequests" in request:
        return {
            "topKComponents": request["subRequests"][i]["topAndBottomKForNodeTable"],
            "componentSumsForTokenDisplay": 1,
            "topOutputTokenLogits": 100,
        }.get(name)
    if "inferenceSubRequests" in request:
        return request["inferenceSubRequests"][i]["processingRequestSpecByName"][name].get("topAndBottomK")
    return request.get("multipleTopKDerivedScalarsRequestSpec", {}).get("topAndBottomK")


def differences(golden, got):
    """-> a list of what differs, one line each; empty when the responses agree."""
    out, want, request = [], golden["response"], golden["request"]
    if "inferenceSubResponses" in want:
        w, g = want["inferenceSubResponses"], got["inferenceSubResponses"]
        if len(w) != len(g):
            return [f"{len(g)} sub-responses, wanted {len(w)}"]
        for i, (a, b) in enumerate(zip(w, g, strict=False)):
            inf = a["inferenceResponse"]["inferenceAndTokenData"]
            _inference(inf, b["inferenceResponse"]["inferenceAndTokenData"], f"[{i}]", out)
            n = len(inf["tokensAsInts"])
            for name, data in a["processingResponseDataByName"].items():
                if name in NOT_IN_THE_REFERENCE:
                    continue
                if name not in b["processingResponseDataByName"]:
                    out.append(f"[{i}].{name}: missing")
                else:
                    _data(
                        data,
                        b["processingResponseDataByName"][name],
                        n,
                        _k(request, i, name),
                        f"[{i}].{name}",
                        out,
                    )
    else:
        inf = want["inferenceAndTokenData"]
        _inference(inf, got["inferenceAndTokenData"], "", out)
        for key, v in want.items():
            if key.endswith("ResponseData"):
                _data(v, got[key], len(inf["tokensAsInts"]), _k(request, 0, key), key, out)
    return out
