// Reads that the kernel carries out while their thread goes on: io_uring, by its raw calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <system_error>

namespace brisk {

// What the engine needs of io_uring. The tests put a ring of their own in between to meet torn and
// failing reads. Used by one thread at a time.
class Ring {
 public:
  struct Completion {
    std::uint32_t tag;  // of the read, as it was submitted
    int result;         // bytes read, or a negative errno
  };

  // Waits until the kernel touches no memory for this ring any more: of all reads that were
  // submitted, those it had begun have ended and the others never will begin. Never throws.
  virtual ~Ring() = default;

  // Queues a read into `room`, which must stay until its completion was returned or this object
  // is gone. At most `depth` reads may be without completion.
  virtual void submit(int fd, std::uint64_t offset, std::span<std::byte> room,
                      std::uint32_t tag) = 0;
  // Begins what is queued and returns the next completion, waiting for it if need be. There must
  // be a read without completion. Throws std::system_error.
  virtual Completion wait() = 0;

 protected:
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
};

// Returns a ring for `depth` reads at once; null and the reason where the kernel has none to give:
// ENOSYS, EPERM (kernel.io_uring_disabled, seccomp), ENOMEM.
[[nodiscard]] std::unique_ptr<Ring> open_ring(unsigned depth, std::error_code& refusal);

}  // namespace brisk
