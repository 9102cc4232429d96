// All that the stand-in driver knows, under one lock.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "brisk/cuda_driver.hpp"
#include "standin_driver.hpp"

namespace cuda = brisk::cuda;

// A primary context: one per device, as long as anyone retains it.
struct brisk::cuda::ContextTag {
  int ordinal = 0;
  unsigned retained = 0;
};

struct brisk::cuda::EventTag {
  int ordinal = 0;
  std::uint64_t recorded = 0;
  std::uint64_t come = 0;
};

// One thing that a stream has to do: a copy, or a mark.
struct Work {
  std::byte* target = nullptr;
  const std::byte* source = nullptr;
  std::size_t bytes = 0;
  std::vector<std::byte> pageable = {};  // holds the source if that may change at once
  cuda::EventHandle event = nullptr;
  std::uint64_t mark = 0;
};

struct brisk::cuda::StreamTag {
  int ordinal = 0;
  std::deque<Work> work = {};
  bool busy = false;
  bool stop = false;
  std::thread thread = {};
};

namespace standin {

struct DeviceState {
  cuda::ContextTag context;
  std::map<std::byte*, std::size_t> allocations;
  std::uint64_t allocated_bytes = 0;
  bool held = false;
  unsigned copying = 0;
  cuda::Result broken = cuda::kSuccess;
};

struct Fault {
  std::uint64_t calls_before;
  cuda::Result code;
};

struct State {
  std::mutex mutex;  // guards all of it
  std::condition_variable changed;

  bool initialized = false;
  std::uint64_t device_bytes = 0;
  std::vector<std::unique_ptr<DeviceState>> devices;
  std::map<std::byte*, std::size_t> registrations;
  std::map<cuda::StreamHandle, std::unique_ptr<cuda::StreamTag>> streams;
  std::map<cuda::EventHandle, std::unique_ptr<cuda::EventTag>> events;

  std::map<std::string, Fault> faults;
  bool sink = false;
  std::uint64_t held_copies = 0;
  std::uint64_t running_copies = 0;
  StandinAudit counts{};
};

// The one state of the process; never destroyed, as threads may still be in it at the end.
State& state();

// Whether a call fails now because a test wants it to: its code, or kSuccess.
cuda::Result fault(State& all, const std::string& call);

// What every call but the first begins with: kSuccess, or why it is refused.
cuda::Result enter(State& all, const char* call);

// The device of the calling thread's context; null if it has none.
DeviceState* current(State& all);
std::vector<cuda::Context>& context_stack();

// Whether [begin, begin + size) lies in one of these ranges.
bool contains(const std::map<std::byte*, std::size_t>& ranges, const std::byte* begin,
              std::size_t size);

// What the thread of a stream does until the stream is destroyed.
void run_stream(cuda::StreamHandle stream);

}  // namespace standin
