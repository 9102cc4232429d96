// Names of files that a stranger wrote down.
#pragma once

#include <cstddef>
#include <string_view>

namespace brisk {

// True if `name` is that of a file in the folder it is looked for in, and leads nowhere else.
[[nodiscard]] inline bool is_plain_name(std::string_view name, std::size_t bytes_max) {
  constexpr std::string_view kSpecial("/\\\0", 3);
  return !name.empty() && name.size() <= bytes_max && name != "." && name != ".." &&
         name.find_first_of(kSpecial) == std::string_view::npos;
}

}  // namespace brisk
