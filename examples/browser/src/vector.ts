// Compares what came back with the vector file that all examples share. A page of your own does not need this.

import { type JsonValue, enumToJson, equals, fromJson } from "@bufbuild/protobuf";

import { DerivedScalarTypeSchema, GroupIdSchema } from "../generated/transformer_debugger/v1/derived_scalar_pb.js";
import type { ModelInfo } from "../generated/transformer_debugger/v1/model_service_pb.js";
import {
  type DebugRequest,
  DebugRequestSchema,
} from "../generated/transformer_debugger/v1/transformer_debugger_service_pb.js";
import type { DebugAnswer, NodeScalars } from "./debug_answers.js";
import { type Failure, codeName } from "./failure.js";
import { spelling, strongest } from "./nodes.js";

const TOLERANCE = 1e-4;

interface ExpectedAnswer {
  tokens: string[];
  loss: number;
  nodes: ({ node: string } & Record<keyof NodeScalars, number>)[];
  sums: { groupId: string; derivedScalarType: string; shape: number[]; values: number[] }[];
}

export interface Vector {
  model: { name: string; digest: string; nLayers: number; nHeads: number };
  request: JsonValue;
  answers: ExpectedAnswer[];
  refused: { code: string; reason: string; fieldViolations: { field: string; reason: string }[] };
}

/** Throws where anything differs. */
export function checkAgainstVector(
  vector: Vector,
  model: ModelInfo,
  request: DebugRequest,
  answers: DebugAnswer[],
  failure: Failure,
): void {
  const { name, digest, nLayers, nHeads } = model;
  checkSame({ name, digest, nLayers, nHeads }, vector.model, "the model");
  if (!equals(DebugRequestSchema, request, fromJson(DebugRequestSchema, vector.request)))
    throw new Error("the request is not that of the vector file");
  checkSame(answers.length, vector.answers.length, "the number of answers");
  vector.answers.forEach((expected, index) => checkAnswer(answers[index]!, expected));
  const ten = strongest(answers[0]!).slice(0, 10).map((row) => spelling(answers[0]!.nodes[row]));
  const expectedTen = vector.answers[0]!.nodes.slice(0, 10).map((expected) => expected.node);
  checkSame(ten, expectedTen, "the strongest nodes");
  const { code, reason, fieldViolations } = vector.refused;
  checkSame([codeName(failure.code), failure.reason], [code, reason], "the refusal");
  checkSame(failure.fieldViolations.map(({ field, reason }) => ({ field, reason })), fieldViolations, "the fields");
}

function checkAnswer(answer: DebugAnswer, expected: ExpectedAnswer): void {
  checkSame(answer.tokens, expected.tokens, "the tokens");
  checkClose(answer.loss, expected.loss, "loss");
  const rows = new Map(answer.nodes.map((node, row) => [spelling(node), row]));
  checkSame(rows.size, expected.nodes.length, "the number of nodes");
  for (const { node, ...scalars } of expected.nodes) {
    const row = rows.get(node);
    if (row === undefined) throw new Error(`${node} is missing`);
    for (const name of Object.keys(scalars) as (keyof NodeScalars)[])
      checkClose(answer.scalars[name][row], scalars[name], `${name} of ${node}`);
  }
  checkSame(answer.sums.length, expected.sums.length, "the number of sums");
  expected.sums.forEach((sum, index) => {
    const { groupId, derivedScalarType, shape, elements } = answer.sums[index]!;
    const names = [enumToJson(GroupIdSchema, groupId), enumToJson(DerivedScalarTypeSchema, derivedScalarType)];
    checkSame([names, shape], [[sum.groupId, sum.derivedScalarType], sum.shape], "a sum");
    sum.values.forEach((value, at) => checkClose(elements[at], value, `${names} at ${at}`));
  });
}

function checkSame(actual: unknown, expected: unknown, what: string): void {
  const [a, b] = [actual, expected].map((one) => JSON.stringify(one));
  if (a !== b) throw new Error(`${what}: ${a} in place of ${b}`);
}

function checkClose(actual: number | undefined, expected: number, what: string): void {
  const allowed = TOLERANCE * Math.max(1, Math.abs(expected));
  if (!(Math.abs((actual ?? NaN) - expected) <= allowed)) throw new Error(`${what}: ${actual} in place of ${expected}`);
}
