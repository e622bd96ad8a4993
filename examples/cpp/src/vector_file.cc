#include "vector_file.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "nodes.h"

namespace v1 = transformer_debugger::v1;
using nlohmann::json;

namespace {

constexpr double kTolerance = 1e-4;

void Check(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error("not as in the vector file: " + what);
}

void CheckClose(double actual, const json& expected, const std::string& what) {
  const double allowed = kTolerance * std::max(1.0, std::abs(expected.get<double>()));
  Check(std::abs(actual - expected.get<double>()) <= allowed, what + " is " + std::to_string(actual));
}

void CheckRequest(const v1::DebugRequest& request, const json& expected) {
  v1::DebugRequest read;
  Check(google::protobuf::util::JsonStringToMessage(expected.dump(), &read).ok(), "the request's form");
  Check(google::protobuf::util::MessageDifferencer::Equals(request, read), "the request");
}

void CheckNodes(const NodeTable& table, const json& expected) {
  std::map<std::string, size_t> rows;
  for (size_t row = 0; row < table.nodes.size(); ++row) rows[Spelling(table.nodes[row])] = row;
  Check(rows.size() == expected.size(), "the number of nodes");
  for (const json& one : expected) {
    const std::string node = one["node"];
    Check(rows.count(node) == 1, node);
    const size_t row = rows.at(node);
    CheckClose(table.write_norm.at(row), one["writeNorm"], "write norm of " + node);
    CheckClose(table.act_times_grad.at(row), one["actTimesGrad"], "act times grad of " + node);
    CheckClose(table.direct_effect.at(row), one["directEffect"], "direct effect of " + node);
    CheckClose(table.activation.at(row), one["activation"], "activation of " + node);
  }
}

void CheckSums(const std::vector<Sum>& sums, const json& expected) {
  Check(sums.size() == expected.size(), "the number of sums");
  for (size_t index = 0; index < sums.size(); ++index) {
    const Sum& sum = sums[index];
    const json& one = expected[index];
    const std::string name = v1::DerivedScalarType_Name(sum.derived_scalar_type);
    Check(one["derivedScalarType"] == name && one["groupId"] == v1::GroupId_Name(sum.group_id), name);
    Check(one["shape"] == sum.shape && one["values"].size() == sum.elements.size(), "shape of " + name);
    for (size_t at = 0; at < sum.elements.size(); ++at) CheckClose(sum.elements[at], one["values"][at], name);
  }
}

void CheckFailure(const Failure& failure, const json& expected) {
  Check(expected["code"] == NameOf(failure.code) && expected["reason"] == failure.reason, "the refusal");
  json violations = json::array();
  for (const auto& one : failure.field_violations) {
    violations.push_back({{"field", one.field()}, {"reason", one.reason()}});
  }
  Check(expected["fieldViolations"] == violations, "the fields at fault");
}

}  // namespace

void CheckAgainstVector(const std::string& path, const v1::ModelInfo& model, const v1::DebugRequest& request,
                        const std::vector<DebugAnswer>& answers, const Failure& failure) {
  const json vector = json::parse(std::ifstream(path));
  const json description = {{"name", model.name()}, {"digest", model.digest()},
                            {"nLayers", model.n_layers()}, {"nHeads", model.n_heads()}};
  Check(vector["model"] == description, "the model");
  CheckRequest(request, vector["request"]);
  Check(answers.size() == vector["answers"].size(), "the number of answers");
  for (size_t index = 0; index < answers.size(); ++index) {
    const json& expected = vector["answers"][index];
    Check(expected["tokens"] == answers[index].tokens, "the tokens");
    CheckClose(answers[index].loss.value(), expected["loss"], "loss");
    CheckNodes(answers[index].table, expected["nodes"]);
    CheckSums(answers[index].sums, expected["sums"]);
  }
  const std::vector<size_t> rows = Strongest(answers[0].table);
  for (size_t place = 0; place < 10; ++place) {
    const json& expected = vector["answers"][0]["nodes"][place]["node"];
    Check(expected == Spelling(answers[0].table.nodes[rows[place]]), "the strongest nodes");
  }
  CheckFailure(failure, vector["refused"]);
}
