#pragma once
// What launches.cpp calls for the ops over lists of tensors.
#include <istream>
#include <string>

namespace longspan::kernels {

/// Runs one line, false for other ops:
///   magnitude kth|histogram|lower <dtype>
///   perturb gaussian|rademacher <dtype>
///   update adamw|sgd <dtype of parameters>
bool list_launch(const std::string& op, std::istream& words);

}  // namespace longspan::kernels
