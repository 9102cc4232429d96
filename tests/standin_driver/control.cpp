// What tests steer it by: see standin_driver.hpp.
#include "state.hpp"

using namespace standin;

extern "C" {

void standin_audit(StandinAudit* audit) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  *audit = all.counts;
  audit->streams = all.streams.size();
  audit->events = all.events.size();
  audit->registrations = all.registrations.size();
  for (const auto& device : all.devices) {
    audit->contexts += device->context.retained;
    audit->allocations += device->allocations.size();
    audit->allocated_bytes += device->allocated_bytes;
  }
}

void standin_fail(const char* call, std::uint64_t calls_before, int code) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.faults[call] = {.calls_before = calls_before, .code = code};
}

void standin_hold(void) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  for (const auto& device : all.devices) device->held = true;
}

void standin_hold_device(int ordinal) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.devices.at(static_cast<std::size_t>(ordinal))->held = true;
}

void standin_let_go(void) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  for (const auto& device : all.devices) device->held = false;
  all.changed.notify_all();
}

void standin_await_held(std::uint64_t copies) {
  State& all = state();
  std::unique_lock lock(all.mutex);
  all.changed.wait(lock, [&] { return all.held_copies >= copies; });
}

void standin_sink(int on) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  all.sink = on != 0;
}

void standin_reset(void) {
  State& all = state();
  const std::lock_guard lock(all.mutex);
  const std::uint64_t registered = all.counts.registered_bytes;
  all.counts = {};
  all.counts.registered_bytes = all.counts.registered_bytes_max = registered;
  all.faults.clear();
  all.sink = false;
  for (const auto& device : all.devices) {
    device->held = false;
    device->broken = cuda::kSuccess;
  }
  all.changed.notify_all();
}
}
