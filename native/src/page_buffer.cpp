#include "brisk/page_buffer.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <new>
#include <string>
#include <system_error>
#include <utility>

#include "brisk/chunk.hpp"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older headers lack the name
#endif

namespace brisk {
namespace {

constexpr std::size_t kPage = kDirectAlignment;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kPopulateSlice = std::size_t{8} << 20;  // bounds how long stopping takes
constexpr unsigned kPopulateThreads = 2;

std::size_t room_size(std::size_t size) { return std::max(align_up(size, kPage), kPage); }

std::byte* at(std::uintptr_t address) { return reinterpret_cast<std::byte*>(address); }

// Returns the number of KiB in a line of smaps such as "AnonHugePages:   2048 kB".
std::size_t kib_in(const std::string& line) {
  const std::size_t digits = line.find_first_of("0123456789");
  if (digits == std::string::npos) return 0;
  std::size_t value = 0;
  std::from_chars(line.data() + digits, line.data() + line.size(), value);
  return value;
}

bool starts_mapping(const std::string& line, std::uintptr_t address) {
  std::uintptr_t start = 0;
  const auto end = std::from_chars(line.data(), line.data() + line.size(), start, 16);
  return end.ec == std::errc() && *end.ptr == '-' && start == address;
}

}  // namespace

PageBuffer::PageBuffer(std::size_t size) : size_(size) {
  if (size > SIZE_MAX / 2) throw std::bad_alloc();
  const std::size_t room = room_size(size);
  const std::size_t alignment = room >= kHugePage ? kHugePage : kPage;
  // Aligning moves the data by less than `alignment`; one page before and one behind are guards.
  const std::size_t reserved = room + alignment + kPage;
  void* const raw = ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  const auto start = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t data = align_up(start + kPage, alignment);
  // Guard pages also keep the kernel from merging neighbours, so `in_huge_pages` sees only ours.
  if (data - kPage > start) ::munmap(raw, data - kPage - start);
  const std::uintptr_t end = data + room + kPage;
  if (start + reserved > end) ::munmap(at(end), start + reserved - end);
  if (::mprotect(at(data), room, PROT_READ | PROT_WRITE) != 0) {
    ::munmap(at(data - kPage), room + 2 * kPage);
    throw std::bad_alloc();
  }
  ::madvise(at(data), room, MADV_HUGEPAGE);  // a wish: kernels without huge pages refuse it
  data_ = at(data);
}

PageBuffer::~PageBuffer() {
  if (data_ != nullptr) ::munmap(data_ - kPage, room_size(size_) + 2 * kPage);
}

PageBuffer::PageBuffer(PageBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

PageBuffer& PageBuffer::operator=(PageBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::span<std::byte> PageBuffer::room() const noexcept { return {data_, room_size(size_)}; }

bool PageBuffer::in_huge_pages() const {
  if (size_ < kHugePage) return false;
  std::ifstream smaps("/proc/self/smaps");
  const auto address = reinterpret_cast<std::uintptr_t>(data_);
  bool ours = false;
  for (std::string line; std::getline(smaps, line);) {
    if (!ours) {
      ours = starts_mapping(line, address);
    } else if (line.starts_with("AnonHugePages:")) {
      return kib_in(line) * 1024 >= size_ / 2;
    }
  }
  return false;
}

BackgroundPopulate::BackgroundPopulate(const PageBuffer& buffer) : room_(buffer.room()) {
  if (room_.size() <= kPopulateSlice) return;  // the reads themselves are as quick
  threads_.reserve(kPopulateThreads);
  try {
    for (unsigned i = 0; i < kPopulateThreads; ++i) threads_.emplace_back([this] { populate(); });
  } catch (const std::system_error&) {
    // Only speed is lost without these threads: the reads fault the pages in themselves.
  }
}

BackgroundPopulate::~BackgroundPopulate() {
  stop_.store(true, std::memory_order_relaxed);
  for (auto& thread : threads_) thread.join();
}

void BackgroundPopulate::populate() {
  while (!stop_.load(std::memory_order_relaxed)) {
    const std::size_t begin = next_.fetch_add(kPopulateSlice, std::memory_order_relaxed);
    if (begin >= room_.size()) return;
    const std::size_t length = std::min(kPopulateSlice, room_.size() - begin);
    // Refused by kernels before 5.14, and when memory is short: then the reads decide.
    if (::madvise(room_.data() + begin, length, MADV_POPULATE_WRITE) != 0) return;
  }
}

}  // namespace brisk
