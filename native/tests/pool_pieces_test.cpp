// The promise of pieces: a file in scattered chunks reads as one, verified, read-only for others;
// and the owner always knows what someone still has mapped.
#include "brisk/pool_pieces.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "brisk/crc32c.hpp"
#include "brisk/errors.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::kChunkBytes;
using brisk::MappedPieces;
using brisk::Pool;
using brisk::PoolKind;
using brisk::PoolPiece;

constexpr std::size_t kFileBytes = 2 * kChunkBytes + 4099;

std::shared_ptr<Pool> a_pool(std::size_t chunks = 8) {
  return std::make_shared<Pool>(chunks * kChunkBytes,
                                brisk::PoolOptions{.kind = PoolKind::kSmall, .populate = false});
}

PoolPiece piece(std::uint64_t chunk, std::uint64_t count = 1) {
  return {.offset = chunk * kChunkBytes, .size = count * kChunkBytes};
}

// The file's chunks lie backwards.
std::vector<PoolPiece> scattered() { return {piece(6), piece(3), piece(1)}; }

std::vector<std::uint32_t> checksums_of(std::span<const std::byte> bytes) {
  std::vector<std::uint32_t> found;
  for (std::size_t at = 0; at < bytes.size(); at += kChunkBytes) {
    found.push_back(brisk::crc32c(bytes.subspan(at, std::min(kChunkBytes, bytes.size() - at))));
  }
  return found;
}

void read_all(const std::filesystem::path& path, const Pool& pool,
              std::span<const PoolPiece> pieces, std::span<const std::uint32_t> expected) {
  const brisk::FileToRead source{.path = path, .expected = expected};
  const auto read = brisk::read_pieces(source, pool, pieces, {.first_chunk = 0, .chunks = 3});
  CHECK(read.bytes == kFileBytes);
}

}  // namespace

TEST("a file in scattered chunks is one range to others, and none of it can be written to") {
  const scratch::Folder folder;
  const auto content = scratch::noise(kFileBytes);
  scratch::write(folder / "f", content);
  const auto pool = a_pool();
  const auto pieces = scattered();
  read_all(folder / "f", *pool, pieces, checksums_of(content));
  const MappedPieces mapped(*pool->path(), pieces, kFileBytes);
  CHECK(scratch::equal(mapped.bytes(), content));
  CHECK(reinterpret_cast<std::uintptr_t>(mapped.bytes().data()) % (std::size_t{2} << 20) == 0);
  // A pipe reads into it for us: the kernel answers EFAULT where writing would be a fault.
  int ends[2];
  CHECK(::pipe(ends) == 0);
  CHECK(::write(ends[1], "x", 1) == 1);
  CHECK(::read(ends[0], mapped.bytes().data(), 1) == -1 && errno == EFAULT);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST("a part of a file goes to its place and nowhere else") {
  const scratch::Folder folder;
  const auto content = scratch::noise(kFileBytes);
  scratch::write(folder / "f", content);
  const auto pool = a_pool();
  const auto memory = pool->whole()->bytes();
  std::memset(memory.data(), 7, memory.size());
  const auto sums = checksums_of(content);
  const brisk::FileToRead source{.path = folder / "f", .expected = sums};
  const auto pieces = scattered();
  const auto read = brisk::read_pieces(source, *pool, pieces, {.first_chunk = 1, .chunks = 1});
  CHECK(read.bytes == kChunkBytes);
  CHECK(std::memcmp(memory.data() + 3 * kChunkBytes, content.data() + kChunkBytes, kChunkBytes) ==
        0);
  for (const std::size_t other : {0U, 1U, 2U, 4U, 5U, 6U, 7U}) {
    CHECK(memory[other * kChunkBytes] == std::byte{7});
    CHECK(memory[(other + 1) * kChunkBytes - 1] == std::byte{7});
  }
  CHECK_THROWS(std::invalid_argument,
               brisk::read_pieces(source, *pool, pieces, {.first_chunk = 2, .chunks = 2}));
}

TEST("damage is told while reading, and found in memory afterwards") {
  const scratch::Folder folder;
  const auto content = scratch::noise(kFileBytes);
  scratch::write(folder / "f", content);
  const auto pool = a_pool();
  const auto pieces = scattered();
  auto sums = checksums_of(content);
  read_all(folder / "f", *pool, pieces, sums);
  CHECK(brisk::checksum_pieces(*pool, pieces, kFileBytes, nullptr) == sums);
  pool->whole()->bytes()[3 * kChunkBytes + 17] ^= std::byte{1};
  const auto found = brisk::checksum_pieces(*pool, pieces, kFileBytes, nullptr);
  CHECK(found[0] == sums[0] && found[1] != sums[1] && found[2] == sums[2]);
  sums[2] ^= 1;
  const brisk::FileToRead source{.path = folder / "f", .expected = sums};
  CHECK_THROWS(brisk::ChecksumMismatch,
               brisk::read_pieces(source, *pool, pieces, {.first_chunk = 0, .chunks = 3}));
}

TEST("what is mapped is in use until the mapping goes, and nothing else is") {
  const auto pool = a_pool();
  const std::vector<PoolPiece> mine = {piece(1), piece(4, 2)};
  CHECK(!brisk::in_use(*pool, mine));
  {
    const MappedPieces first(*pool->path(), mine, kFileBytes);
    auto second = std::make_unique<MappedPieces>(*pool->path(), mine, kFileBytes);
    for (const std::uint64_t chunk : {1U, 4U, 5U}) {
      const PoolPiece one = piece(chunk);
      CHECK(brisk::in_use(*pool, {&one, 1}));
    }
    for (const std::uint64_t chunk : {0U, 2U, 3U, 6U, 7U}) {
      const PoolPiece one = piece(chunk);
      CHECK(!brisk::in_use(*pool, {&one, 1}));
    }
    second.reset();
    CHECK(brisk::in_use(*pool, mine));
  }
  CHECK(!brisk::in_use(*pool, mine));
}

TEST("a process that dies has nothing in use any more") {
  const auto pool = a_pool();
  const std::vector<PoolPiece> mine = {piece(2)};
  int ready[2];
  CHECK(::pipe(ready) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const MappedPieces mapped(*pool->path(), mine, 5);
    static_cast<void>(!::write(ready[1], "r", 1));
    ::pause();
    ::_exit(0);
  }
  char said = 0;
  CHECK(::read(ready[0], &said, 1) == 1);
  CHECK(brisk::in_use(*pool, mine));
  ::kill(child, SIGKILL);
  CHECK(::waitpid(child, nullptr, 0) == child);
  CHECK(!brisk::in_use(*pool, mine));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST("whoever takes up a pool finds its bytes and what is in use") {
  const std::vector<PoolPiece> mine = {piece(2)};
  std::unique_ptr<MappedPieces> mapped;
  std::filesystem::path path;
  {
    const auto pool = a_pool();
    pool->whole()->bytes()[2 * kChunkBytes] = std::byte{9};
    mapped = std::make_unique<MappedPieces>(*pool->path(), mine, 5);
    path = "/proc/self/fd/" + std::to_string(::dup(pool->fd()));
  }
  const auto adopted = Pool::adopt(path);
  CHECK(adopted->size() == 8 * kChunkBytes);
  CHECK(adopted->whole()->bytes()[2 * kChunkBytes] == std::byte{9});
  CHECK(brisk::in_use(*adopted, mine));
  adopted->whole()->bytes()[2 * kChunkBytes] = std::byte{10};
  CHECK(mapped->bytes()[0] == std::byte{10});
}

TEST("pieces that are none of the pool are refused") {
  const auto pool = a_pool(2);
  const auto refused = [&](const PoolPiece& one, std::size_t size) {
    CHECK_THROWS(std::invalid_argument, MappedPieces(*pool->path(), {&one, 1}, size));
  };
  refused({.offset = 1, .size = kChunkBytes}, 1);
  refused({.offset = 0, .size = kChunkBytes - 1}, 1);
  refused({.offset = 0, .size = 0}, 0);
  refused({.offset = 2 * kChunkBytes, .size = kChunkBytes}, 1);
  refused({.offset = kChunkBytes, .size = 2 * kChunkBytes}, 1);
  refused({.offset = kChunkBytes, .size = UINT64_MAX - kChunkBytes + 1}, 1);
  refused({.offset = 0, .size = kChunkBytes}, kChunkBytes + 1);
  const Pool attached(*pool->path());
  CHECK_THROWS(std::invalid_argument, attached.whole());
}
