#pragma once

#include <string>
#include <vector>

namespace fastnn::FASTNN_TARGET {

// What each thread of a kernel with a planted mistake, or of its fixed twin, answers: 1 where all is well.
std::vector<float> run_fault(const std::string& name, bool fixed);
std::vector<std::string> fault_names();

}  // namespace fastnn::FASTNN_TARGET
