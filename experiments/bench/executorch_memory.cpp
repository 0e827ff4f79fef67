// Memory, loading and passes of an ExecuTorch program, in a process with the runtime alone.
//
//     executorch_memory model.pte [TOKENS=128]
//
// Compile it as the runner of docs/guides/deploying.md. The program takes ids, mask and types of one text, as that of a
// BERT does. Prints the peak of resident memory at the start, after loading and at the end, and milliseconds.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

using namespace executorch::extension;
using Clock = std::chrono::steady_clock;

static double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

static void print_peak(const char* when) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmHWM", 0) == 0) std::printf("%s: %.1f MB\n", when, std::atof(line.c_str() + 6) * 1.024 / 1000);
}

int main(int count, char** words) {
  print_peak("start");
  const int tokens = count > 2 ? std::atoi(words[2]) : 128;
  std::vector<int64_t> ids(tokens, 1000), mask(tokens, 1), types(tokens, 0);
  const std::vector<executorch::aten::SizesType> shape = {1, tokens};
  const auto type = executorch::aten::ScalarType::Long;
  auto start = Clock::now();
  Module module(words[1]);
  if (module.load_forward() != executorch::runtime::Error::Ok) return 1;
  std::printf("load: %.0f ms\n", milliseconds_since(start));
  print_peak("loaded");
  for (int pass = 0; pass < 30; ++pass) {
    start = Clock::now();
    const auto result = module.forward(
        {from_blob(ids.data(), shape, type), from_blob(mask.data(), shape, type), from_blob(types.data(), shape, type)});
    if (!result.ok()) return 1;
    std::printf("%.1f%s", milliseconds_since(start), pass < 29 ? " " : " ms\n");
  }
  print_peak("end");
}
