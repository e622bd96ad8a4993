// From the events of a StreamDebug call to an answer for each sub-request.

import { type DerivedScalarType, GroupId } from "../generated/transformer_debugger/v1/derived_scalar_pb.js";
import type { NodeIndex } from "../generated/transformer_debugger/v1/node_pb.js";
import type { GroupResult, MultipleTopKResult } from "../generated/transformer_debugger/v1/result_pb.js";
import type { StreamDebugResponse } from "../generated/transformer_debugger/v1/transformer_debugger_service_pb.js";
import { Chunks } from "./tensors.js";

/** A derived scalar summed over everything but the tokens: one number per token, or per pair of tokens. */
export interface Sum {
  groupId: GroupId;
  derivedScalarType: DerivedScalarType;
  shape: number[];
  elements: Float32Array;
}

/** The four numbers that say how much a node matters: one entry per node. */
export interface NodeScalars {
  writeNorm: Float32Array;
  actTimesGrad: Float32Array;
  directEffect: Float32Array;
  activation: Float32Array;
}

export interface DebugAnswer {
  tokens: string[];
  loss: number | undefined;
  nodes: NodeIndex[];
  scalars: NodeScalars;
  sums: Sum[];
}

/** A ranking whose parts have been put together. */
type Ranking = Pick<MultipleTopKResult, "nodeIndices" | "groups">;

/** Reads a stream to its end. Rejects with the call's `ConnectError` when it fails. */
export async function readDebugStream(stream: AsyncIterable<StreamDebugResponse>): Promise<DebugAnswer[]> {
  const chunks = new Chunks();
  const rankings = new Map<string, Ranking>();
  const losses = new Map<number, number | undefined>();
  let tokens: string[][] = [];
  let isFinished = false;
  for await (const { event } of stream) {
    switch (event.case) {
      case "started":
        tokens = event.value.subRequests.map((one) => one.tokenStrings);
        break;
      case "result": {
        const { subRequestIndex, result } = event.value;
        if (result?.result.case === "multipleTopK")
          addPart(rankings, `${subRequestIndex} ${result.name}`, result.result.value);
        break;
      }
      case "tensorChunk":
        chunks.add(event.value);
        break;
      case "values":
        losses.set(event.value.subRequestIndex, event.value.loss);
        break;
      case "finished":
        isFinished = true;
    }
  }
  if (!isFinished) throw new Error("the stream ended too early");
  return tokens.map((ofPrompt, index) => {
    const nodes = found(rankings, `${index} topKComponents`);
    const sums = found(rankings, `${index} componentSumsForTokenDisplay`);
    return {
      tokens: ofPrompt,
      loss: losses.get(index),
      nodes: nodes.nodeIndices,
      scalars: scalarsOf(nodes, chunks),
      sums: sums.groups.flatMap((group) => sumsOf(group, chunks)),
    };
  });
}

/** Later parts of a result bring more nodes; the tensors are in its first part. */
function addPart(rankings: Map<string, Ranking>, key: string, part: MultipleTopKResult): void {
  const before = rankings.get(key);
  if (before) before.nodeIndices.push(...part.nodeIndices);
  else rankings.set(key, part);
}

function found(rankings: Map<string, Ranking>, key: string): Ranking {
  const ranking = rankings.get(key);
  if (!ranking) throw new Error(`no result ${key}`);
  return ranking;
}

function scalarsOf({ groups }: Ranking, chunks: Chunks): NodeScalars {
  const elements = (groupId: GroupId) =>
    chunks.elements(groups.find((group) => group.groupId === groupId)?.activations);
  return {
    writeNorm: elements(GroupId.WRITE_NORM),
    actTimesGrad: elements(GroupId.ACT_TIMES_GRAD),
    directEffect: elements(GroupId.DIRECTION_WRITE),
    activation: elements(GroupId.ACTIVATION),
  };
}

function sumsOf({ groupId, sums }: GroupResult, chunks: Chunks): Sum[] {
  return sums.map(({ derivedScalarType, sum }) => ({
    groupId,
    derivedScalarType,
    shape: (sum?.shape ?? []).map(Number),
    elements: chunks.elements(sum),
  }));
}
