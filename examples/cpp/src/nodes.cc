#include "nodes.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace v1 = transformer_debugger::v1;

std::string Spelling(const v1::NodeIndex& node) {
  const auto index = [&](int axis) { return std::to_string(node.tensor_indices().at(axis)); };
  const std::string layer = "L" + std::to_string(node.layer_index());
  switch (node.node_type()) {
    case v1::NODE_TYPE_ATTENTION_HEAD: return layer + " head " + index(2) + " @ " + index(0) + " -> " + index(1);
    case v1::NODE_TYPE_MLP_NEURON: return layer + " neuron " + index(1) + " @ " + index(0);
    case v1::NODE_TYPE_LAYER: return "embedding @ " + index(0);
    default: throw std::runtime_error("a node of type " + v1::NodeType_Name(node.node_type()));
  }
}

std::vector<size_t> Strongest(const NodeTable& table) {
  std::vector<size_t> rows(table.nodes.size());
  std::iota(rows.begin(), rows.end(), 0);
  const auto size = [&](size_t row) { return std::abs(table.direct_effect[row]); };
  std::stable_sort(rows.begin(), rows.end(), [&](size_t a, size_t b) { return size(a) > size(b); });
  return rows;
}
