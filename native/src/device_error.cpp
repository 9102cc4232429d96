#include "brisk/device_error.hpp"

#include <utility>

namespace brisk {
namespace {

std::string message(const std::string& call, const std::string& name, const std::string& text) {
  return name.empty() ? call + ": " + text : call + ": " + name + ": " + text;
}

}  // namespace

DeviceError::DeviceError(std::string call, int code, std::string name, std::string text)
    : std::runtime_error(message(call, name, text)),
      call_(std::move(call)),
      code_(code),
      name_(std::move(name)),
      text_(std::move(text)) {}

DeviceMemoryError::DeviceMemoryError(const DeviceError& error, int ordinal,
                                     std::uint64_t wanted_bytes, std::uint64_t free_bytes)
    : DeviceError(error.call(), error.code(), error.name(),
                  error.text() + ": device " + std::to_string(ordinal) + " has " +
                      std::to_string(free_bytes) + " bytes free, wanted " +
                      std::to_string(wanted_bytes)),
      ordinal_(ordinal),
      wanted_bytes_(wanted_bytes),
      free_bytes_(free_bytes) {}

}  // namespace brisk
