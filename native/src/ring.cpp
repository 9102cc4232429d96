#include "brisk/ring.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <utility>

#include "brisk/file_descriptor.hpp"

#if __has_include(<linux/io_uring.h>) && defined(SYS_io_uring_setup)
#include <linux/io_uring.h>
#define BRISK_HAS_URING 1
#endif

namespace brisk {

#ifdef BRISK_HAS_URING
namespace {

// Memory that is shared with the kernel.
class Mapping {
 public:
  Mapping(int fd, std::size_t size, std::uint64_t offset)
      : data_(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                     static_cast<off_t>(offset))),
        size_(size) {
    if (data_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  }
  ~Mapping() { ::munmap(data_, size_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  template <typename Type>
  [[nodiscard]] Type* at(std::uint32_t offset) const {
    return reinterpret_cast<Type*>(static_cast<std::byte*>(data_) + offset);
  }

 private:
  void* data_;
  std::size_t size_;
};

std::size_t rings_size(const io_uring_params& facts) {
  const std::size_t submissions = facts.sq_off.array + facts.sq_entries * sizeof(unsigned);
  const std::size_t completions = facts.cq_off.cqes + facts.cq_entries * sizeof(io_uring_cqe);
  return std::max(submissions, completions);
}

// Heads and tails of the two queues are the only words that both sides write.
unsigned load(unsigned* word) { return std::atomic_ref(*word).load(std::memory_order_acquire); }
void store(unsigned* word, unsigned value) {
  std::atomic_ref(*word).store(value, std::memory_order_release);
}

class KernelRing final : public Ring {
 public:
  KernelRing(FileDescriptor fd, const io_uring_params& facts)
      : fd_(std::move(fd)),
        rings_(fd_.get(), rings_size(facts), IORING_OFF_SQ_RING),
        entries_(fd_.get(), facts.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES),
        size_(facts.sq_entries),
        submit_tail_(rings_.at<unsigned>(facts.sq_off.tail)),
        submit_mask_(*rings_.at<unsigned>(facts.sq_off.ring_mask)),
        submit_array_(rings_.at<unsigned>(facts.sq_off.array)),
        done_head_(rings_.at<unsigned>(facts.cq_off.head)),
        done_tail_(rings_.at<unsigned>(facts.cq_off.tail)),
        done_mask_(*rings_.at<unsigned>(facts.cq_off.ring_mask)),
        done_(rings_.at<io_uring_cqe>(facts.cq_off.cqes)) {}

  ~KernelRing() override {
    // What is queued was never begun, and is not begun any more.
    queued_ = 0;
    while (begun_ > 0) {
      try {
        static_cast<void>(wait());
      } catch (const std::system_error&) {
        // The kernel would not wait for us, but completes its reads all the same.
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
  }

  void submit(int fd, std::uint64_t offset, std::span<std::byte> room, std::uint32_t tag) override {
    if (queued_ + begun_ == size_) throw std::logic_error("more reads than the ring is deep");
    const unsigned tail = *submit_tail_;
    io_uring_sqe* const entry = entries_.at<io_uring_sqe>(0) + (tail & submit_mask_);
    *entry = {};
    entry->opcode = IORING_OP_READ;
    entry->fd = fd;
    entry->off = offset;
    entry->addr = reinterpret_cast<std::uintptr_t>(room.data());
    entry->len = static_cast<std::uint32_t>(room.size());
    entry->user_data = tag;
    submit_array_[tail & submit_mask_] = tail & submit_mask_;
    store(submit_tail_, tail + 1);
    ++queued_;
  }

  Completion wait() override {
    for (;;) {
      const bool is_empty = *done_head_ == load(done_tail_);
      if (queued_ > 0 || is_empty) enter(is_empty ? 1 : 0);
      const unsigned head = *done_head_;
      if (head == load(done_tail_)) continue;
      const io_uring_cqe& entry = done_[head & done_mask_];
      const Completion completion{.tag = static_cast<std::uint32_t>(entry.user_data),
                                  .result = entry.res};
      store(done_head_, head + 1);
      --begun_;
      return completion;
    }
  }

 private:
  // Begins what is queued; waits for a completion if asked to and if there can be one.
  void enter(unsigned wanted) {
    const unsigned flags = wanted > 0 ? IORING_ENTER_GETEVENTS : 0;
    const long begun = ::syscall(SYS_io_uring_enter, fd_.get(), queued_, wanted, flags, nullptr, 0);
    if (begun >= 0) {
      queued_ -= static_cast<unsigned>(begun);
      begun_ += static_cast<unsigned>(begun);
      return;
    }
    // Short of memory for requests, or of room for completions: the ones in flight free some.
    const bool passes = errno == EINTR || ((errno == EAGAIN || errno == EBUSY) && begun_ > 0);
    if (!passes) throw std::system_error(errno, std::generic_category(), "io_uring_enter");
    if (errno != EINTR) std::this_thread::yield();
  }

  FileDescriptor fd_;
  Mapping rings_;
  Mapping entries_;
  const unsigned size_;
  unsigned* const submit_tail_;
  const unsigned submit_mask_;
  unsigned* const submit_array_;
  unsigned* const done_head_;
  unsigned* const done_tail_;
  const unsigned done_mask_;
  const io_uring_cqe* const done_;
  unsigned queued_ = 0;  // submitted, but not begun by the kernel
  unsigned begun_ = 0;   // begun, and not yet returned
};

}  // namespace

std::unique_ptr<Ring> open_ring(unsigned depth, std::error_code& refusal) {
  io_uring_params facts{};
  FileDescriptor fd(static_cast<int>(::syscall(SYS_io_uring_setup, depth, &facts)));
  if (fd.get() < 0) {
    refusal = {errno, std::generic_category()};
    return nullptr;
  }
  // One mapping for both queues (5.4), and a kernel that knows plain reads (5.6).
  constexpr unsigned kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_RW_CUR_POS;
  if ((facts.features & kNeeded) != kNeeded) {
    refusal = std::make_error_code(std::errc::function_not_supported);
    return nullptr;
  }
  try {
    return std::make_unique<KernelRing>(std::move(fd), facts);
  } catch (const std::system_error& error) {
    refusal = error.code();
    return nullptr;
  }
}

#else

std::unique_ptr<Ring> open_ring(unsigned, std::error_code& refusal) {
  refusal = std::make_error_code(std::errc::function_not_supported);
  return nullptr;
}

#endif

}  // namespace brisk
