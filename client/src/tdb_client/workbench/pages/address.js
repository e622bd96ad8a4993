// The question and what is shown of its answer, as the part of the address that never reaches the server.

const read = (text) => {
  try {
    const value = JSON.parse(text);
    return value && typeof value === "object" ? value : null;
  } catch {
    return null;
  }
};

/** The fragment for a question and a view. */
export function fragment(question, view = null) {
  const parts = [`q=${encodeURIComponent(JSON.stringify(question))}`];
  if (view && Object.keys(view).length) parts.push(`v=${encodeURIComponent(JSON.stringify(view))}`);
  return `#${parts.join("&")}`;
}

/** What a fragment says: a question, or null where there is none, and a view. */
export function fromFragment(text) {
  const parts = new URLSearchParams(text.replace(/^#/, ""));
  return { question: read(parts.get("q")), view: read(parts.get("v")) ?? {} };
}
