// What can go wrong with a device.
//
//   std::runtime_error
//   └── DeviceError               the driver is not there, or one of its calls failed
//       └── DeviceMemoryError     the device has too little memory free
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace brisk {

// A call of the driver failed, or the driver cannot be used at all.
class DeviceError : public std::runtime_error {
 public:
  // `name` and `text` are the driver's own for `code`. Without a driver `code` is 0, `name` empty
  // and `call` says what was tried.
  DeviceError(std::string call, int code, std::string name, std::string text);

  // What failed: "cuMemcpyHtoDAsync_v2", or "dlopen".
  [[nodiscard]] const std::string& call() const noexcept { return call_; }
  // The driver's number; 0 if there was no driver to ask.
  [[nodiscard]] int code() const noexcept { return code_; }
  // "CUDA_ERROR_ILLEGAL_ADDRESS"
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  // The driver's words, or the dynamic linker's.
  [[nodiscard]] const std::string& text() const noexcept { return text_; }

 private:
  std::string call_;
  int code_;
  std::string name_;
  std::string text_;
};

// cuMemAlloc found too little memory.
class DeviceMemoryError : public DeviceError {
 public:
  DeviceMemoryError(const DeviceError& error, int ordinal, std::uint64_t wanted_bytes,
                    std::uint64_t free_bytes);

  [[nodiscard]] int ordinal() const noexcept { return ordinal_; }
  [[nodiscard]] std::uint64_t wanted_bytes() const noexcept { return wanted_bytes_; }
  // As the driver counted them after the failure.
  [[nodiscard]] std::uint64_t free_bytes() const noexcept { return free_bytes_; }

 private:
  int ordinal_;
  std::uint64_t wanted_bytes_;
  std::uint64_t free_bytes_;
};

}  // namespace brisk
