// Asks a server why its model says " her" rather than " him", and meets an error and a cancelled stream on the way.
// Usage: node dist/src/main.js [ADDRESS [VECTOR]]; with a vector file, what came back is compared with it.

import { credentials } from "@grpc/grpc-js";

import {
  type ModelInfo,
  ModelServiceClient,
  TokenizeRequest,
} from "../generated/transformer_debugger/v1/model_service.js";
import { NodeType } from "../generated/transformer_debugger/v1/node.js";
import {
  DebugRequest,
  TransformerDebuggerServiceClient,
} from "../generated/transformer_debugger/v1/transformer_debugger_service.js";
import { unary, withDeadline } from "./calls.js";
import { type DebugAnswer, readDebugStream } from "./debug_answers.js";
import { type Failure, failureOf } from "./failure.js";
import { spelling, strongest } from "./nodes.js";
import { checkAgainstVector } from "./vector.js";

const PROMPT = "When Mary and John went to the store, John gave a drink to";
const [address = "127.0.0.1:50051", vectorFile] = process.argv.slice(2);
const models = new ModelServiceClient(address, credentials.createInsecure());
const debuggers = new TransformerDebuggerServiceClient(address, credentials.createInsecure());

/** The prompt as it is, and without head 0 of layer 1 at the last token. One call, so that both have the same nodes. */
async function requestWithAblation(): Promise<DebugRequest> {
  const { tokenIds } = await unary(models, models.tokenize, TokenizeRequest.fromPartial({ text: PROMPT }));
  const last = tokenIds.length - 1;
  const plain = { prompt: PROMPT, targetTokens: [" her"], distractorTokens: [" him"], topAndBottomK: 10 };
  const head = { nodeType: NodeType.NODE_TYPE_ATTENTION_HEAD, layerIndex: 1, tensorIndices: [last, last, 0] };
  return DebugRequest.fromPartial({ subRequests: [plain, { ...plain, nodeAblations: [{ nodeIndex: head }] }] });
}

async function describeModel(): Promise<ModelInfo> {
  const { modelInfo } = await unary(models, models.getModelInfo, {});
  if (!modelInfo) throw new Error("the server describes no model");
  console.log(`${modelInfo.name}: ${modelInfo.nLayers} layers of ${modelInfo.nHeads} heads`);
  return modelInfo;
}

async function explain(request: DebugRequest): Promise<DebugAnswer[]> {
  const answers = await readDebugStream(debuggers.streamDebug(request, withDeadline()));
  const [plain, ablated] = answers;
  if (!plain || !ablated) throw new Error("an answer is missing");
  console.log(`logit difference ${plain.loss?.toFixed(3)}, without L1 head 0: ${ablated.loss?.toFixed(3)}`);
  for (const row of strongest(plain).slice(0, 10)) {
    const effects = [plain, ablated].map((one) => one.scalars.directEffect[row]?.toFixed(3).padStart(8));
    console.log(effects.join(" "), spelling(plain.nodes[row]));
  }
  return answers;
}

/** Asks for a layer that does not exist and for no nodes; the server names both faults. */
async function meetAnError(request: DebugRequest): Promise<Failure> {
  const wrong = DebugRequest.fromPartial(request);
  const ablated = wrong.subRequests[1];
  const head = ablated?.nodeAblations[0]?.nodeIndex;
  if (!ablated || !head) throw new Error("the request has no ablation");
  ablated.topAndBottomK = 0;
  head.layerIndex = 1000;
  try {
    await readDebugStream(debuggers.streamDebug(wrong, withDeadline()));
  } catch (error) {
    const failure = failureOf(error);
    console.log(`refused with ${failure.code}, ${failure.reason}:`);
    for (const one of failure.fieldViolations) console.log(`  ${one.field}: ${one.description}`);
    return failure;
  }
  throw new Error("a wrong request was taken");
}

/** Hangs up as soon as a worker has taken up a long call; the server then stops the work. */
async function cancelStream(request: DebugRequest, model: ModelInfo): Promise<void> {
  const [plain] = request.subRequests;
  if (!plain) throw new Error("the request is empty");
  const long = DebugRequest.fromPartial({ subRequests: Array(model.limits?.maxSubRequests).fill(plain) });
  const stream = debuggers.streamDebug(long, withDeadline());
  try {
    for await (const { event } of stream) if (event?.$case === "started") stream.cancel();
  } catch (error) {
    const { code } = failureOf(error);
    console.log(`cancelled: ${code}`);
    if (code === "CANCELLED") return;
  }
  throw new Error("the stream was not cancelled");
}

const model = await describeModel();
const request = await requestWithAblation();
const answers = await explain(request);
const failure = await meetAnError(request);
await cancelStream(request, model);
if (vectorFile) checkAgainstVector(vectorFile, model, request, answers, failure);
