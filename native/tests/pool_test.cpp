// Pool's promise: pieces that do not overlap, come back when their last view goes, and outlive
// the pool; memory of the kind that was asked for, or a reason.
#include "brisk/pool.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "brisk/huge_pages.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::Pool;
using brisk::PoolKind;
using brisk::PoolRegion;

using Region = std::shared_ptr<PoolRegion>;

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::chrono::seconds kLong{60};

// The kinds that can be had here, each with a small pool of 16 MiB.
std::vector<std::unique_ptr<Pool>> pools() {
  std::vector<std::unique_ptr<Pool>> made;
  for (const PoolKind kind :
       {PoolKind::kHugetlb, PoolKind::kTmpfs, PoolKind::kPrivate, PoolKind::kSmall}) {
    try {
      made.push_back(std::make_unique<Pool>(16 * kMiB - 5, brisk::PoolOptions{.kind = kind}));
    } catch (const std::system_error& error) {
      std::printf("pool kind %d cannot be had here: %s\n", static_cast<int>(kind), error.what());
      CHECK(kind == PoolKind::kHugetlb || kind == PoolKind::kTmpfs);
    }
  }
  return made;
}

brisk::PoolOptions small() { return {.kind = PoolKind::kSmall, .populate = false}; }

int error_of_attach(const std::filesystem::path& path) {
  try {
    const Pool pool(path);
  } catch (const std::filesystem::filesystem_error& error) {
    return error.code().value();
  }
  return 0;
}

}  // namespace

TEST("every kind that can be had gives whole pages, all faulted in, and says where they are") {
  for (const auto& pool : pools()) {
    CHECK(pool->size() == 16 * kMiB);
    CHECK(pool->free_bytes() == 16 * kMiB);
    CHECK(pool->wait_populated(kLong));
    CHECK(pool->populated() == 16 * kMiB);
    CHECK(pool->path().has_value() == (pool->kind() != PoolKind::kPrivate));
    const Region region = pool->allocate(5 * kMiB);
    std::memset(region->room().data(), 7, region->room().size());
    CHECK(reinterpret_cast<std::uintptr_t>(region->bytes().data()) % (2 * kMiB) == 0);
    if (pool->kind() == PoolKind::kHugetlb) CHECK(pool->in_huge_pages());
    if (pool->kind() == PoolKind::kSmall) {
      std::printf("a memfd has huge pages here: %s\n", pool->in_huge_pages() ? "yes" : "no");
    }
  }
}

TEST("what was found of a pool that is faulted in is remembered") {
  Pool pool(16 * kMiB, {.kind = PoolKind::kPrivate});
  CHECK(pool.wait_populated(kLong));
  const bool is_huge = pool.in_huge_pages();
  if (!is_huge) std::printf("not checked: no huge pages here\n");
  const Region region = pool.allocate(16 * kMiB);
  CHECK(::madvise(region->room().data(), region->room().size(), MADV_DONTNEED) == 0);
  CHECK((brisk::huge_page_bytes_in(region->room()) == 0));
  CHECK(pool.in_huge_pages() == is_huge);  // looking would tell otherwise
}

TEST("auto takes the first kind that can be had and says why not the ones before") {
  const Pool pool(4 * kMiB, {});
  CHECK(pool.kind().has_value());
  CHECK(pool.refusals().size() == static_cast<std::size_t>(*pool.kind()));
  for (std::size_t i = 0; i < pool.refusals().size(); ++i) {
    CHECK(static_cast<std::size_t>(pool.refusals()[i].first) == i);
    CHECK(pool.refusals()[i].second.value() != 0);
  }
}

TEST("memory that cannot be had is the kernel's errno") {
  const scratch::Folder folder;
  const auto refused = [](std::size_t size, const brisk::PoolOptions& options) {
    try {
      const Pool pool(size, options);
    } catch (const std::system_error& error) {
      return error.code().value();
    }
    return 0;
  };
  CHECK(refused(std::size_t{1} << 45, {.kind = PoolKind::kHugetlb}) != 0);
  CHECK(refused(kMiB, {.kind = PoolKind::kTmpfs, .folder = folder / ""}) == EINVAL);
  CHECK(refused(kMiB, {.kind = PoolKind::kTmpfs, .folder = folder / "missing"}) == ENOENT);
  CHECK_THROWS(std::invalid_argument, Pool(0, {}));
  CHECK_THROWS(std::bad_alloc, Pool(SIZE_MAX, small()));
}

TEST("pieces are the first that fit, on boundaries of 2 MiB, and come back") {
  Pool pool(16 * kMiB, small());
  Region first = pool.allocate(1);
  Region second = pool.allocate(4 * kMiB + 1);
  Region third = pool.allocate(2 * kMiB);
  CHECK(first->offset() == 0 && second->offset() == 2 * kMiB && third->offset() == 8 * kMiB);
  CHECK(first->bytes().size() == 1 && first->room().size() == 4096);
  CHECK(pool.free_bytes() == 6 * kMiB);
  second.reset();
  CHECK(pool.free_bytes() == 12 * kMiB);
  const Region fits = pool.allocate(6 * kMiB);
  CHECK(fits->offset() == 2 * kMiB);
  const Region empty = pool.allocate(0);
  CHECK(empty->bytes().empty() && empty->room().size() == 4096 && empty->offset() == 10 * kMiB);
}

TEST("a full pool says what was needed, what is free and the largest piece") {
  Pool pool(16 * kMiB, small());
  std::vector<Region> all;
  for (int i = 0; i < 8; ++i) all.push_back(pool.allocate(2 * kMiB));
  all[1].reset();
  all[5].reset();
  all[6].reset();
  for (const auto& [needed, said] : {std::pair{5 * kMiB, 6 * kMiB}, {17 * kMiB, 18 * kMiB}}) {
    try {
      static_cast<void>(pool.allocate(needed));
      CHECK(false);
    } catch (const brisk::PoolFull& error) {
      CHECK(error.needed_bytes() == said && error.free_bytes() == 6 * kMiB);
      CHECK(error.largest_bytes() == 4 * kMiB);
    }
  }
  CHECK(pool.allocate(4 * kMiB)->offset() == 10 * kMiB);
  CHECK(pool.free_bytes() == 6 * kMiB);
}

TEST("pieces of any sequence never overlap, and all of them come back") {
  Pool pool(64 * kMiB, small());
  std::minstd_rand random(7);
  std::vector<Region> held;
  for (int step = 0; step < 2000; ++step) {
    if (random() % 2 == 0 && !held.empty()) {
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(random() % held.size()));
    } else {
      try {
        held.push_back(pool.allocate(1 + random() % (9 * kMiB)));
      } catch (const brisk::PoolFull&) {
        CHECK(!held.empty());
      }
    }
    std::size_t used = 0;
    for (const Region& a : held) {
      used += (a->bytes().size() + 2 * kMiB - 1) / (2 * kMiB) * (2 * kMiB);
      for (const Region& b : held) {
        const bool apart = a->offset() + a->bytes().size() <= b->offset() ||
                           b->offset() + b->bytes().size() <= a->offset();
        if (a != b && !apart) CHECK(apart);
      }
    }
    if (pool.free_bytes() != 64 * kMiB - used) CHECK(pool.free_bytes() == 64 * kMiB - used);
  }
  held.clear();
  CHECK(pool.free_bytes() == 64 * kMiB);
  CHECK(pool.allocate(64 * kMiB)->offset() == 0);
}

TEST("a piece lives as long as any view of it, also when the pool is closed and gone") {
  auto pool = std::make_unique<Pool>(8 * kMiB, brisk::PoolOptions{.kind = PoolKind::kPrivate});
  Region region = pool->allocate(3 * kMiB);
  Region part = pool->view(kMiB, kMiB);
  CHECK(part->bytes().data() == region->bytes().data() + kMiB);
  region->bytes()[kMiB] = std::byte{9};
  region.reset();
  CHECK(pool->free_bytes() == 4 * kMiB);
  pool->close();
  CHECK(pool->is_closed());
  CHECK_THROWS(std::invalid_argument, pool->allocate(1));
  CHECK_THROWS(std::invalid_argument, pool->view(0, 1));
  CHECK_THROWS(std::invalid_argument, pool->free_bytes());
  pool->close();
  pool.reset();
  CHECK(part->bytes()[0] == std::byte{9});
}

TEST("a view must lie in one piece that is in use") {
  Pool pool(16 * kMiB, small());
  const Region first = pool.allocate(2 * kMiB);
  const Region second = pool.allocate(2 * kMiB);
  CHECK(pool.view(2 * kMiB + 5, 7)->bytes().data() == second->bytes().data() + 5);
  CHECK_THROWS(std::invalid_argument, pool.view(kMiB, 2 * kMiB));
  CHECK_THROWS(std::invalid_argument, pool.view(4 * kMiB, 1));
  CHECK_THROWS(std::invalid_argument, pool.view(15 * kMiB, 2 * kMiB));
  CHECK_THROWS(std::invalid_argument, pool.view(SIZE_MAX, 2));
  CHECK_THROWS(std::invalid_argument, pool.view(2, SIZE_MAX));
}

TEST("another process attaches and sees the bytes, but writes none and allocates none") {
  for (const auto& pool : pools()) {
    if (!pool->path()) continue;
    const Region region = pool->allocate(3 * kMiB);
    const auto content = scratch::noise(3 * kMiB);
    std::memcpy(region->bytes().data(), content.data(), content.size());
    Pool attached(*pool->path());
    CHECK(!attached.kind() && attached.size() == pool->size() && attached.free_bytes() == 0);
    const Region seen = attached.view(region->offset(), content.size());
    CHECK(scratch::equal(seen->bytes(), content));
    region->bytes()[5] ^= std::byte{1};
    CHECK(seen->bytes()[5] == region->bytes()[5]);
    CHECK_THROWS(std::invalid_argument, attached.allocate(1));
    CHECK_THROWS(std::invalid_argument, attached.view(pool->size(), 1));
    // A pipe reads into it for us: the kernel answers EFAULT where writing would be a fault.
    int ends[2];
    CHECK(::pipe(ends) == 0);
    CHECK(::write(ends[1], "x", 1) == 1);
    CHECK(::read(ends[0], seen->bytes().data(), 1) == -1 && errno == EFAULT);
    ::close(ends[0]);
    ::close(ends[1]);
  }
}

TEST("nobody can shrink the memory that others have mapped") {
  const Pool pool(4 * kMiB, small());
  const int fd = ::open(pool.path()->c_str(), O_RDWR | O_CLOEXEC);
  CHECK(fd >= 0);
  CHECK(::ftruncate(fd, 4096) == -1 && errno == EPERM);
  ::close(fd);
}

TEST("what is no pool cannot be attached") {
  const scratch::Folder folder;
  scratch::write(folder / "f", scratch::noise(2 * kMiB));
  CHECK(error_of_attach(folder / "f") == EINVAL);
  CHECK(error_of_attach(folder / "missing") == ENOENT);
  CHECK(error_of_attach(folder / "") == EISDIR);
  CHECK(error_of_attach("/dev/null") == EINVAL);
}

TEST("allocating and freeing from several threads keeps the ledger") {
  Pool pool(64 * kMiB, small());
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&pool, seed] {
      std::minstd_rand random(seed);
      for (int step = 0; step < 200; ++step) {
        const Region region = pool.allocate(1 + random() % (8 * kMiB));
        region->bytes()[0] = std::byte{1};
        const Region part = pool.view(region->offset(), 1);
        CHECK(part->bytes().data() == region->bytes().data());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(pool.free_bytes() == 64 * kMiB);
}

TEST("a pool that is dropped while it is faulted in stops at once") {
  for (int round = 0; round < 3; ++round) {
    const Pool pool(2048 * kMiB, {.kind = PoolKind::kPrivate});
    CHECK(!pool.wait_populated(std::chrono::seconds(0)) || pool.populated() == pool.size());
  }
}
