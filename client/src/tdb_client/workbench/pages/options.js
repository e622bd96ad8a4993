// The rarer fields of a question.

import { byId, make } from "../report/elements.js";

const RULES = [["", "gradient"], ["frozen_norms", "frozen norms"], ["relp", "RelP"], ["gim", "GIM"]];
const MLPS = [["", "neurons"], ["autoencoder_latent", "autoencoder latents"], ["transcoder_latent", "transcoder latents"],
  ["whole_mlp", "whole MLPs"]];
const ATTENTIONS = [["", "heads"], ["autoencoder_latent", "autoencoder latents"], ["whole_head", "whole heads"]];
const STREAMS = [["", "not taken apart"], ["post_attn_latent", "latents after attention"], ["post_mlp_latent", "latents after the MLP"]];
const LOSSES = [["", "logit difference"], ["logit_minus_mean", "logit − mean"], ["probs", "probability"], ["log_prob", "log probability"],
  ["kl_from_baseline", "divergence from the baseline"]];
const BOS = [["", "as the model does"], ["true", "yes"], ["false", "no"]];

/** Whole numbers; what is none stays as it is written, and is refused. */
const ids = (text) => text.split(/[\s,]+/).filter(Boolean).map((one) => (/^-?\d+$/.test(one) ? Number(one) : one));
const isSaid = (value) => value !== undefined && value !== null && value !== "";

/**
 * How each option becomes a field of the question, and back.
 * `read` gives fields of the question of the text in the form, `write` the text of a question.
 */
const OPTIONS = [
  { name: "k", title: "nodes per ranking (k)", type: "number", placeholder: "10", read: (text) => ({ k: text ? Number(text) : null }), write: ({ k }) => k },
  { name: "rule", title: "backward rule", options: RULES },
  { name: "mlp", title: "MLPs as", options: MLPS },
  { name: "attention", title: "attention as", options: ATTENTIONS },
  { name: "residualStream", title: "residual stream", options: STREAMS,
    read: (text) => ({ residualStream: text ? [text] : [] }), write: ({ residualStream }) => residualStream?.[0] },
  { name: "addBos", title: "beginning-of-text token", options: BOS,
    read: (text) => ({ addBos: text ? text === "true" : null }), write: ({ addBos }) => (isSaid(addBos) ? String(addBos) : "") },
  { name: "loss", title: "objective", options: LOSSES },
  { name: "lossToken", title: "objective at token", type: "number" },
  { name: "targetIds", title: "targets by id", read: (text) => ({ targetIds: ids(text) }), write: ({ targetIds }) => targetIds?.join(" ") },
  { name: "distractorIds", title: "distractors by id", read: (text) => ({ distractorIds: ids(text) }), write: ({ distractorIds }) => distractorIds?.join(" ") },
  { name: "trace", title: "trace instead", placeholder: "L9 head 6 @ 13 -> 2 through Q" },
  { name: "downstream", title: "downstream of a V trace", placeholder: "L12 neuron 5 @ 13" },
  { name: "hideEarlyLayers", title: "hide layers before the first change", options: [["", "no"], ["true", "yes"]],
    read: (text) => ({ hideEarlyLayers: text === "true" }), write: ({ hideEarlyLayers }) => (hideEarlyLayers ? "true" : "") },
];

function control({ name, options, type = "text", placeholder }) {
  const attributes = { id: `option-${name}`, "aria-describedby": `${name}-fault` };
  if (options) return make("select", attributes, options.map(([value, title]) => make("option", { value }, title)));
  return make("input", { ...attributes, type, placeholder, spellcheck: "false", autocomplete: "off" });
}

/** Fills in the options. What the model cannot do is left out. */
export function drawOptions(model) {
  const sites = (model.dictionaries ?? []).map(({ argument, site }) => `${argument ?? ""} ${site ?? ""}`).join(" ");
  const isPossible = ([value]) => (value.includes("transcoder") ? sites.includes("transcoder") : !value.includes("latent") || sites !== "");
  const shown = OPTIONS.map((one) => (one.options ? { ...one, options: one.options.filter(isPossible) } : one))
    .filter(({ options }) => !options || options.length > 1);
  byId("option-fields").replaceChildren(...shown.map((one) =>
    make("div", { class: "field", "data-field": one.name }, make("label", { for: `option-${one.name}` }, one.title), control(one),
      make("p", { class: "fault", id: `${one.name}-fault`, role: "alert" }))));
  const text = (name) => byId(`option-${name}`)?.value.trim() ?? "";
  const say = () => {
    const said = shown.filter(({ name }) => text(name)).map(({ name, title }) => {
      const field = byId(`option-${name}`);
      return `${title}: ${field.selectedOptions ? field.selectedOptions[0].textContent : text(name)}`;
    });
    byId("options-said").textContent = said.join(" · ");
  };
  byId("option-fields").addEventListener("input", say);
  return {
    read() {
      const fields = shown.filter(({ name }) => !name.startsWith("loss"))
        .map(({ name, read }) => (read ? read(text(name)) : { [name]: text(name) || null }));
      const loss = text("loss") || text("lossToken")
        ? { name: text("loss") || "logit_diff", token: text("lossToken") ? Number(text("lossToken")) : null } : null;
      return Object.assign({}, ...fields, { loss });
    },
    write(question) {
      const texts = { ...question, loss: question.loss?.name === "logit_diff" ? "" : question.loss?.name, lossToken: question.loss?.token };
      for (const { name, write } of shown) byId(`option-${name}`).value = (write ? write(question) : texts[name]) ?? "";
      say();
    },
  };
}
