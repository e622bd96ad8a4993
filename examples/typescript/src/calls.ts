// Calls that answer once, as promises; every call with a deadline.

import { type CallOptions, type ClientUnaryCall, Metadata, type ServiceError } from "@grpc/grpc-js";

const DEADLINE_MILLISECONDS = 30_000;

type UnaryCall<Request, Response> = (
  request: Request,
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, response: Response) => void,
) => ClientUnaryCall;

/** Options that end a call with DEADLINE_EXCEEDED when it takes too long. */
export function withDeadline(): Partial<CallOptions> {
  return { deadline: Date.now() + DEADLINE_MILLISECONDS };
}

/** Calls a client's method; rejects with the `ServiceError` when it fails. */
export function unary<Request, Response>(
  client: object,
  method: UnaryCall<Request, Response>,
  request: Request,
): Promise<Response> {
  return new Promise((resolve, reject) =>
    method.call(client, request, new Metadata(), withDeadline(), (error, response) =>
      error ? reject(error) : resolve(response),
    ),
  );
}
