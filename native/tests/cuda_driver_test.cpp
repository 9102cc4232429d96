// CudaDriver's promise: a driver that works, or the plain reason why there is none.
#include "brisk/cuda_driver.hpp"

#include <stdlib.h>

#include <filesystem>
#include <string>

#include "brisk/device.hpp"
#include "check.hpp"
#include "scratch.hpp"
#include "standin.hpp"

namespace {

using brisk::CudaDriver;
using brisk::DeviceError;

// Returns the error of the driver library at `path`.
DeviceError refusal(const std::string& path) {
  ::setenv("BRISK_CUDA_DRIVER", path.c_str(), 1);
  try {
    CudaDriver::get();
  } catch (const DeviceError& error) {
    return error;
  }
  CHECK(!"refused");
  return {"", 0, "", ""};
}

// The stand-in under a name of its own: a library that this process has not initialized.
std::string alias(const scratch::Folder& folder) {
  std::filesystem::create_symlink(BRISK_STANDIN_DRIVER, folder / "alias.so");
  return folder / "alias.so";
}

}  // namespace

TEST("without a driver library there are no devices, and the linker's words say why") {
  const DeviceError error = refusal("/nowhere/libcuda.so.1");
  CHECK(error.call() == "dlopen" && error.code() == 0 && error.name().empty());
  CHECK(error.text().find("/nowhere/libcuda.so.1") != std::string::npos);
  CHECK(std::string(error.what()) == "dlopen: " + error.text());
  CHECK(brisk::devices().empty());
  CHECK_THROWS(DeviceError, brisk::DeviceContext(0));
}

TEST("a library that lacks a call is refused, and the call is named") {
  const DeviceError error = refusal("libc.so.6");
  CHECK(error.call() == "dlsym");
  CHECK(error.text().find("cuInit") != std::string::npos);
  CHECK_THROWS(DeviceError, brisk::devices());
}

TEST("a driver that does not start gives its own words, and may start later") {
  const Standin standin;
  const scratch::Folder folder;
  standin_fail("cuInit", 0, 3);
  const DeviceError error = refusal(alias(folder));
  CHECK(error.call() == "cuInit" && error.code() == 3);
  CHECK(error.name() == "CUDA_ERROR_NOT_INITIALIZED" && error.text() == "initialization error");
  CHECK(std::string(error.what()) == "cuInit: CUDA_ERROR_NOT_INITIALIZED: initialization error");
  CHECK(brisk::devices().size() == 2);
}

TEST("an error that the driver has no words for keeps its number") {
  const Standin standin;
  const scratch::Folder folder;
  standin_fail("cuInit", 0, 12345);
  CHECK(refusal(alias(folder)).name() == "CUDA_ERROR_12345");
}

TEST("a driver that knows of no device is no error until one is wanted") {
  const Standin standin;
  const scratch::Folder folder;
  const std::string path = alias(folder);
  standin_fail("cuInit", 0, brisk::cuda::kNoDevice);
  CHECK(refusal(path).name() == "CUDA_ERROR_NO_DEVICE");
  standin_fail("cuInit", 0, brisk::cuda::kNoDevice);
  CHECK(brisk::devices().empty());
}

TEST("devices are told with name and memory, without touching them") {
  const Standin standin;
  const auto devices = brisk::devices();
  CHECK(devices.size() == 2);
  CHECK(devices[1].ordinal == 1 && devices[1].name == "Stand-in 1");
  CHECK(devices[1].total_bytes == std::uint64_t{1} << 30);
  CHECK(Standin::is_clean());
}
