// From the events of a StreamDebug call to an answer for each sub-request.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "transformer_debugger/v1/derived_scalar.pb.h"
#include "transformer_debugger/v1/node.pb.h"
#include "transformer_debugger/v1/transformer_debugger_service.grpc.pb.h"

// A derived scalar summed over everything but the tokens: one number per token, or per pair of tokens.
struct Sum {
  transformer_debugger::v1::GroupId group_id;
  transformer_debugger::v1::DerivedScalarType derived_scalar_type;
  std::vector<int64_t> shape;
  std::vector<float> elements;
};

// The nodes that matter, and four numbers for each that say how much.
struct NodeTable {
  std::vector<transformer_debugger::v1::NodeIndex> nodes;
  std::vector<float> write_norm;
  std::vector<float> act_times_grad;
  std::vector<float> direct_effect;
  std::vector<float> activation;
};

struct DebugAnswer {
  std::vector<std::string> tokens;
  std::optional<double> loss;
  NodeTable table;
  std::vector<Sum> sums;
};

// Reads a stream to its end. Throws a Failure when the call failed.
std::vector<DebugAnswer> ReadDebugStream(
    grpc::ClientReader<transformer_debugger::v1::StreamDebugResponse>& stream);
