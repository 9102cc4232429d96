// Feeds the header parser whatever the fuzzer makes up, and checks what it accepts: every byte of
// the file belongs to exactly one tensor, and no view leads outside the header's text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "brisk/crc32c.hpp"
#include "brisk/safetensors_header.hpp"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check(const brisk::SafetensorsHeader& header) {
  std::uint64_t reached = 0;
  for (const brisk::HeaderTensor& tensor : header.tensors()) {
    require(tensor.begin == reached && tensor.end >= reached);
    reached = tensor.end;
    require(!tensor.name.empty() && tensor.name.size() <= brisk::kHeaderNameBytesMax);
    require(tensor.shape.size() <= brisk::kHeaderRankMax);
    static_cast<void>(brisk::crc32c(std::as_bytes(std::span(tensor.name))));
    std::uint64_t bits = tensor.dtype->bits;
    for (const std::uint64_t dimension : tensor.shape) bits *= dimension;
    require(bits == (tensor.end - tensor.begin) * 8);
  }
  require(header.data_offset() + reached == header.file_bytes());
  for (const auto& [key, value] : header.metadata()) {
    static_cast<void>(brisk::crc32c(std::as_bytes(std::span(key))));
    static_cast<void>(brisk::crc32c(std::as_bytes(std::span(value))));
  }
}

void parse(std::span<const std::byte> bytes, std::uint64_t file_bytes) {
  try {
    check(brisk::SafetensorsHeader::parse(bytes, file_bytes));
  } catch (const brisk::InvalidHeader&) {
    return;  // refused: all that may happen to a bad header
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // The first two bytes say how many bytes of data the file has behind the header.
  if (size < 2) return 0;
  const std::uint64_t data_bytes = data[0] | std::uint64_t{data[1]} << 8;
  const auto json = std::as_bytes(std::span(data + 2, size - 2));
  std::vector<std::byte> file(brisk::kHeaderLengthBytes);
  for (unsigned byte = 0; byte < brisk::kHeaderLengthBytes; ++byte) {
    file[byte] = static_cast<std::byte>(std::uint64_t{json.size()} >> (8 * byte));
  }
  file.insert(file.end(), json.begin(), json.end());
  parse(file, file.size() + data_bytes);
  parse(json, json.size());  // the same bytes with a length that is made up too
  return 0;
}
