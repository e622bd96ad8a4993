// Tensors of a stream as vectors of numbers: their bytes are in the message, or follow in chunks.

#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "transformer_debugger/v1/tensor.pb.h"

// Keeps the chunks of a stream until all have come.
class Chunks {
 public:
  // Takes the next chunk of a tensor. Throws when it is not the one that follows.
  void Add(const transformer_debugger::v1::TensorChunk& chunk);

  // The elements of a tensor, row by row. Call it when the stream has ended.
  std::vector<float> Elements(const transformer_debugger::v1::Tensor& tensor) const;

 private:
  const std::string& Contents(const transformer_debugger::v1::Tensor& tensor) const;

  std::map<uint32_t, std::string> bytes_;
};

// CRC-32C (Castagnoli) of bytes.
uint32_t Crc32c(const std::string& bytes);
