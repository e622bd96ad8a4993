// The page: on a click it asks a server why its model says " her" rather than " him", meets an error, and cancels a
// stream. `?proxy=` gives the proxy's address; with `?vector=` what came back is compared with a vector file.

import { createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { ModelService } from "../generated/transformer_debugger/v1/model_service_pb.js";
import { TransformerDebuggerService } from "../generated/transformer_debugger/v1/transformer_debugger_service_pb.js";
import { PROMPT, cancelStream, describeModel, meetAnError, requestWithAblation } from "./calls.js";
import { type DebugAnswer, readDebugStream } from "./debug_answers.js";
import { type Failure, codeName } from "./failure.js";
import { spelling, strongest } from "./nodes.js";
import { checkAgainstVector } from "./vector.js";

const DEADLINE_MILLISECONDS = 30_000;
const settings = new URLSearchParams(location.search);

function element<Kind extends HTMLElement = HTMLElement>(selector: string): Kind {
  const found = document.querySelector<Kind>(selector);
  if (!found) throw new Error(`the page has no ${selector}`);
  return found;
}

async function run(): Promise<void> {
  const baseUrl = element<HTMLInputElement>("#proxy").value;
  const transport = createGrpcWebTransport({ baseUrl, defaultTimeoutMs: DEADLINE_MILLISECONDS });
  const models = createClient(ModelService, transport);
  const debuggers = createClient(TransformerDebuggerService, transport);
  element("output").hidden = false;

  const model = await describeModel(models);
  element("#model").textContent = `${model.name}: ${model.nLayers} layers of ${model.nHeads} heads`;
  const request = await requestWithAblation(models);
  const answers = await readDebugStream(debuggers.streamDebug(request));
  showAnswers(answers);
  const failure = await meetAnError(debuggers, request);
  showRefusal(failure);
  const cancelled = await cancelStream(debuggers, request, model.limits?.maxSubRequests ?? 1);
  element("#cancelled").textContent = `The call ended with ${codeName(cancelled.code)}.`;

  const vector = settings.get("vector");
  if (vector) checkAgainstVector(await (await fetch(vector)).json(), model, request, answers, failure);
  element("#status").textContent = vector ? `All as in ${vector}.` : "Done.";
}

function showAnswers([plain, ablated]: DebugAnswer[]): void {
  if (!plain || !ablated) throw new Error("an answer is missing");
  const losses = [plain, ablated].map((one) => one.loss?.toFixed(3));
  element("#losses").textContent = `Logit difference ${losses[0]}, without L1 head 0 ${losses[1]}`;
  const rows = strongest(plain).slice(0, 10).map((row) => {
    const line = document.createElement("tr");
    const effects = [plain, ablated].map((one) => one.scalars.directEffect[row]?.toFixed(3) ?? "");
    for (const text of [...effects, spelling(plain.nodes[row])])
      line.insertCell().textContent = text;
    return line;
  });
  element("#nodes").replaceChildren(...rows);
}

function showRefusal({ code, reason, fieldViolations }: Failure): void {
  element("#refusal").textContent = `Refused with ${codeName(code)}, ${reason}:`;
  const items = fieldViolations.map((one) => {
    const item = document.createElement("li");
    item.textContent = `${one.field}: ${one.description}`;
    return item;
  });
  element("#violations").replaceChildren(...items);
}

element("#prompt").textContent = `“${PROMPT} …”`;
element<HTMLInputElement>("#proxy").value = settings.get("proxy") ?? "http://127.0.0.1:8080";
element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const [button, status] = [element<HTMLButtonElement>("button"), element("#status")];
  button.disabled = true;
  status.className = status.textContent = "";
  run()
    .catch((error: unknown) => {
      status.textContent = `Failed: ${error instanceof Error ? error.message : error}`;
      status.className = "failed";
    })
    .finally(() => (button.disabled = false));
});
