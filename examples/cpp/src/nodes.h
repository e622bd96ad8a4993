// Nodes for people: how they are spelled, and which matter most.

#pragma once

#include <string>
#include <vector>

#include "debug_answers.h"

// A node as the command line spells it, such as "L1 head 0 @ 27 -> 3" or "L2 neuron 123 @ 27".
std::string Spelling(const transformer_debugger::v1::NodeIndex& node);

// Rows of the node table, the largest direct effect first, whatever its sign.
std::vector<size_t> Strongest(const NodeTable& table);
