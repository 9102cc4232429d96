// How fast one way of reading is on this file, measured on a part of it.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>

#include "brisk/read_plan.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

struct TrialRead {
  std::uint64_t bytes;                    // read in that time
  std::chrono::duration<double> elapsed;  // without getting the memory
  Engine engine;                          // what really read
  bool direct;                            // past the page cache; otherwise the speed says little
};

// Reads chunks [first, first + count) of the file, as far as it has them, into memory that is
// faulted in before, for about `time_max`. Throws what ReadJob throws.
[[nodiscard]] TrialRead trial_read(const std::filesystem::path& path, const ReadOptions& options,
                                   std::uint64_t first, std::uint64_t count,
                                   std::chrono::duration<double> time_max,
                                   const SystemCalls& calls = {});

}  // namespace brisk
