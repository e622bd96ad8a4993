// Questions are plain objects, never changed in place; what is as usual is left out, so that addresses stay short.

export const KEPT_AS = { // the type of node that is kept where one of the table is meant
  attention_head: "whole_head", whole_head: "whole_head", whole_mlp: "whole_mlp", mlp_neuron: "mlp_neuron",
  autoencoder_latent: "autoencoder_latent", mlp_autoencoder_latent: "mlp_autoencoder_latent",
  attention_autoencoder_latent: "attention_autoencoder_latent", mlp_transcoder_latent: "mlp_transcoder_latent",
  resid_post_attn_autoencoder_latent: "resid_post_attn_autoencoder_latent",
  resid_post_mlp_autoencoder_latent: "resid_post_mlp_autoencoder_latent",
};

/** A question without fields that say nothing. */
export function tidy(question) {
  const isSaid = ([, value]) => value !== null && value !== undefined && value !== "" && value !== false;
  const isEmpty = ([name, value]) => Array.isArray(value) && !value.length && name !== "onlyThese";
  return Object.fromEntries(Object.entries(question).filter((one) =>
    one[0] === "prompt" || (one[0] === "addBos" && one[1] === false) || (isSaid(one) && !isEmpty(one))));
}

/** A name for a question: the same for equal ones. */
export const keyOf = (question) => JSON.stringify(Object.entries(tidy(question)).sort());

const nodeOf = (change) => change.split(/[=*+]/)[0].trim();

/** With a node set to something; what it was set to before is forgotten. */
export function withChange(question, change) {
  const others = (question.changes ?? []).filter((one) => nodeOf(one) !== nodeOf(change));
  return tidy({ ...question, changes: [...others, change] });
}

export function withoutChange(question, change) {
  return tidy({ ...question, changes: (question.changes ?? []).filter((one) => one !== change) });
}

/** With nothing but some nodes kept: all others of their types are set to the baseline's, or to 0. */
export function withOnly(question, onlyThese, nodeTypes) {
  return tidy({ ...question, onlyThese, nodeTypes });
}

export function withoutKept(question, node) {
  const onlyThese = question.onlyThese.filter((one) => one !== node);
  return onlyThese.length ? tidy({ ...question, onlyThese }) : tidy({ ...question, onlyThese: null, nodeTypes: null });
}

export function withTrace(question, trace, downstream = null) {
  return tidy({ ...question, trace, downstream });
}

/** The same about the model as it is, with plain gradients: what edges and circuits are asked with. */
export function ofWholeModel(question) {
  return tidy({ ...question, changes: [], onlyThese: null, nodeTypes: null, rule: null });
}

/** The model as it is, and the objective that was asked about first. */
export function withoutAll(question) {
  return tidy({ ...question, changes: [], onlyThese: null, nodeTypes: null, trace: null, downstream: null });
}

const words = (tokens = [], ids = []) => [...tokens.map((one) => `'${one}'`), ...ids.map((one) => `#${one}`)].join(", ");

/** What is asked, in a few words. */
export function objectiveWords({ trace, target, targetIds, distractor, distractorIds, loss }) {
  if (trace) return `trace ${trace}`;
  const against = words(distractor, distractorIds);
  return `${loss?.name ? `${loss.name} ` : ""}${words(target, targetIds)}${against ? ` − ${against}` : ""}` || "no objective";
}

/** What is changed, in a few words. */
export function changeWords({ changes = [], onlyThese }) {
  const parts = changes.length > 2 ? [`${changes.length} nodes changed`] : changes.map((one) => (/[=*+]/.test(one) ? one : `without ${one}`));
  if (onlyThese) parts.push(onlyThese.length === 1 ? `only ${onlyThese[0]}` : `only ${onlyThese.length} nodes`);
  return parts.join(", ");
}
