# Tensors of a stream as arrays of numbers: their bytes are in the message, or follow in chunks.

# CRC-32C (Castagnoli) of bytes.
module Crc32c
  CASTAGNOLI_REVERSED = 0x82f63b78
  OF_EACH_BYTE = (0..255).map do |byte|
    8.times.reduce(byte) { |rest, _| rest >> 1 ^ (rest.odd? ? CASTAGNOLI_REVERSED : 0) }
  end

  def self.of(bytes)
    bytes.each_byte.reduce(0xffffffff) { |rest, byte| rest >> 8 ^ OF_EACH_BYTE[(rest ^ byte) & 0xff] } ^ 0xffffffff
  end
end

# Keeps the chunks of a stream until all have come.
class Chunks
  def initialize
    @bytes = Hash.new { |bytes, tensor_id| bytes[tensor_id] = String.new(encoding: Encoding::BINARY) }
  end

  # Takes the next chunk of a tensor. Chunks come in order; one that does not is an error.
  def add(chunk)
    before = @bytes[chunk.tensor_id]
    raise "tensor #{chunk.tensor_id}: no bytes from #{before.bytesize} on" if chunk.offset != before.bytesize

    before << chunk.data
  end

  # The elements of a tensor, row by row. Call it when the stream has ended.
  def elements(tensor)
    raise "not a float32 tensor: #{tensor.dtype}" if tensor.dtype != :D_TYPE_FLOAT32

    elements = contents(tensor).unpack("e*") # little-endian, 4 bytes each
    raise "#{elements.size} elements for shape #{tensor.shape.to_a}" if elements.size != tensor.shape.reduce(1, :*)

    elements
  end

  private

  def contents(tensor)
    return tensor.data if tensor.contents != :chunked

    announced = tensor.chunked
    bytes = @bytes[announced.tensor_id]
    raise "tensor #{announced.tensor_id} is not complete" if bytes.bytesize != announced.total_bytes
    raise "tensor #{announced.tensor_id} arrived damaged" if Crc32c.of(bytes) != announced.crc32c

    bytes
  end
end
