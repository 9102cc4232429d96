#include "brisk/trial_read.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "brisk/cancel_token.hpp"
#include "brisk/direct_file.hpp"
#include "brisk/errors.hpp"
#include "brisk/populate.hpp"
#include "brisk/read_job.hpp"
#include "rooms.hpp"

namespace brisk {
namespace {

std::vector<ReadTask> tasks_of(const DirectFile& file, std::size_t read_bytes, std::uint64_t first,
                               std::uint64_t count) {
  std::vector<ReadTask> all;
  append_whole_file(all, 0, file.size(), read_bytes);
  std::vector<ReadTask> tasks;
  for (const ReadTask& task : all) {
    const std::uint64_t chunk = task.offset / kChunkBytes;
    if (chunk >= first && chunk - first < count) tasks.push_back(task);
  }
  return tasks;
}

}  // namespace

TrialRead trial_read(const std::filesystem::path& path, const ReadOptions& options,
                     std::uint64_t first, std::uint64_t count,
                     std::chrono::duration<double> time_max, const SystemCalls& calls) {
  using Clock = std::chrono::steady_clock;
  check(options);
  const DirectFile file(path, calls);
  Rooms rooms(reads_in_flight_max(options), options.read_bytes);
  {
    const BackgroundPopulate populate({rooms.all()});
    static_cast<void>(populate.wait(std::chrono::seconds(10)));
  }
  ReadSink sink{
      .place = [&rooms](const ReadTask& task, std::size_t) { return rooms.take(task.size); },
      .consume =
          [&rooms](const ReadTask&, std::size_t, std::span<const std::byte> bytes) {
            rooms.give_back(bytes);
            return true;
          }};
  CancelToken time_is_up;
  ReadJob job({&file, 1}, tasks_of(file, options.read_bytes, first, count), options,
              std::move(sink), {}, &time_is_up, calls);
  const auto begin = Clock::now();
  try {
    job.run([&](std::uint64_t, std::size_t) {
      if (Clock::now() - begin >= time_max) time_is_up.cancel();
    });
  } catch (const Cancelled&) {
    // As intended: what was read until then counts.
  }
  return {.bytes = job.bytes_done(),
          .elapsed = Clock::now() - begin,
          .engine = job.engine(),
          .direct = file.direct()};
}

}  // namespace brisk
