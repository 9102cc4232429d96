// Feeds the manifest parser whatever the fuzzer makes up, and checks what it accepts: every file
// has a plain name of its own and as many checksums as chunks, and no view leads outside the text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <span>
#include <string_view>

#include "brisk/chunk.hpp"
#include "brisk/crc32c.hpp"
#include "brisk/manifest.hpp"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check(const brisk::Manifest& manifest) {
  require(manifest.version() >= 1 && manifest.version() <= brisk::kManifestVersionMax);
  require(manifest.form() <= brisk::kManifestFormMax);
  require(manifest.files().size() <= brisk::kManifestFilesMax);
  std::set<std::string_view> names;
  for (const brisk::ManifestFile& file : manifest.files()) {
    require(names.insert(file.name).second);
    require(!file.name.empty() && file.name.size() <= brisk::kManifestNameBytesMax);
    require(file.name != ".." && file.name.find('/') == std::string_view::npos);
    require(file.crc32c.size() == brisk::chunk_count(file.size_bytes));
    static_cast<void>(brisk::crc32c(std::as_bytes(std::span(file.name))));
    static_cast<void>(brisk::crc32c(std::as_bytes(file.crc32c)));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check(brisk::Manifest::parse(std::as_bytes(std::span(data, size))));
  } catch (const brisk::InvalidManifest&) {
    return 0;  // refused: all that may happen to a bad manifest
  }
  return 0;
}
