// Reads all chunks of one file with a small fixed set of threads. No Python in here.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "brisk/cancel_token.hpp"
#include "brisk/chunk.hpp"
#include "brisk/direct_file.hpp"

namespace brisk {

// One chunk as it was read. The bytes are valid during the call that receives it.
struct Chunk {
  std::uint64_t index;
  std::uint64_t offset;  // in the file, in bytes
  std::span<const std::byte> bytes;
};

// Called on the waiting thread about every kWatchInterval, and once at the end of a successful
// job with the size of the file. May throw: that ends the job.
using Watch = std::function<void(std::uint64_t bytes_done)>;
inline constexpr std::chrono::milliseconds kWatchInterval{20};

// Reads the chunks in order of their offsets, each on one thread of a fixed set. The work list is
// a counter up to the file's number of chunks, so it needs no queue and cannot grow.
// The destructor stops after the chunks in hand and joins. Not movable.
class ChunkReader {
 public:
  // Where a chunk goes: room that meets DirectFile::read's demands for `wanted` bytes. `thread`
  // counts from 0; no two calls with one `thread` overlap.
  using Place = std::function<std::span<std::byte>(std::uint64_t offset, std::size_t wanted,
                                                   unsigned thread)>;
  // What happens to a chunk once it is read, on the thread that read it. May throw.
  using Consume = std::function<void(const Chunk&)>;

  // Starts to read with at most `threads` threads. `file` and `cancel` (may be null) must outlive
  // this object. Throws std::system_error if a thread cannot be started.
  ChunkReader(const DirectFile& file, unsigned threads, Place place, Consume consume,
              const CancelToken* cancel);
  ~ChunkReader();

  ChunkReader(const ChunkReader&) = delete;
  ChunkReader& operator=(const ChunkReader&) = delete;

  // Returns when every chunk was read and consumed. Throws what the first failing chunk threw,
  // what `watch` threw, or Cancelled if the token was raised before the last chunk was done.
  void wait(const Watch& watch);

  // Bytes of the chunks that are read and consumed.
  [[nodiscard]] std::uint64_t bytes_done() const;

 private:
  void start(unsigned threads);
  void stop_and_join() noexcept;
  void run(unsigned thread) noexcept;
  [[nodiscard]] bool take(std::uint64_t& index);
  void read_chunk(std::uint64_t index, unsigned thread);
  [[nodiscard]] bool is_cancelled() const noexcept { return cancel_ && cancel_->cancelled(); }

  const DirectFile& file_;
  const Place place_;
  const Consume consume_;
  const CancelToken* const cancel_;
  const std::uint64_t chunks_;

  mutable std::mutex mutex_;  // guards everything below but threads_
  std::condition_variable all_left_;
  std::uint64_t next_ = 0;
  std::uint64_t bytes_done_ = 0;
  std::size_t running_ = 0;
  bool stop_ = false;
  std::exception_ptr failure_;

  std::vector<std::thread> threads_;
};

}  // namespace brisk
