#include "brisk/errors.hpp"

#include <utility>

#include "brisk/chunk.hpp"

namespace brisk {
namespace {

std::string short_read_text(const std::filesystem::path& path, std::uint64_t offset,
                            std::uint64_t wanted, std::uint64_t got) {
  return path.string() + ": wanted " + std::to_string(wanted) + " bytes at offset " +
         std::to_string(offset) + ", the file ends after " + std::to_string(got);
}

std::string mismatch_text(const std::filesystem::path& path, std::uint64_t chunk,
                          const std::string& detail) {
  return path.string() + ": chunk " + std::to_string(chunk) + " at offset " +
         std::to_string(chunk * kChunkBytes) + ": " + detail;
}

}  // namespace

ShortRead::ShortRead(const std::filesystem::path& path, std::uint64_t offset, std::uint64_t wanted,
                     std::uint64_t got)
    : std::runtime_error(short_read_text(path, offset, wanted, got)) {}

ChecksumMismatch::ChecksumMismatch(std::filesystem::path path, std::uint64_t chunk,
                                   const std::string& detail)
    : std::runtime_error(mismatch_text(path, chunk, detail)),
      path_(std::move(path)),
      chunk_(chunk),
      detail_(detail) {}

std::uint64_t ChecksumMismatch::offset() const noexcept { return chunk_ * kChunkBytes; }

Cancelled::Cancelled(std::uint64_t bytes_done)
    : std::runtime_error("cancelled after " + std::to_string(bytes_done) + " bytes"),
      bytes_done_(bytes_done) {}

}  // namespace brisk
