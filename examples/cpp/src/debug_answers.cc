#include "debug_answers.h"

#include <map>
#include <stdexcept>
#include <utility>

#include "failure.h"
#include "tensors.h"

namespace v1 = transformer_debugger::v1;

namespace {

// Results by sub-request and name. Parts are merged as they come: lists grow, and tensors are in the first part.
using Rankings = std::map<std::pair<int, std::string>, v1::MultipleTopKResult>;

NodeTable TableOf(const v1::MultipleTopKResult& ranking, const Chunks& chunks) {
  NodeTable table;
  table.nodes.assign(ranking.node_indices().begin(), ranking.node_indices().end());
  for (const v1::GroupResult& group : ranking.groups()) {
    std::vector<float> elements = chunks.Elements(group.activations());
    if (elements.size() != table.nodes.size()) throw std::runtime_error("a group does not fit its nodes");
    switch (group.group_id()) {
      case v1::GROUP_ID_WRITE_NORM: table.write_norm = std::move(elements); break;
      case v1::GROUP_ID_ACT_TIMES_GRAD: table.act_times_grad = std::move(elements); break;
      case v1::GROUP_ID_DIRECTION_WRITE: table.direct_effect = std::move(elements); break;
      case v1::GROUP_ID_ACTIVATION: table.activation = std::move(elements); break;
      default: break;
    }
  }
  return table;
}

std::vector<Sum> SumsOf(const v1::MultipleTopKResult& ranking, const Chunks& chunks) {
  std::vector<Sum> sums;
  for (const v1::GroupResult& group : ranking.groups()) {
    for (const v1::DerivedScalarSum& one : group.sums()) {
      const auto& shape = one.sum().shape();
      sums.push_back({group.group_id(), one.derived_scalar_type(), {shape.begin(), shape.end()},
                      chunks.Elements(one.sum())});
    }
  }
  return sums;
}

}  // namespace

std::vector<DebugAnswer> ReadDebugStream(grpc::ClientReader<v1::StreamDebugResponse>& stream) {
  std::vector<DebugAnswer> answers;
  Rankings rankings;
  Chunks chunks;
  bool is_finished = false;
  v1::StreamDebugResponse event;
  while (stream.Read(&event)) {
    if (event.has_started()) {
      for (const v1::SubRequestTokens& one : event.started().sub_requests()) {
        answers.emplace_back().tokens.assign(one.token_strings().begin(), one.token_strings().end());
      }
    } else if (event.has_result()) {
      const v1::ResultPart& part = event.result();
      if (part.result().has_multiple_top_k()) {
        rankings[{part.sub_request_index(), part.result().name()}].MergeFrom(part.result().multiple_top_k());
      }
    } else if (event.has_tensor_chunk()) {
      chunks.Add(event.tensor_chunk());
    } else if (event.has_values() && event.values().has_loss()) {
      answers.at(event.values().sub_request_index()).loss = event.values().loss();
    } else if (event.has_finished()) {
      is_finished = true;
    }
  }
  ThrowUnlessOk(stream.Finish());
  if (!is_finished) throw std::runtime_error("the stream ended too early");
  for (size_t index = 0; index < answers.size(); ++index) {
    answers[index].table = TableOf(rankings.at({index, "topKComponents"}), chunks);
    answers[index].sums = SumsOf(rankings.at({index, "componentSumsForTokenDisplay"}), chunks);
  }
  return answers;
}
