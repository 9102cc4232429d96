// Weights to devices: from files through a small ring of pinned memory, or from host memory. No
// Python in here.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "brisk/cancel_token.hpp"
#include "brisk/device.hpp"
#include "brisk/device_plan.hpp"
#include "brisk/read_job.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

inline constexpr unsigned kStreamsMax = 16;
inline constexpr std::size_t kHostBytesDefault = std::size_t{128} << 20;
inline constexpr std::size_t kHostBytesMin = 2 * kChunkBytes;

struct DeviceLoadOptions {
  // The most host memory that bytes pass through, from kHostBytesMin. Reads are made shorter and
  // fewer until half of it holds those in flight; the other half is being copied from meanwhile.
  std::size_t host_bytes = kHostBytesDefault;
  unsigned streams = 2;  // per device, 1 to kStreamsMax
  ReadOptions read = {};
  // Rising counts of pieces, and who is told of them: `watch` gets the bytes read so far and the
  // number of leading pieces that are on their device, as read_job.hpp has it for tasks.
  std::vector<std::size_t> milestones = {};
  Watch watch = {};
  const CancelToken* cancel = nullptr;
  SystemCalls calls = {};
};

struct DeviceLoad {
  std::uint64_t bytes_read = 0;    // whole chunks that pieces touch; 0 from host memory
  std::uint64_t bytes_copied = 0;  // the pieces
  std::uint64_t bytes_direct = 0;  // of bytes_read, past the page cache
  std::size_t host_bytes = 0;      // of the ring; 0 if it was not needed
  bool pinned = false;             // all copies were from pinned memory
  std::chrono::duration<double> elapsed{};
};

// One checksum per chunk of the file, or none for a file that is not to be verified.
using FileChecksums = std::optional<std::vector<std::uint32_t>>;

// Reads pieces of files into memory on devices, each device from its own thread and streams; a
// chunk is copied while the next ones are read, and verified before. On return all is there.
// However it ends, nothing of this call touches the memory any more, and all else it took is given
// back. Throws what ReadJob::run throws, DeviceError, std::bad_alloc, and std::invalid_argument for
// options and pieces out of their limits.
[[nodiscard]] DeviceLoad read_to_devices(const std::vector<std::filesystem::path>& paths,
                                         std::span<const FileChecksums> expected,
                                         std::span<const Piece> pieces,
                                         std::span<const SharedMemory> memory,
                                         const DeviceLoadOptions& options);

// The same from host memory, which must stay as it is meanwhile. Memory that is pinned, or can be
// for the time of the call, is copied from directly; all other through the ring.
[[nodiscard]] DeviceLoad copy_to_devices(std::span<const std::span<std::byte>> sources,
                                         std::span<const Piece> pieces,
                                         std::span<const SharedMemory> memory,
                                         const DeviceLoadOptions& options);

}  // namespace brisk
