// Tensors of a stream as arrays of numbers: their bytes are in the message, or follow in chunks.

import { Crc32c } from "@aws-crypto/crc32c";

import { DType, type Tensor, type TensorChunk } from "../generated/transformer_debugger/v1/tensor_pb.js";

/** Keeps the chunks of a stream until all have come. */
export class Chunks {
  private readonly bytes = new Map<number, Uint8Array[]>();

  /** Takes the next chunk of a tensor. Chunks come in order; one that does not is an error. */
  add({ tensorId, offset, data }: TensorChunk): void {
    const before = this.bytes.get(tensorId) ?? [];
    const reached = totalLength(before);
    if (offset !== BigInt(reached)) throw new Error(`tensor ${tensorId}: no bytes from ${reached} on`);
    this.bytes.set(tensorId, [...before, data]);
  }

  /** The elements of a tensor, row by row. Call it when the stream has ended. */
  elements(tensor: Tensor | undefined): Float32Array {
    if (tensor?.dtype !== DType.FLOAT32) throw new Error("not a float32 tensor");
    const bytes = this.contents(tensor);
    const elements = new Float32Array(tensor.shape.reduce((product, size) => product * Number(size), 1));
    if (bytes.length !== elements.byteLength) throw new Error(`${bytes.length} bytes for shape [${tensor.shape}]`);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    return elements.map((_, index) => view.getFloat32(4 * index, true));
  }

  private contents({ contents }: Tensor): Uint8Array {
    if (contents.case !== "chunked") return contents.value ?? new Uint8Array();
    const { tensorId, totalBytes, crc32c } = contents.value;
    const bytes = joined(this.bytes.get(tensorId) ?? []);
    if (BigInt(bytes.length) !== totalBytes) throw new Error(`tensor ${tensorId} is not complete`);
    if (new Crc32c().update(bytes).digest() !== crc32c) throw new Error(`tensor ${tensorId} arrived damaged`);
    return bytes;
  }
}

function totalLength(pieces: Uint8Array[]): number {
  return pieces.reduce((total, one) => total + one.length, 0);
}

function joined(pieces: Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(totalLength(pieces));
  let reached = 0;
  for (const one of pieces) {
    bytes.set(one, reached);
    reached += one.length;
  }
  return bytes;
}
