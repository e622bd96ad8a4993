// The question and what is shown of its answer, as the part of the address that never reaches the server.

const LISTS = ["target", "distractor", "targetIds", "distractorIds", "baseline", "changes", "onlyThese", "nodeTypes", "residualStream"];
const KINDS_OF_VIEW = {
  shown: "string", scalar: "string", order: "string", sortedBy: "string", filter: "string", node: "string", head: "string",
  token: "number", isWhole: "boolean", showsAttention: "boolean", hidden: "list", open: "list",
};

const kindOf = (value) => (Array.isArray(value) ? "list" : value === null ? "null" : typeof value);

const read = (text) => {
  try {
    const value = JSON.parse(text);
    return kindOf(value) === "object" ? value : null;
  } catch {
    return null;
  }
};

/** Of an object the fields that are of the right kind: whoever has an address may have written it by hand. */
const ofKind = (value, kind) => Object.fromEntries(Object.entries(value ?? {}).filter(([name, one]) => kindOf(one) === kind(name)));

const isQuestion = (value) => value !== null && typeof value.prompt === "string" &&
  LISTS.every((name) => ["undefined", "null", "list"].includes(kindOf(value[name])));

/** The fragment for a question and a view. */
export function fragment(question, view = null) {
  const parts = [`q=${encodeURIComponent(JSON.stringify(question))}`];
  if (view && Object.keys(view).length) parts.push(`v=${encodeURIComponent(JSON.stringify(view))}`);
  return `#${parts.join("&")}`;
}

/** What a fragment says: a question, or null where there is none that can be read, and a view. */
export function fromFragment(text) {
  const parts = new URLSearchParams(text.replace(/^#/, ""));
  const question = read(parts.get("q"));
  return {
    question: isQuestion(question) ? question : null,
    isBroken: parts.has("q") && !isQuestion(question),
    view: ofKind(read(parts.get("v")), (name) => KINDS_OF_VIEW[name]),
  };
}
