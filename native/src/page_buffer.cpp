#include "brisk/page_buffer.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <utility>

#include "brisk/chunk.hpp"
#include "brisk/huge_pages.hpp"

namespace brisk {
namespace {

constexpr std::size_t kPage = kDirectAlignment;

std::size_t room_size(std::size_t size) { return std::max(align_up(size, kPage), kPage); }

std::byte* at(std::uintptr_t address) { return reinterpret_cast<std::byte*>(address); }

}  // namespace

PageBuffer::PageBuffer(std::size_t size) : size_(size) {
  if (size > SIZE_MAX / 2) throw std::bad_alloc();
  const std::size_t room = room_size(size);
  const std::size_t alignment = room >= kHugePageBytes ? kHugePageBytes : kPage;
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
  if (size_ < kHugePageBytes) return false;
  return huge_page_bytes_in(room()) >= size_ / 2;
}

}  // namespace brisk
