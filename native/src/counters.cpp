#include "brisk/counters.hpp"

#include <atomic>

namespace brisk {
namespace {

struct Totals {
  std::atomic<std::uint64_t> direct{0};
  std::atomic<std::uint64_t> buffered{0};
  std::atomic<std::uint64_t> uring{0};
  std::atomic<std::uint64_t> verified{0};
  std::atomic<std::uint64_t> huge{0};
  std::atomic<std::uint64_t> small{0};
};

Totals& totals() noexcept {
  static Totals all;
  return all;
}

void add(std::atomic<std::uint64_t>& total, std::uint64_t more) noexcept {
  if (more > 0) total.fetch_add(more, std::memory_order_relaxed);
}

}  // namespace

Counters counters() noexcept {
  const Totals& all = totals();
  return {.direct_bytes = all.direct.load(std::memory_order_relaxed),
          .buffered_bytes = all.buffered.load(std::memory_order_relaxed),
          .uring_bytes = all.uring.load(std::memory_order_relaxed),
          .verified_bytes = all.verified.load(std::memory_order_relaxed),
          .huge_page_bytes = all.huge.load(std::memory_order_relaxed),
          .small_page_bytes = all.small.load(std::memory_order_relaxed)};
}

void count(const Counters& more) noexcept {
  Totals& all = totals();
  add(all.direct, more.direct_bytes);
  add(all.buffered, more.buffered_bytes);
  add(all.uring, more.uring_bytes);
  add(all.verified, more.verified_bytes);
  add(all.huge, more.huge_page_bytes);
  add(all.small, more.small_page_bytes);
}

}  // namespace brisk
