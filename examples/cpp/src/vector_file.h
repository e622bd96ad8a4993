// Compares what came back with the vector file that all examples share. A program of your own does not need this.

#pragma once

#include <string>
#include <vector>

#include "debug_answers.h"
#include "failure.h"
#include "transformer_debugger/v1/model_service.pb.h"

// Throws where anything differs.
void CheckAgainstVector(const std::string& path, const transformer_debugger::v1::ModelInfo& model,
                        const transformer_debugger::v1::DebugRequest& request,
                        const std::vector<DebugAnswer>& answers, const Failure& failure);
