// Feeds the index parser whatever the fuzzer makes up, and checks what it accepts: every tensor has
// a name of its own and a file of the folder, and no view leads outside the text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <span>
#include <string_view>

#include "brisk/weight_index.hpp"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check(const brisk::WeightIndex& index) {
  require(!index.tensors().empty() && index.tensors().size() <= brisk::kIndexTensorsMax);
  require(!index.files().empty() && index.files().size() <= brisk::kIndexFilesMax);
  std::set<std::string_view> names;
  for (const brisk::WeightIndex::Entry& entry : index.tensors()) {
    require(names.insert(entry.tensor).second);
    require(!entry.tensor.empty() && entry.tensor.size() <= brisk::kIndexNameBytesMax);
    require(entry.file < index.files().size());
  }
  std::set<std::string_view> files;
  for (const std::string_view file : index.files()) {
    require(files.insert(file).second);
    require(file.size() <= brisk::kIndexFileNameBytesMax && file.ends_with(".safetensors"));
    require(file.find('/') == std::string_view::npos);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    check(brisk::WeightIndex::parse(std::as_bytes(std::span(data, size))));
  } catch (const brisk::InvalidIndex&) {
    return 0;  // refused: all that may happen to a bad index
  }
  return 0;
}
