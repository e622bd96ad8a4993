// A failed call in full: the server sends the reason, and every field at fault, as details of the status.

import { Code, ConnectError } from "@connectrpc/connect";

import {
  type BadRequest_FieldViolation,
  BadRequestSchema,
  ErrorInfoSchema,
} from "../generated/google/rpc/error_details_pb.js";

export interface Failure {
  code: Code;
  message: string;
  reason: string;
  fieldViolations: BadRequest_FieldViolation[];
}

/** Reads the error of a call. Errors of other kinds are thrown on. */
export function failureOf(error: unknown): Failure {
  if (!(error instanceof ConnectError)) throw error;
  return {
    code: error.code,
    message: error.rawMessage,
    reason: error.findDetails(ErrorInfoSchema)[0]?.reason ?? "",
    fieldViolations: error.findDetails(BadRequestSchema).flatMap((one) => one.fieldViolations),
  };
}

/** The name of a code as the protos have it, such as INVALID_ARGUMENT. */
export function codeName(code: Code): string {
  if (code === Code.Canceled) return "CANCELLED";
  return (Code[code] ?? "").replace(/(?<=.)[A-Z]/g, "_$&").toUpperCase();
}
