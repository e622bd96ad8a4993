// Asking the server: one object there, lines of objects back. The token is kept for the session only.

const TOKEN = "tdb-token";
const root = new URL("..", import.meta.url); // also behind a path prefix, and from /node/NAME

/** What a question cannot be answered for: a message, and the fields at fault. */
export class AskError extends Error {
  constructor(message, { violations = [], status = null } = {}) {
    super(message);
    Object.assign(this, { violations, status });
  }
}

// A page that is left may be kept by the browser, with all that it waits for, in case somebody comes back.
let here = new AbortController();
addEventListener("pagehide", () => {
  here.abort(new AskError("Stopped, as the page was left."));
  here = new AbortController();
});

/** The address of a page of this server, whatever path it stands behind. */
export function pageAddress(path) {
  return new URL(path, root).href;
}

let askForToken = async () => null;

/** Says how a token is asked for: a function that gives one, or null where nobody gave any. */
export function onTokenWanted(ask) {
  askForToken = ask;
}

let asking = null; // all who are refused at once wait for the same answer

/** Learns a token in place of one that was refused, and throws where nobody gives any. */
async function learnToken(refused) {
  if (sessionStorage.getItem(TOKEN) !== refused) return; // somebody has given another meanwhile
  asking ??= askUntilSendable(refused !== null).finally(() => { asking = null; });
  const given = await asking;
  if (given === null) throw new AskError("This server wants an API token.", { status: 401 });
  sessionStorage.setItem(TOKEN, given);
}

/** What a header cannot hold, such as curly quotes around it, is no token: it is not even sent. */
async function askUntilSendable(wasRefused) {
  for (let wasWrong = wasRefused; ; wasWrong = true) {
    const given = (await askForToken(wasWrong))?.trim() ?? null;
    if (given === null || /^[!-~]+$/.test(given)) return given;
  }
}

async function post(name, body, signal) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { "Content-Type": "application/json", Accept: "application/x-ndjson" };
    if (token) headers.Authorization = `Bearer ${token}`;
    const address = new URL(`v1/workbench/${name}`, root);
    const answer = await fetch(address, { method: "POST", headers, body: JSON.stringify(body), signal });
    if (answer.status !== 401) return answer;
    await learnToken(token);
  }
}

async function refusal(answer) {
  const body = await answer.json().catch(() => ({}));
  return new AskError(body.message ?? `The server answered ${answer.status}.`, { violations: body.violations, status: answer.status });
}

/** Yields each object of an answer as it comes. Throws `AskError`; aborting the signal, or leaving the page, cancels the call. */
export async function* lines(name, body, signal) {
  const left = here.signal;
  const answer = await post(name, body, AbortSignal.any(signal ? [signal, left] : [left])).catch((error) => {
    throw error instanceof TypeError ? new AskError("The server cannot be reached.") : error;
  });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const read = (text) => {
    const line = JSON.parse(text);
    if (line.event === "error") throw new AskError(line.message, line);
    return line;
  };
  let parts = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const [first, ...more] = value.split("\n");
      parts.push(first);
      for (const next of more) {
        const text = parts.join("");
        if (text.trim()) yield read(text);
        parts = [next];
      }
    }
  } catch (error) {
    left.throwIfAborted();
    if (error instanceof TypeError) throw new AskError("The connection to the server broke.");
    throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
  if (parts.join("").trim()) yield read(parts.join(""));
}

/** The last object of an answer. */
export async function ask(name, body, signal) {
  let last = null;
  for await (const line of lines(name, body, signal)) last = line;
  if (last === null) throw new AskError("The server gave no answer.");
  return last;
}
