// Lets a test run on the stand-in driver, and checks that it leaves nothing behind there.
#pragma once

#include <stdlib.h>

#include "brisk/cuda_driver.hpp"
#include "check.hpp"
#include "standin_driver.hpp"

class Standin {
 public:
  Standin() {
    ::setenv("BRISK_CUDA_DRIVER", BRISK_STANDIN_DRIVER, 1);
    brisk::CudaDriver::get();
    standin_reset();
  }
  ~Standin() {
    standin_let_go();
    CHECK(is_clean());
    standin_reset();
  }
  Standin(const Standin&) = delete;
  Standin& operator=(const Standin&) = delete;

  [[nodiscard]] static StandinAudit audit() {
    StandinAudit found;
    standin_audit(&found);
    return found;
  }
  // Whether all that was ever taken was given back.
  [[nodiscard]] static bool is_clean() {
    const StandinAudit now = audit();
    return now.contexts == 0 && now.allocations == 0 && now.streams == 0 && now.events == 0 &&
           now.registrations == 0;
  }
};
