package explain;

import com.google.protobuf.ByteString;
import java.nio.ByteOrder;
import java.util.HashMap;
import java.util.Map;
import java.util.zip.CRC32C;
import transformer_debugger.v1.TensorOuterClass.ChunkedContents;
import transformer_debugger.v1.TensorOuterClass.DType;
import transformer_debugger.v1.TensorOuterClass.Tensor;
import transformer_debugger.v1.TensorOuterClass.TensorChunk;

/** Tensors of a stream as arrays of numbers: their bytes are in the message, or follow in chunks. */
final class Chunks {
  private final Map<Integer, ByteString> bytes = new HashMap<>();

  /** Takes the next chunk of a tensor. Chunks come in order; one that does not is an error. */
  void add(TensorChunk chunk) {
    ByteString before = bytes.getOrDefault(chunk.getTensorId(), ByteString.EMPTY);
    check(chunk.getOffset() == before.size(), chunk.getTensorId(), "has a gap");
    bytes.put(chunk.getTensorId(), before.concat(chunk.getData()));
  }

  /** The elements of a tensor, row by row. Call it when the stream has ended. */
  float[] elements(Tensor tensor) {
    if (tensor.getDtype() != DType.D_TYPE_FLOAT32) {
      throw new IllegalStateException("not a float32 tensor: " + tensor.getDtype());
    }
    long size = tensor.getShapeList().stream().reduce(1L, Math::multiplyExact);
    ByteString contents = contents(tensor);
    if (contents.size() != size * Float.BYTES) {
      throw new IllegalStateException(contents.size() + " bytes for shape " + tensor.getShapeList());
    }
    float[] elements = new float[Math.toIntExact(size)];
    contents.asReadOnlyByteBuffer().order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(elements);
    return elements;
  }

  private ByteString contents(Tensor tensor) {
    if (!tensor.hasChunked()) {
      return tensor.getData();
    }
    ChunkedContents announced = tensor.getChunked();
    ByteString contents = bytes.getOrDefault(announced.getTensorId(), ByteString.EMPTY);
    check(contents.size() == announced.getTotalBytes(), announced.getTensorId(), "is not complete");
    CRC32C checksum = new CRC32C();
    checksum.update(contents.asReadOnlyByteBuffer());
    check((int) checksum.getValue() == announced.getCrc32C(), announced.getTensorId(), "arrived damaged");
    return contents;
  }

  private static void check(boolean holds, int tensorId, String otherwise) {
    if (!holds) {
      throw new IllegalStateException("tensor " + Integer.toUnsignedString(tensorId) + " " + otherwise);
    }
  }
}
