// Opens regular files for reading, and nothing else: no link, no folder, no pipe.
#pragma once

#include <cstdint>
#include <filesystem>

#include "brisk/file_descriptor.hpp"

namespace brisk {

[[noreturn]] void fail(const char* call, const std::filesystem::path& path, int error);

// Throws filesystem_error: ELOOP for a symbolic link in the last component.
[[nodiscard]] FileDescriptor open_for_reading(const std::filesystem::path& path);

// Throws filesystem_error: EISDIR for a folder, EINVAL for what is no regular file either.
[[nodiscard]] std::uint64_t regular_file_size(int fd, const std::filesystem::path& path);

}  // namespace brisk
