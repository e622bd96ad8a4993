#include "tensors.h"

#include <array>
#include <cstring>
#include <stdexcept>

namespace v1 = transformer_debugger::v1;

namespace {

constexpr uint32_t kCastagnoliReversed = 0x82f63b78;

std::array<uint32_t, 256> Crc32cOfEachByte() {
  std::array<uint32_t, 256> table;
  for (uint32_t byte = 0; byte < table.size(); ++byte) {
    uint32_t rest = byte;
    for (int bit = 0; bit < 8; ++bit) rest = rest >> 1 ^ (rest & 1 ? kCastagnoliReversed : 0);
    table[byte] = rest;
  }
  return table;
}

float FloatFromLittleEndian(const char* bytes) {
  uint32_t bits = 0;
  for (int index = 3; index >= 0; --index) bits = bits << 8 | static_cast<uint8_t>(bytes[index]);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

std::string Named(uint32_t tensor_id) { return "tensor " + std::to_string(tensor_id); }

}  // namespace

uint32_t Crc32c(const std::string& bytes) {
  static const std::array<uint32_t, 256> table = Crc32cOfEachByte();
  uint32_t rest = 0xffffffff;
  for (const char byte : bytes) rest = rest >> 8 ^ table[(rest ^ static_cast<uint8_t>(byte)) & 0xff];
  return ~rest;
}

void Chunks::Add(const v1::TensorChunk& chunk) {
  std::string& before = bytes_[chunk.tensor_id()];
  if (chunk.offset() != before.size()) throw std::runtime_error(Named(chunk.tensor_id()) + " has a gap");
  before += chunk.data();
}

std::vector<float> Chunks::Elements(const v1::Tensor& tensor) const {
  if (tensor.dtype() != v1::D_TYPE_FLOAT32) throw std::runtime_error("not a float32 tensor");
  size_t n_elements = 1;
  for (const int64_t size : tensor.shape()) n_elements *= size;
  const std::string& bytes = Contents(tensor);
  if (bytes.size() != n_elements * sizeof(float)) throw std::runtime_error("a tensor does not fit its shape");
  std::vector<float> elements(n_elements);
  for (size_t index = 0; index < n_elements; ++index) {
    elements[index] = FloatFromLittleEndian(&bytes[index * sizeof(float)]);
  }
  return elements;
}

const std::string& Chunks::Contents(const v1::Tensor& tensor) const {
  if (!tensor.has_chunked()) return tensor.data();
  const v1::ChunkedContents& announced = tensor.chunked();
  const auto found = bytes_.find(announced.tensor_id());
  if (found == bytes_.end() || found->second.size() != announced.total_bytes()) {
    throw std::runtime_error(Named(announced.tensor_id()) + " is not complete");
  }
  if (Crc32c(found->second) != announced.crc32c()) {
    throw std::runtime_error(Named(announced.tensor_id()) + " arrived damaged");
  }
  return found->second;
}
