// What the page asks of the server.

import { clone, create } from "@bufbuild/protobuf";
import { type Client, Code } from "@connectrpc/connect";

import { type ModelInfo, type ModelService } from "../generated/transformer_debugger/v1/model_service_pb.js";
import { NodeType } from "../generated/transformer_debugger/v1/node_pb.js";
import {
  type DebugRequest,
  DebugRequestSchema,
  type TransformerDebuggerService,
} from "../generated/transformer_debugger/v1/transformer_debugger_service_pb.js";
import { readDebugStream } from "./debug_answers.js";
import { type Failure, failureOf } from "./failure.js";

export const PROMPT = "When Mary and John went to the store, John gave a drink to";

export async function describeModel(models: Client<typeof ModelService>): Promise<ModelInfo> {
  const { modelInfo } = await models.getModelInfo({});
  if (!modelInfo) throw new Error("the server describes no model");
  return modelInfo;
}

/** The prompt as it is, and without head 0 of layer 1 at the last token. One call, so that both have the same nodes. */
export async function requestWithAblation(models: Client<typeof ModelService>): Promise<DebugRequest> {
  const { tokenIds } = await models.tokenize({ text: PROMPT });
  const last = tokenIds.length - 1;
  const plain = { prompt: PROMPT, targetTokens: [" her"], distractorTokens: [" him"], topAndBottomK: 10 };
  const head = { nodeType: NodeType.ATTENTION_HEAD, layerIndex: 1, tensorIndices: [last, last, 0] };
  return create(DebugRequestSchema, {
    subRequests: [plain, { ...plain, nodeAblations: [{ nodeIndex: head }] }],
  });
}

/** Asks for a layer that does not exist and for no nodes; the server names both faults. */
export async function meetAnError(
  debuggers: Client<typeof TransformerDebuggerService>,
  request: DebugRequest,
): Promise<Failure> {
  const wrong = clone(DebugRequestSchema, request);
  const ablated = wrong.subRequests[1];
  const head = ablated?.nodeAblations[0]?.nodeIndex;
  if (!ablated || !head) throw new Error("the request has no ablation");
  ablated.topAndBottomK = 0;
  head.layerIndex = 1000;
  try {
    await readDebugStream(debuggers.streamDebug(wrong));
  } catch (error) {
    return failureOf(error);
  }
  throw new Error("a wrong request was taken");
}

/** Hangs up as soon as a worker has taken up a long call; the server then stops the work. */
export async function cancelStream(
  debuggers: Client<typeof TransformerDebuggerService>,
  request: DebugRequest,
  nSubRequests: number,
): Promise<Failure> {
  const [plain] = request.subRequests;
  if (!plain) throw new Error("the request is empty");
  const long = create(DebugRequestSchema, { subRequests: Array(nSubRequests).fill(plain) });
  const hangUp = new AbortController();
  try {
    for await (const { event } of debuggers.streamDebug(long, { signal: hangUp.signal }))
      if (event.case === "started") hangUp.abort();
  } catch (error) {
    const failure = failureOf(error);
    if (failure.code === Code.Canceled) return failure;
    throw error;
  }
  throw new Error("the stream was not cancelled");
}
