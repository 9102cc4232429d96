#include "brisk/pool_pieces.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "brisk/chunk.hpp"
#include "brisk/counters.hpp"
#include "brisk/crc32c.hpp"
#include "brisk/errors.hpp"
#include "brisk/huge_pages.hpp"
#include "regular_file.hpp"

namespace brisk {
namespace {

// Throws std::invalid_argument for what is no piece of a pool of `pool_bytes`, or if all together
// are smaller than a file of `size` bytes.
void check_pieces(std::span<const PoolPiece> pieces, std::uint64_t pool_bytes, std::uint64_t size) {
  std::uint64_t total = 0;
  for (const auto& [offset, bytes] : pieces) {
    if (offset % kChunkBytes != 0 || bytes % kChunkBytes != 0 || bytes == 0 ||
        offset > pool_bytes || bytes > pool_bytes - offset) {
      throw std::invalid_argument("the pool of " + std::to_string(pool_bytes) +
                                  " bytes has no piece of " + std::to_string(bytes) + " at " +
                                  std::to_string(offset));
    }
    total += bytes;
  }
  if (total < size) {
    throw std::invalid_argument("the pieces have " + std::to_string(total) + " bytes, the file " +
                                std::to_string(size));
  }
}

struct flock lock_of(const PoolPiece& piece, short type) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(piece.offset);
  lock.l_len = static_cast<off_t>(piece.size);
  return lock;
}

// Finds where the chunks of a file lie.
class Layout {
 public:
  Layout(std::span<std::byte> memory, std::span<const PoolPiece> pieces) : memory_(memory) {
    std::uint64_t begin = 0;
    for (const PoolPiece& piece : pieces) {
      parts_.push_back({.begin = begin, .piece = piece});
      begin += piece.size;
    }
  }

  // What follows `offset` of the file in the same piece.
  [[nodiscard]] std::span<std::byte> at(std::uint64_t offset) const {
    const auto next = std::upper_bound(
        parts_.begin(), parts_.end(), offset,
        [](std::uint64_t wanted, const Part& part) { return wanted < part.begin; });
    const Part& part = *std::prev(next);
    const std::uint64_t inside = offset - part.begin;
    return memory_.subspan(static_cast<std::size_t>(part.piece.offset + inside),
                           static_cast<std::size_t>(part.piece.size - inside));
  }

 private:
  struct Part {
    std::uint64_t begin;  // in the file
    PoolPiece piece;
  };
  std::span<std::byte> memory_;
  std::vector<Part> parts_;
};

// Reads of one chunk each: what is one piece of the file need not be one piece of the pool.
std::vector<ReadTask> make_tasks(const DirectFile& file, const FileToRead& source,
                                 const ReadPiecesOptions& options) {
  const std::uint64_t all = chunk_count(file.size());
  if (source.expected && source.expected->size() != all) {
    throw ChecksumMismatch(source.path, std::min<std::uint64_t>(all, source.expected->size()),
                           "the file has " + std::to_string(all) + " chunks, " +
                               std::to_string(source.expected->size()) + " checksums were given");
  }
  if (options.first_chunk > all || options.chunks > all - options.first_chunk) {
    throw std::invalid_argument("the file has " + std::to_string(all) + " chunks, not " +
                                std::to_string(options.chunks) + " from " +
                                std::to_string(options.first_chunk));
  }
  std::vector<ReadTask> tasks;
  for (std::uint64_t i = 0; i < options.chunks; ++i) {
    const std::uint64_t chunk = options.first_chunk + i;
    const std::uint64_t offset = chunk * kChunkBytes;
    const auto size =
        static_cast<std::size_t>(std::min<std::uint64_t>(kChunkBytes, file.size() - offset));
    ReadTask task{.file = 0, .offset = offset, .size = size};
    if (source.expected) task.expected = source.expected->subspan(chunk, 1);
    tasks.push_back(task);
  }
  return tasks;
}

}  // namespace

MappedPieces::MappedPieces(const std::filesystem::path& pool, std::span<const PoolPiece> pieces,
                           std::size_t size)
    : fd_(open_shared_memory(pool)), size_(size) {
  check_pieces(pieces, regular_file_size(fd_.get(), pool), size);
  std::size_t total = 0;
  for (const PoolPiece& piece : pieces) {
    struct flock lock = lock_of(piece, F_RDLCK);
    if (::fcntl(fd_.get(), F_OFD_SETLK, &lock) != 0) fail("fcntl", pool, errno);
    total += static_cast<std::size_t>(piece.size);
  }
  reserve(total);
  std::byte* place = data_;
  for (const PoolPiece& piece : pieces) {
    void* const mapped =
        ::mmap(place, static_cast<std::size_t>(piece.size), PROT_READ, MAP_SHARED | MAP_FIXED,
               fd_.get(), static_cast<off_t>(piece.offset));
    if (mapped == MAP_FAILED) {
      const int error = errno;
      ::munmap(reserved_, reserved_bytes_);
      fail("mmap", pool, error);
    }
    place += piece.size;
  }
  ::madvise(data_, total, MADV_HUGEPAGE);  // a wish, which most kernels deny to memfds
}

void MappedPieces::reserve(std::size_t size) {
  reserved_bytes_ = size + kHugePageBytes;
  reserved_ = ::mmap(nullptr, reserved_bytes_, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved_ == MAP_FAILED) throw std::bad_alloc();
  const auto start = reinterpret_cast<std::uintptr_t>(reserved_);
  data_ = reinterpret_cast<std::byte*>(align_up(start, kHugePageBytes));
}

MappedPieces::~MappedPieces() { ::munmap(reserved_, reserved_bytes_); }

bool in_use(const Pool& pool, std::span<const PoolPiece> pieces) {
  check_pieces(pieces, pool.size(), 0);
  const int fd = pool.fd();
  if (fd < 0) return false;  // private: nobody else can have it
  for (const PoolPiece& piece : pieces) {
    struct flock lock = lock_of(piece, F_WRLCK);
    if (::fcntl(fd, F_OFD_GETLK, &lock) != 0) fail("fcntl", "pool", errno);
    if (lock.l_type != F_UNLCK) return true;
  }
  return false;
}

PiecesRead read_pieces(const FileToRead& source, const Pool& pool,
                       std::span<const PoolPiece> pieces, const ReadPiecesOptions& options) {
  ReadOptions how = options.read;
  how.read_bytes = kChunkBytes;
  check(how);
  const std::vector<DirectFile> files = [&] {
    std::vector<DirectFile> opened;
    opened.emplace_back(source.path, options.calls);
    return opened;
  }();
  const DirectFile& file = files.front();
  std::vector<ReadTask> tasks = make_tasks(file, source, options);
  check_pieces(pieces, pool.size(), file.size());
  const auto memory = pool.whole();
  const Layout layout(memory->bytes(), pieces);
  ReadSink sink{.place =
                    [&layout](const ReadTask& task, std::size_t) {
                      return layout.at(task.offset).first(align_up(task.size, kDirectAlignment));
                    },
                .consume = [](const ReadTask&, std::size_t, auto) { return true; }};
  ReadJob job(files, std::move(tasks), how, std::move(sink), {}, options.cancel, options.calls);
  job.run([&options](std::uint64_t bytes, std::size_t) {
    if (options.watch) options.watch(bytes);
  });
  return {.bytes = job.bytes_done(), .direct = file.direct(), .engine = job.engine()};
}

std::vector<std::uint32_t> checksum_pieces(const Pool& pool, std::span<const PoolPiece> pieces,
                                           std::size_t size, const CancelToken* cancel) {
  check_pieces(pieces, pool.size(), size);
  const auto memory = pool.whole();
  const Layout layout(memory->bytes(), pieces);
  std::vector<std::uint32_t> checksums;
  for (std::size_t offset = 0; offset < size; offset += kChunkBytes) {
    if (cancel != nullptr && cancel->cancelled()) throw Cancelled(offset);
    checksums.push_back(crc32c(layout.at(offset).first(std::min(kChunkBytes, size - offset))));
  }
  return checksums;
}

}  // namespace brisk
