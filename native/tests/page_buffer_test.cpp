// PageBuffer's promise: aligned zeros of the asked size, with nothing touchable around them.
#include "brisk/page_buffer.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

#include "brisk/chunk.hpp"
#include "brisk/populate.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::PageBuffer;

constexpr std::size_t kMiB = std::size_t{1} << 20;

// True if the kernel can read the byte: write() answers EFAULT where nothing may be touched.
bool is_touchable(const std::byte* address) {
  int ends[2];
  if (::pipe(ends) != 0) return false;
  const bool readable = ::write(ends[1], address, 1) == 1;
  ::close(ends[0]);
  ::close(ends[1]);
  return readable;
}

}  // namespace

TEST("a buffer is aligned, zeroed, and has room up to the end of its last page") {
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{4096},
                                 std::size_t{4097}, 2 * kMiB, 2 * kMiB + 1, 9 * kMiB + 5}) {
    const PageBuffer buffer(size);
    const auto address = reinterpret_cast<std::uintptr_t>(buffer.bytes().data());
    CHECK(address != 0);
    CHECK(address % (size >= 2 * kMiB ? 2 * kMiB : 4096) == 0);
    CHECK(buffer.bytes().size() == size);
    CHECK(buffer.room().size() % 4096 == 0);
    CHECK(buffer.room().size() >= std::max(size, std::size_t{1}));
    CHECK(buffer.room().size() < size + 4097);
    CHECK(scratch::is_zero(buffer.room()));
    buffer.room().front() = std::byte{1};
    buffer.room().back() = std::byte{1};
  }
}

TEST("a guard page lies on either side") {
  for (const std::size_t size : {std::size_t{1}, 4 * kMiB}) {
    const PageBuffer buffer(size);
    const std::byte* first = buffer.room().data();
    const std::byte* last = first + buffer.room().size() - 1;
    CHECK(is_touchable(first) && is_touchable(last));
    CHECK(!is_touchable(first - 1) && !is_touchable(last + 1));
  }
}

TEST("memory that cannot be had is bad_alloc") {
  CHECK_THROWS(std::bad_alloc, PageBuffer(SIZE_MAX));
  CHECK_THROWS(std::bad_alloc, PageBuffer(std::size_t{1} << 60));
}

TEST("moving hands the memory over and self-assignment keeps it") {
  PageBuffer first(5);
  first.bytes()[0] = std::byte{7};
  PageBuffer second(std::move(first));
  CHECK(second.bytes()[0] == std::byte{7});
  PageBuffer third(9);
  third = std::move(second);
  auto& alias = third;
  third = std::move(alias);
  CHECK(third.size() == 5 && third.bytes()[0] == std::byte{7});
}

TEST("populating in the background keeps what was written meanwhile, and ends when told") {
  for (int round = 0; round < 20; ++round) {
    const PageBuffer buffer(40 * kMiB + 123);
    const brisk::BackgroundPopulate populate({buffer.room()});
    for (std::size_t i = 0; i < buffer.size(); i += 4096) buffer.bytes()[i] = std::byte{9};
    std::size_t kept = 0;
    for (std::size_t i = 0; i < buffer.size(); i += 4096) kept += buffer.bytes()[i] == std::byte{9};
    CHECK(kept == (buffer.size() + 4095) / 4096);
  }
}

TEST("stopping does not wait for the rest of a large buffer") {
  constexpr std::size_t kLarge = 2048 * kMiB;
  const PageBuffer buffer(kLarge);
  {
    const brisk::BackgroundPopulate populate({buffer.room()});
  }
  unsigned char resident = 0;
  CHECK(::mincore(buffer.bytes().data() + kLarge - 4096, 4096, &resident) == 0);
  CHECK((resident & 1) == 0);
}

TEST("huge pages are told from small ones") {
  const PageBuffer small(kMiB);
  CHECK(!small.in_huge_pages());
  const PageBuffer untouched(8 * kMiB);
  CHECK(!untouched.in_huge_pages());
  const PageBuffer split(8 * kMiB);
  CHECK(::madvise(split.room().data(), split.room().size(), MADV_NOHUGEPAGE) == 0);
  std::memset(split.bytes().data(), 1, split.bytes().size());
  CHECK(!split.in_huge_pages());
  const PageBuffer huge(8 * kMiB);
  std::memset(huge.bytes().data(), 1, huge.bytes().size());
  std::printf("huge pages here: %s\n", huge.in_huge_pages() ? "yes" : "no");
}
