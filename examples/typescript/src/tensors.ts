// Tensors of a stream as arrays of numbers: their bytes are in the message, or follow in chunks.

import { Crc32c } from "@aws-crypto/crc32c";

import { DType, type Tensor, type TensorChunk } from "../generated/transformer_debugger/v1/tensor.js";

/** Keeps the chunks of a stream until all have come. */
export class Chunks {
  private readonly bytes = new Map<number, Buffer[]>();

  /** Takes the next chunk of a tensor. Chunks come in order; one that does not is an error. */
  add(chunk: TensorChunk): void {
    const before = this.bytes.get(chunk.tensorId) ?? [];
    const reached = before.reduce((total, one) => total + one.length, 0);
    if (chunk.offset !== reached) throw new Error(`tensor ${chunk.tensorId}: no bytes from ${reached} on`);
    this.bytes.set(chunk.tensorId, [...before, chunk.data]);
  }

  /** The elements of a tensor, row by row. Call it when the stream has ended. */
  elements(tensor: Tensor | undefined): Float32Array {
    if (!tensor || tensor.dtype !== DType.D_TYPE_FLOAT32) throw new Error("not a float32 tensor");
    const bytes = this.contents(tensor);
    const elements = new Float32Array(tensor.shape.reduce((product, size) => product * size, 1));
    if (bytes.length !== elements.byteLength) throw new Error(`${bytes.length} bytes for shape [${tensor.shape}]`);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    return elements.map((_, index) => view.getFloat32(4 * index, true));
  }

  private contents({ contents }: Tensor): Buffer {
    if (contents?.$case !== "chunked") return contents?.value ?? Buffer.alloc(0);
    const { tensorId, totalBytes, crc32c } = contents.value;
    const bytes = Buffer.concat(this.bytes.get(tensorId) ?? []);
    if (bytes.length !== totalBytes) throw new Error(`tensor ${tensorId}: ${bytes.length} of ${totalBytes} bytes came`);
    if (new Crc32c().update(bytes).digest() !== crc32c) throw new Error(`tensor ${tensorId} arrived damaged`);
    return bytes;
  }
}
