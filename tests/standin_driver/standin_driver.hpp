// How tests steer the stand-in for NVIDIA's driver library, and see what it was used for.
//
// It exports the driver's calls that Brisk makes, with host memory for the devices' and a thread
// for each stream, so that copies really run beside their caller. What NVIDIA's driver refuses, it
// refuses: calls before cuInit, without a current context, with a foreign handle, beyond an
// allocation. A failed copy breaks its device for good, as a real one does.
//
// The environment's BRISK_STANDIN_DEVICES (default 2) and BRISK_STANDIN_MEMORY_BYTES (of each
// device, default 1 GiB) are read by cuInit.
#pragma once

#include <stdint.h>

extern "C" {

// What is there now, and what was done since the last reset.
struct StandinAudit {
  uint64_t contexts;     // retained and not released
  uint64_t allocations;  // in all devices' memory
  uint64_t streams;
  uint64_t events;
  uint64_t registrations;  // of host memory
  uint64_t allocated_bytes;
  uint64_t registered_bytes;
  uint64_t registered_bytes_max;  // since the last reset, as all below
  uint64_t copies;                // to devices, that ended well
  uint64_t copied_bytes;
  uint64_t pageable_copies;      // of them, from memory that is not registered
  uint64_t running_copies_max;   // at one time
  uint64_t devices_copying_max;  // at one time
};

void standin_audit(StandinAudit* audit);

// Lets a call fail with `code` once, after `calls_before` more of it have passed. "copy" lets a
// copy fail while it runs: what waits for it learns of it.
void standin_fail(const char* call, uint64_t calls_before, int code);

// From now on copies wait before they begin, until let go. All devices, or one.
void standin_hold(void);
void standin_hold_device(int ordinal);
void standin_let_go(void);
// Returns when this many copies wait.
void standin_await_held(uint64_t copies);

// From now on (1) devices take memory from nobody and forget what is copied to them, or (0) not.
void standin_sink(int on);

// Forgets faults, holds, broken devices and counts. What is allocated stays.
void standin_reset(void);
}
