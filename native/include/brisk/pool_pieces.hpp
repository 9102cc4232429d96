// A pool that its owner cuts into chunks: files that lie in it in pieces, wherever there is room,
// and that other processes see as if each lay in one. No Python in here.
//
// Who maps pieces holds a lock for reading on them, in the kernel, for as long as the mapping
// lasts. So the owner of the pool, or one that takes it up after a crash, knows what must not be
// overwritten without asking anyone, and a process that dies holds nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <vector>

#include "brisk/cancel_token.hpp"
#include "brisk/file_descriptor.hpp"
#include "brisk/pool.hpp"
#include "brisk/read_files.hpp"
#include "brisk/read_plan.hpp"
#include "brisk/system_calls.hpp"

namespace brisk {

// Some chunks of a pool, side by side. Both are multiples of kChunkBytes.
struct PoolPiece {
  std::uint64_t offset;
  std::uint64_t size;
};

// The bytes of one file, mapped read-only from the pieces of another process's pool that it lies
// in. Not movable; freeing never throws.
class MappedPieces {
 public:
  // `pieces` hold the file of `size` bytes one after another. Throws filesystem_error, EINVAL for
  // what is no pool, and std::invalid_argument for pieces that are none of it or too few.
  MappedPieces(const std::filesystem::path& pool, std::span<const PoolPiece> pieces,
               std::size_t size);
  ~MappedPieces();

  MappedPieces(const MappedPieces&) = delete;
  MappedPieces& operator=(const MappedPieces&) = delete;

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {data_, size_}; }

 private:
  void reserve(std::size_t size);

  FileDescriptor fd_;         // holds the locks
  void* reserved_ = nullptr;  // all of the address space that is ours
  std::size_t reserved_bytes_ = 0;
  std::byte* data_ = nullptr;  // on a boundary of 2 MiB
  std::size_t size_;
};

// Whether any process has one of these bytes mapped by MappedPieces. Throws filesystem_error, and
// std::invalid_argument as MappedPieces does.
[[nodiscard]] bool in_use(const Pool& pool, std::span<const PoolPiece> pieces);

struct ReadPiecesOptions {
  ReadOptions read = {};
  std::uint64_t first_chunk = 0;
  std::uint64_t chunks = 0;
  std::function<void(std::uint64_t bytes_done)> watch = {};  // as Watch
  const CancelToken* cancel = nullptr;
  SystemCalls calls = {};
};

struct PiecesRead {
  std::uint64_t bytes = 0;
  bool direct = false;
  Engine engine = Engine::kPread;
};

// Reads `chunks` chunks of a file to where they belong in its pieces, verified. Throws what
// read_files throws, and std::invalid_argument if the file does not fit the pieces.
[[nodiscard]] PiecesRead read_pieces(const FileToRead& source, const Pool& pool,
                                     std::span<const PoolPiece> pieces,
                                     const ReadPiecesOptions& options);

// Returns the CRC32C of each chunk of the file of `size` bytes that lies in these pieces. Throws
// Cancelled and std::invalid_argument.
[[nodiscard]] std::vector<std::uint32_t> checksum_pieces(const Pool& pool,
                                                         std::span<const PoolPiece> pieces,
                                                         std::size_t size,
                                                         const CancelToken* cancel);

}  // namespace brisk
