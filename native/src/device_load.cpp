#include "brisk/device_load.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "brisk/direct_file.hpp"
#include "brisk/errors.hpp"
#include "brisk/pin_lease.hpp"
#include "brisk/staging_ring.hpp"
#include "device_fan_out.hpp"
#include "landing_log.hpp"

namespace brisk {
namespace {

using Clock = std::chrono::steady_clock;

void check(const DeviceLoadOptions& options) {
  check(options.read);
  if (options.streams < 1 || options.streams > kStreamsMax) {
    throw std::invalid_argument("streams must be between 1 and " + std::to_string(kStreamsMax) +
                                ", not " + std::to_string(options.streams));
  }
  if (options.host_bytes < kHostBytesMin) {
    throw std::invalid_argument("host_bytes must be at least " + std::to_string(kHostBytesMin) +
                                ", not " + std::to_string(options.host_bytes));
  }
}

// Makes the reads shorter and fewer until those in flight take half of `host_bytes` at most.
ReadOptions fit(ReadOptions read, std::size_t host_bytes) {
  const auto fits = [&] { return reads_in_flight_max(read) * read.read_bytes <= host_bytes / 2; };
  while (!fits() && read.read_bytes > kChunkBytes) read.read_bytes -= kChunkBytes;
  while (!fits() && read.engine == Engine::kUring && read.depth > 1) --read.depth;
  while (!fits() && read.threads > 1) --read.threads;
  return read;
}

std::vector<DirectFile> open_all(const std::vector<std::filesystem::path>& paths,
                                 const SystemCalls& calls) {
  std::vector<DirectFile> files;
  files.reserve(paths.size());
  for (const auto& path : paths) files.emplace_back(path, calls);
  return files;
}

// Gives each task the checksums of its chunks.
void add_checksums(DevicePlan& plan, std::span<const DirectFile> files,
                   std::span<const FileChecksums> expected) {
  if (expected.size() != files.size()) {
    throw std::invalid_argument(std::to_string(files.size()) + " files have " +
                                std::to_string(expected.size()) + " lists of checksums");
  }
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::uint64_t chunks = chunk_count(files[i].size());
    if (!expected[i] || expected[i]->size() == chunks) continue;
    throw ChecksumMismatch(files[i].path(), std::min<std::uint64_t>(chunks, expected[i]->size()),
                           "the file has " + std::to_string(chunks) + " chunks, " +
                               std::to_string(expected[i]->size()) + " checksums were given");
  }
  for (PlannedTask& task : plan.tasks) {
    const FileChecksums& checksums = expected[task.read.file];
    if (!checksums) continue;
    task.read.expected =
        std::span(*checksums).subspan(task.read.offset / kChunkBytes, task.read.chunks());
  }
}

std::vector<std::uint64_t> sizes_of(std::span<const SharedMemory> memory) {
  std::vector<std::uint64_t> sizes;
  for (const SharedMemory& one : memory) sizes.push_back(one->size());
  return sizes;
}

std::vector<ReadTask> reads_of(const DevicePlan& plan) {
  std::vector<ReadTask> reads;
  reads.reserve(plan.tasks.size());
  for (const PlannedTask& task : plan.tasks) reads.push_back(task.read);
  return reads;
}

// Tells bytes and pieces that are on their devices, where a job counts bytes and tasks read.
class PieceCount {
 public:
  explicit PieceCount(const DevicePlan& plan) : plan_(plan) {}

  void add(std::size_t task) {
    std::uint64_t bytes = 0;
    for (const PlannedPart& part : plan_.tasks[task].parts) bytes += part.size;
    bytes_.fetch_add(bytes, std::memory_order_relaxed);
  }
  [[nodiscard]] Watch watch_with(const Watch& watch) const {
    if (!watch) return {};
    return [this, &watch](std::uint64_t, std::size_t tasks) {
      watch(bytes_.load(std::memory_order_relaxed), plan_.pieces_done(tasks));
    };
  }

 private:
  const DevicePlan& plan_;
  std::atomic<std::uint64_t> bytes_{0};
};

// A ring that is no larger than there is use for: a small model shall not pin memory for a large
// one.
void make_ring(std::optional<StagingRing>& ring, const DevicePlan& plan,
               const SharedContext& context, std::size_t read_bytes,
               const DeviceLoadOptions& options, DeviceLoad& load) {
  const std::size_t slots =
      std::clamp<std::size_t>(plan.tasks.size(), 1, options.host_bytes / read_bytes);
  ring.emplace(context, read_bytes, slots);
  load.host_bytes = ring->size_bytes();
  load.pinned = ring->pinned();
}

// Reads the files through the ring; returns when all tasks are on their devices.
void run_reads(const DevicePlan& plan, std::span<const DirectFile> files,
               std::span<const SharedMemory> memory, const ReadOptions& read,
               const DeviceLoadOptions& options, DeviceLoad& load) {
  PieceCount count(plan);
  std::optional<StagingRing> ring;
  if (!plan.tasks.empty())
    make_ring(ring, plan, memory.front()->context(), read.read_bytes, options, load);
  std::vector<std::size_t> slot_of(plan.tasks.size());
  DeviceFanOut* devices = nullptr;
  ReadSink sink{.place =
                    [&](const ReadTask& task, std::size_t index) {
                      const auto slot = ring->take();
                      if (!slot) throw std::runtime_error("the copies to the devices failed");
                      slot_of[index] = *slot;
                      return ring->bytes(*slot).first(align_up(task.size, kDirectAlignment));
                    },
                .consume =
                    [&](const ReadTask&, std::size_t index, std::span<const std::byte> bytes) {
                      devices->send(index, bytes.data());
                      return false;
                    }};
  ReadJob job(files, reads_of(plan), read, std::move(sink), plan.milestones(options.milestones),
              options.cancel);
  const auto landed = [&](std::size_t task) {
    ring->give(slot_of[task]);
    count.add(task);
    job.complete(task);
  };
  const auto failed = [&](std::exception_ptr error) {
    job.fail(std::move(error));  // before `place` fails for want of a slot
    ring->close();
  };
  // Made last, so that its threads are gone before what they use.
  DeviceFanOut fan_out(plan, memory, options.streams, landed, failed);
  devices = &fan_out;
  job.run(count.watch_with(options.watch));
}

// By source: what keeps it pinned for the time of the call; null if it cannot be.
std::vector<std::unique_ptr<PinLease>> pin(std::span<const std::span<std::byte>> sources,
                                           const DevicePlan& plan, const SharedContext& context) {
  std::vector<char> wanted(sources.size(), 0);
  for (const PlannedTask& task : plan.tasks) wanted[task.read.file] = 1;
  std::vector<std::unique_ptr<PinLease>> leases(sources.size());
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (wanted[i] == 0) continue;
    try {
      leases[i] = std::make_unique<PinLease>(context, sources[i]);
    } catch (const DeviceError&) {
      // Read-only, not allowed, or part of it is pinned already: it goes through the ring.
    }
  }
  return leases;
}

// Copies what the task wants of the source to the same places of a slot.
void stage(const PlannedTask& task, const std::byte* source, std::span<std::byte> slot) {
  for (const PlannedPart& part : task.parts) {
    std::memcpy(slot.data() + part.task_offset, source + part.task_offset, part.size);
  }
}

// Copies from the sources, or through the ring; returns when all tasks are on their devices.
void run_copies(const DevicePlan& plan, std::span<const std::span<std::byte>> sources,
                std::span<const SharedMemory> memory, const ReadOptions& read,
                const DeviceLoadOptions& options, DeviceLoad& load) {
  PieceCount count(plan);
  LandingLog log(plan.tasks.size(), plan.milestones(options.milestones),
                 count.watch_with(options.watch), options.cancel);
  log.begin();
  if (plan.tasks.empty()) return log.await_all();
  const auto leases = pin(sources, plan, memory.front()->context());
  const auto is_direct = [&](const PlannedTask& task) { return leases[task.read.file] != nullptr; };
  std::optional<StagingRing> ring;
  load.pinned = true;
  if (!std::all_of(plan.tasks.begin(), plan.tasks.end(), is_direct)) {
    make_ring(ring, plan, memory.front()->context(), read.read_bytes, options, load);
  }
  std::vector<std::optional<std::size_t>> slot_of(plan.tasks.size());
  const auto landed = [&](std::size_t task) {
    if (slot_of[task]) ring->give(*slot_of[task]);
    count.add(task);
    log.note(task);
  };
  const auto failed = [&](std::exception_ptr error) {
    log.fail(std::move(error));
    if (ring) ring->close();
  };
  DeviceFanOut devices(plan, memory, options.streams, landed, failed);
  for (std::size_t index = 0; index < plan.tasks.size(); ++index) {
    const PlannedTask& task = plan.tasks[index];
    const std::byte* bytes = sources[task.read.file].data() + task.read.offset;
    log.look();
    if (!is_direct(task)) {
      slot_of[index] = ring->take();
      if (!slot_of[index]) break;  // the log knows why
      const std::span<std::byte> slot = ring->bytes(*slot_of[index]);
      stage(task, bytes, slot);
      bytes = slot.data();
    }
    devices.send(index, bytes);
  }
  log.await_all();
}

}  // namespace

DeviceLoad read_to_devices(const std::vector<std::filesystem::path>& paths,
                           std::span<const FileChecksums> expected, std::span<const Piece> pieces,
                           std::span<const SharedMemory> memory, const DeviceLoadOptions& options) {
  check(options);
  const auto begin = Clock::now();
  const ReadOptions read = fit(options.read, options.host_bytes);
  const std::vector<DirectFile> files = open_all(paths, options.calls);
  std::vector<std::uint64_t> sizes;
  for (const DirectFile& file : files) sizes.push_back(file.size());
  DevicePlan plan = plan_for_devices(pieces, sizes, sizes_of(memory), read.read_bytes);
  add_checksums(plan, files, expected);
  DeviceLoad load{.bytes_copied = plan.piece_bytes};
  for (const PlannedTask& task : plan.tasks) {
    load.bytes_read += task.read.size;
    if (files[task.read.file].direct()) load.bytes_direct += task.read.size;
  }
  run_reads(plan, files, memory, read, options, load);
  load.elapsed = Clock::now() - begin;
  return load;
}

DeviceLoad copy_to_devices(std::span<const std::span<std::byte>> sources,
                           std::span<const Piece> pieces, std::span<const SharedMemory> memory,
                           const DeviceLoadOptions& options) {
  check(options);
  const auto begin = Clock::now();
  const ReadOptions read = fit(options.read, options.host_bytes);
  std::vector<std::uint64_t> sizes;
  for (const auto& source : sources) sizes.push_back(source.size());
  const DevicePlan plan = plan_for_devices(pieces, sizes, sizes_of(memory), read.read_bytes);
  DeviceLoad load{.bytes_copied = plan.piece_bytes};
  run_copies(plan, sources, memory, read, options, load);
  load.elapsed = Clock::now() - begin;
  return load;
}

}  // namespace brisk
