// The promise of what is owned on a device: it works, it goes back, and giving back never throws.
#include "brisk/device.hpp"

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>

#include "brisk/page_buffer.hpp"
#include "brisk/pin_lease.hpp"
#include "check.hpp"
#include "scratch.hpp"
#include "standin.hpp"

namespace {

using brisk::DeviceContext;
using brisk::DeviceError;
using brisk::DeviceMemory;
using brisk::DeviceMemoryError;
using brisk::Event;
using brisk::HostRegistration;
using brisk::PageBuffer;
using brisk::PinLease;
using brisk::SharedContext;
using brisk::Stream;

SharedContext context(int ordinal = 0) { return std::make_shared<const DeviceContext>(ordinal); }

void fill(const PageBuffer& buffer, std::uint64_t seed = 1) {
  const auto bytes = scratch::noise(buffer.size(), seed);
  std::memcpy(buffer.bytes().data(), bytes.data(), bytes.size());
}

bool holds(const DeviceMemory& memory, std::span<const std::byte> wanted) {
  scratch::Bytes found(wanted.size());
  memory.read(0, found);
  return scratch::equal(found, wanted);
}

bool has_current_context(const brisk::CudaDriver& driver) {
  brisk::cuda::Context popped = nullptr;
  return driver->cuCtxPopCurrent_v2(&popped) == brisk::cuda::kSuccess;
}

}  // namespace

TEST("a copy runs beside its caller and is there when its event has come") {
  const Standin standin;
  const PageBuffer source(70000);
  fill(source);
  const DeviceMemory memory(context(), source.size());
  const Stream stream(memory.context());
  const Event event(memory.context());
  const HostRegistration pinned(memory.context(), source.room());
  standin_hold();
  stream.copy(memory.pointer(), source.bytes());
  event.record(stream);
  standin_await_held(1);
  CHECK(!holds(memory, source.bytes()));
  standin_let_go();
  event.wait();
  CHECK(holds(memory, source.bytes()));
  CHECK(Standin::audit().pageable_copies == 0);
}

TEST("reading device memory is exact and stays within it") {
  const Standin standin;
  const PageBuffer source(1000);
  fill(source);
  const DeviceMemory memory(context(1), source.size());
  const Stream stream(memory.context());
  stream.copy(memory.pointer(), source.bytes());
  stream.drain();
  scratch::Bytes part(10);
  memory.read(990, part);
  CHECK(scratch::equal(part, source.bytes().subspan(990)));
  CHECK_THROWS(std::out_of_range, memory.read(991, part));
  CHECK_THROWS(std::out_of_range, memory.read(UINT64_MAX, part));
  CHECK(memory.in_host_memory());
}

TEST("memory of no bytes needs no allocation") {
  const Standin standin;
  const DeviceMemory memory(context(), 0);
  CHECK(memory.pointer() == 0 && Standin::audit().allocations == 0);
  memory.read(0, {});
}

TEST("too little device memory is told with what was wanted and what is free") {
  const Standin standin;
  const std::uint64_t all = std::uint64_t{1} << 30;
  const DeviceMemory half(context(1), all / 2);
  try {
    const DeviceMemory more(half.context(), all / 2 + 1);
    CHECK(!"refused");
  } catch (const DeviceMemoryError& error) {
    CHECK(error.ordinal() == 1 && error.wanted_bytes() == all / 2 + 1);
    CHECK(error.free_bytes() == all / 2);
    CHECK(error.name() == "CUDA_ERROR_OUT_OF_MEMORY");
    CHECK(std::string(error.what()) ==
          "cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY: out of memory: device 1 has 536870912 bytes "
          "free, wanted 536870913");
  }
  CHECK(half.context()->room().free_bytes == all / 2);
}

TEST("several allocations are had together or not at all") {
  const Standin standin;
  const std::vector<brisk::DeviceAllocation> wanted{
      {0, 100}, {1, 100}, {1, std::uint64_t{1} << 40}};
  CHECK_THROWS(DeviceMemoryError, brisk::allocate(wanted));
  CHECK(Standin::is_clean());
  CHECK_THROWS(DeviceError, brisk::allocate(std::vector<brisk::DeviceAllocation>{{7, 1}}));
}

TEST("the caller's own context is current again after every call") {
  const Standin standin;
  const brisk::CudaDriver& driver = brisk::CudaDriver::get();
  const SharedContext mine = context(0);
  const brisk::CurrentContext current(*mine);
  {
    const DeviceMemory memory(context(1), 100);
  }
  CHECK_THROWS(DeviceMemoryError, DeviceMemory(context(1), std::uint64_t{1} << 40));
  brisk::cuda::Context top = nullptr;
  driver->cuCtxPopCurrent_v2(&top);
  CHECK(top == mine->get());
  driver->cuCtxPushCurrent_v2(top);
}

TEST("calls leave no context behind on a thread that had none") {
  const Standin standin;
  {
    const DeviceMemory memory(context(), 100);
  }
  CHECK(!has_current_context(brisk::CudaDriver::get()));
}

TEST("a driver that fails while things are given back stops nobody") {
  const Standin standin;
  std::optional<DeviceMemory> memory(std::in_place, context(), 100);
  std::optional<Stream> stream(std::in_place, memory->context());
  const PageBuffer source(100);
  std::optional<HostRegistration> pinned(std::in_place, memory->context(), source.room());
  for (const char* call : {"cuMemFree_v2", "cuStreamDestroy_v2", "cuMemHostUnregister"}) {
    standin_fail(call, 0, 700);
  }
  stream.reset();
  pinned.reset();
  memory.reset();
  CHECK(Standin::is_clean());
}

TEST("a failed copy is told where it is waited for, with the driver's words") {
  const Standin standin;
  const DeviceMemory memory(context(), 100);
  const Stream stream(memory.context());
  const Event event(memory.context());
  const PageBuffer source(100);
  standin_fail("copy", 0, brisk::cuda::kIllegalAddress);
  standin_hold();
  stream.copy(memory.pointer(), source.bytes());
  event.record(stream);
  standin_let_go();
  try {
    event.wait();
    CHECK(!"told");
  } catch (const DeviceError& error) {
    CHECK(error.call() == "cuEventSynchronize" && error.name() == "CUDA_ERROR_ILLEGAL_ADDRESS");
    CHECK(error.text() == "an illegal memory access was encountered");
  }
}

TEST("memory stays pinned until the last of those who need it so is gone") {
  const Standin standin;
  const PageBuffer memory(100000);
  const SharedContext any = context();
  std::optional<PinLease> whole(std::in_place, any, memory.bytes());
  CHECK(brisk::is_pinned(*any, memory.bytes()));
  std::optional<PinLease> part(std::in_place, any, memory.bytes().subspan(5000, 1000));
  CHECK(Standin::audit().registrations == 1);
  whole.reset();
  CHECK(brisk::is_pinned(*any, memory.bytes()));
  part.reset();
  CHECK(!brisk::is_pinned(*any, memory.bytes()));
}

TEST("memory that others pinned stays theirs, and half pinned memory is refused") {
  const Standin standin;
  const PageBuffer memory(100000);
  const SharedContext any = context();
  const HostRegistration theirs(any, memory.bytes().first(50000));
  {
    const PinLease lease(any, memory.bytes().first(4096));
  }
  CHECK(Standin::audit().registrations == 1);
  CHECK_THROWS(DeviceError, PinLease(any, memory.bytes()));
}
