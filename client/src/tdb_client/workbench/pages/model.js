// What the server says of its model.

import { byId, make } from "../report/elements.js";

const count = (value) => (typeof value === "number" ? value.toLocaleString("en") : String(value ?? "–"));

export function drawModel(model) {
  byId("model").textContent = `· ${model.name}`;
  document.title = `${model.name} · transformer debugger`;
  const { limits = {}, dictionaries = [] } = model;
  const facts = [
    ["family", model.family], ["layers", count(model.nLayers)], ["heads per layer", count(model.nHeads)],
    ["channels of the residual stream", count(model.dModel)], ["neurons per layer", count(model.nNeurons)],
    ["vocabulary", count(model.vocabularySize)], ["context", `${count(model.contextLength)} tokens`],
    ["beginning-of-text token", model.addsBos ? "put before prompts" : "not put before prompts"],
    ...dictionaries.map((one) => [`dictionary: ${one.site}`, `${count(one.nLatents)} latents in layers ${layers(one.layers)}`]),
    ["longest prompt", limits.promptTokens ? `${count(limits.promptTokens)} tokens` : "as the context"],
    ["most changes", count(limits.changes)], ["weights", model.digest], ["server", model.version],
  ];
  byId("model-list").replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) =>
    [make("dt", {}, name), make("dd", {}, value)]));
}

function layers(list) {
  const isRun = list.length > 2 && list.at(-1) - list[0] === list.length - 1;
  return isRun ? `${list[0]} to ${list.at(-1)}` : list.join(", ");
}
