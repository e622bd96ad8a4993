// What can be done with a node: each action leads to another question.

import { make } from "../report/elements.js";
import { fragment } from "./address.js";
import { pageAddress } from "./api.js";
import { askLine } from "./dialogs.js";
import { KEPT_AS, withChange, withTrace } from "./questions.js";

const IS_TRACED = /^(mlp_neuron|.*latent)$/;

const NAMED = { attention_head: "head", whole_head: "head", mlp_neuron: "neuron" };

/** The address of a node's page, such as `L23.head.3`; null where there is none of it. */
function nodeAddress({ type, layer, index }, question) {
  const kind = NAMED[type] ?? (type.endsWith("latent") ? type : null);
  return kind && pageAddress(`node/L${layer}.${kind}.${index}${fragment(question)}`);
}

/** Nodes are gathered before it is asked what they do alone. */
function keepAction(spelling, type, page) {
  return page.isKept(spelling) ? [] : [{ name: "keep", title: "keep only", note: spelling, run: () => page.keep(spelling, type) }];
}

function pageAction(node, question) {
  const address = nodeAddress(node, question);
  return address === null ? [] : [{ name: "page", title: "open its page", note: node.component, run: () => open(address, "_blank", "noopener") }];
}

/** The node that is kept for one of the table, and its type; null where there is none. */
function keptFor(node) {
  const type = KEPT_AS[node.type];
  if (!type) return null;
  return { spelling: node.type === "attention_head" ? node.component.replace("head", "whole head") : node.component, type };
}

/**
 * @param node of the answer
 * @param question that the answer is to
 * @param page what leads on: `ask` another question, `wantBaseline` to compare with, `keep` and `isKept` for gathering nodes
 */
export function actionsOf(node, question, page) {
  const isHead = node.type === "attention_head";
  const row = isHead ? `${node.component} @ ${node.token}` : node.spelling;
  const change = (text) => page.ask(withChange(question, text));
  const patch = (spelling) => (question.baseline?.length ? change(`${spelling} = baseline`) : page.wantBaseline(`${spelling} = baseline`));
  const actions = [];
  if (node.type !== "layer" && node.type !== "vocab_token") {
    actions.push({ name: "ablate", title: "ablate", note: isHead ? `${row}, whatever it attends to` : row, run: () => change(row) });
    if (isHead && node.attended_to !== null) {
      actions.push({ name: "ablate-pair", title: "ablate this pair", note: node.spelling, run: () => change(node.spelling) });
    }
    actions.push({ name: "patch", title: "patch from the baseline", note: row, run: () => patch(row) });
    actions.push({ name: "scale", title: "scale …", note: row, run: async () => {
      const factor = await askLine({ title: `Scale ${row}`, label: "by the factor", type: "number", value: "2", button: "Scale" });
      if (factor) change(`${row} * ${factor}`);
    } });
  }
  if (isHead && node.attended_to !== null) {
    for (const [letter, name] of [["Q", "query"], ["K", "key"], ["V", "value"]]) {
      actions.push({ name: `trace-${letter}`, title: `trace its ${name}`, note: `${node.spelling} through ${letter}`,
        run: () => page.ask(withTrace(question, `${node.spelling} through ${letter}`)) });
    }
    if (question.trace) {
      actions.push({ name: "trace-down", title: "trace its value towards what is traced now", note: question.trace,
        run: () => page.ask(withTrace(question, `${node.spelling} through V`, question.trace)) });
    }
  } else if (IS_TRACED.test(node.type)) {
    actions.push({ name: "trace", title: "trace", note: node.spelling, run: () => page.ask(withTrace(question, node.spelling)) });
  }
  const kept = keptFor(node);
  return [...actions, ...(kept ? keepAction(kept.spelling, kept.type, page) : []), ...pageAction(node, question)];
}

/** What can be done with a component, wherever in the prompt: `L9 whole head 6`, `L5 mlp`, `embedding`; nothing with `logits`. */
export function componentActions(component, question, page) {
  const list = (note, words) => ({ name: "list", title: "its nodes in the table", note, run: () => page.filter(words) });
  if (component === "embedding") return [list(component, component)];
  const [, layer, kind, index] = /^L(\d+) (whole head|mlp)(?: (\d+))?$/.exec(component) ?? [];
  if (kind === undefined) return [{ title: "no nodes of the table" }];
  const [type, listed] = kind === "mlp" ? ["whole_mlp", list(`L${layer} neuron`, `"L${layer} " neuron`)]
    : ["whole_head", list(`L${layer} head ${index}`, `"L${layer} " "head ${index} @"`)]; // and no head 16
  return [listed, ...keepAction(component, type, page), ...pageAction({ type, layer, index, component }, question)];
}

/** The actions as buttons, for a node's card. */
export function actionButtons(actions) {
  return actions.map(({ name, title, note, run }) =>
    make("button", { type: "button", title: note, "data-action": name, onclick: run }, title));
}
