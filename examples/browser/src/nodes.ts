// Nodes for people: how they are spelled, and which matter most.

import { type NodeIndex, NodeType } from "../generated/transformer_debugger/v1/node_pb.js";
import type { DebugAnswer } from "./debug_answers.js";

/** A node as the command line spells it, such as `L1 head 0 @ 27 -> 3` or `L2 neuron 123 @ 27`. */
export function spelling(node: NodeIndex | undefined): string {
  const [token, ...rest] = node?.tensorIndices ?? [];
  switch (node?.nodeType) {
    case NodeType.ATTENTION_HEAD:
      return `L${node.layerIndex} head ${rest[1]} @ ${token} -> ${rest[0]}`;
    case NodeType.MLP_NEURON:
      return `L${node.layerIndex} neuron ${rest[0]} @ ${token}`;
    case NodeType.LAYER:
      return `embedding @ ${token}`;
    default:
      throw new Error(`a node of type ${node?.nodeType}`);
  }
}

/** Rows of the node table, the largest direct effect first, whatever its sign. */
export function strongest({ scalars }: DebugAnswer): number[] {
  const size = (row: number) => Math.abs(scalars.directEffect[row] ?? 0);
  return [...scalars.directEffect.keys()].sort((a, b) => size(b) - size(a));
}
