// Asks a server why its model says " her" rather than " him", and meets an error and a cancelled stream on the way.
// Usage: explain [ADDRESS [VECTOR]]; with a vector file, what came back is compared with it.

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "debug_answers.h"
#include "failure.h"
#include "nodes.h"
#include "transformer_debugger/v1/model_service.grpc.pb.h"
#include "transformer_debugger/v1/transformer_debugger_service.grpc.pb.h"
#include "vector_file.h"

namespace v1 = transformer_debugger::v1;

namespace {

constexpr char kPrompt[] = "When Mary and John went to the store, John gave a drink to";
constexpr std::chrono::seconds kDeadline(30);

// A call's context, with a deadline: no call waits for ever.
struct Context : grpc::ClientContext {
  Context() { set_deadline(std::chrono::system_clock::now() + kDeadline); }
};

v1::ModelInfo DescribeModel(v1::ModelService::Stub& models) {
  Context context;
  v1::GetModelInfoResponse response;
  ThrowUnlessOk(models.GetModelInfo(&context, {}, &response));
  const v1::ModelInfo& model = response.model_info();
  std::printf("%s: %d layers of %d heads\n", model.name().c_str(), model.n_layers(), model.n_heads());
  return model;
}

int NumberOfTokens(v1::ModelService::Stub& models) {
  Context context;
  v1::TokenizeRequest request;
  request.set_text(kPrompt);
  v1::TokenizeResponse response;
  ThrowUnlessOk(models.Tokenize(&context, request, &response));
  return response.token_ids_size();
}

// The prompt as it is, and without head 0 of layer 1 at the last token. One call, so that both have the same nodes.
v1::DebugRequest RequestWithAblation(int last_token) {
  v1::DebugRequest request;
  v1::DebugSubRequest& plain = *request.add_sub_requests();
  plain.set_prompt(kPrompt);
  plain.add_target_tokens(" her");
  plain.add_distractor_tokens(" him");
  plain.set_top_and_bottom_k(10);
  v1::DebugSubRequest ablated = plain;
  v1::NodeIndex& head = *ablated.add_node_ablations()->mutable_node_index();
  head.set_node_type(v1::NODE_TYPE_ATTENTION_HEAD);
  head.set_layer_index(1);
  for (const int index : {last_token, last_token, 0}) head.add_tensor_indices(index);
  *request.add_sub_requests() = ablated;
  return request;
}

std::vector<DebugAnswer> Explain(v1::TransformerDebuggerService::Stub& debugger, const v1::DebugRequest& request) {
  Context context;
  const auto stream = debugger.StreamDebug(&context, request);
  std::vector<DebugAnswer> answers = ReadDebugStream(*stream);
  const DebugAnswer& plain = answers.at(0);
  const DebugAnswer& ablated = answers.at(1);
  std::printf("logit difference %.3f, without L1 head 0: %.3f\n", plain.loss.value(), ablated.loss.value());
  std::vector<size_t> rows = Strongest(plain.table);
  rows.resize(std::min<size_t>(rows.size(), 10));
  for (const size_t row : rows) {
    std::printf("%8.3f %8.3f %s\n", plain.table.direct_effect[row], ablated.table.direct_effect[row],
                Spelling(plain.table.nodes[row]).c_str());
  }
  return answers;
}

// Asks for a layer that does not exist and for no nodes; the server names both faults.
Failure MeetAnError(v1::TransformerDebuggerService::Stub& debugger, v1::DebugRequest request) {
  v1::DebugSubRequest& ablated = *request.mutable_sub_requests(1);
  ablated.set_top_and_bottom_k(0);
  ablated.mutable_node_ablations(0)->mutable_node_index()->set_layer_index(1000);
  Context context;
  try {
    ReadDebugStream(*debugger.StreamDebug(&context, request));
  } catch (const Failure& failure) {
    std::printf("refused with %s, %s:\n", NameOf(failure.code).c_str(), failure.reason.c_str());
    for (const auto& one : failure.field_violations) {
      std::printf("  %s: %s\n", one.field().c_str(), one.description().c_str());
    }
    return failure;
  }
  throw std::runtime_error("a wrong request was taken");
}

// Hangs up as soon as a worker has taken up a long call; the server then stops the work.
void CancelStream(v1::TransformerDebuggerService::Stub& debugger, const v1::DebugSubRequest& one, int n_sub_requests) {
  v1::DebugRequest request;
  for (int index = 0; index < n_sub_requests; ++index) *request.add_sub_requests() = one;
  Context context;
  const auto stream = debugger.StreamDebug(&context, request);
  v1::StreamDebugResponse event;
  while (stream->Read(&event)) {
    if (event.has_started()) context.TryCancel();
  }
  const grpc::StatusCode code = stream->Finish().error_code();
  std::printf("cancelled: %s\n", NameOf(code).c_str());
  if (code != grpc::StatusCode::CANCELLED) throw std::runtime_error("the stream was not cancelled");
}

void Run(const std::string& address, const std::string& vector_file) {
  const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  const auto models = v1::ModelService::NewStub(channel);
  const auto debugger = v1::TransformerDebuggerService::NewStub(channel);

  const v1::ModelInfo model = DescribeModel(*models);
  const v1::DebugRequest request = RequestWithAblation(NumberOfTokens(*models) - 1);
  const std::vector<DebugAnswer> answers = Explain(*debugger, request);
  const Failure failure = MeetAnError(*debugger, request);
  CancelStream(*debugger, request.sub_requests(0), model.limits().max_sub_requests());
  if (vector_file.empty()) return;
  CheckAgainstVector(vector_file, model, request, answers, failure);
  std::printf("all as in %s\n", vector_file.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Run(argc > 1 ? argv[1] : "127.0.0.1:50051", argc > 2 ? argv[2] : "");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
