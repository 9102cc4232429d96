// The index parser's promise: what it accepts names each tensor once and no file outside of its
// folder, and what lies is refused in time and memory that follow from its length.
#include "brisk/weight_index.hpp"

#include <string>
#include <string_view>
#include <utility>

#include "brisk/errors.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::InvalidIndex;
using brisk::WeightIndex;

WeightIndex parse(std::string_view text) {
  return WeightIndex::parse(std::as_bytes(std::span(text.data(), text.size())));
}

std::string map_of(std::string_view entries) {
  return std::string(R"({"metadata":{"total_size":7},"weight_map":{)").append(entries).append("}}");
}

}  // namespace

TEST("an index keeps its names wherever it is moved") {
  WeightIndex first = parse(map_of(R"("\u0061":"2.safetensors","b":"1.safetensors",)"
                                   R"("c":"2.safetensors")"));
  const WeightIndex index = std::move(first);
  CHECK(index.tensors().size() == 3);
  CHECK(index.files().size() == 2);
  CHECK(index.files()[0] == "2.safetensors" && index.files()[1] == "1.safetensors");
  CHECK(index.tensors()[0].tensor == "a" && index.tensors()[0].file == 0);
  CHECK(index.tensors()[1].tensor == "b" && index.tensors()[1].file == 1);
  CHECK(index.tensors()[2].tensor == "c" && index.tensors()[2].file == 0);
}

TEST("an index that is cut short anywhere is refused") {
  const std::string whole = map_of(R"("a":"1.safetensors","b":"1.safetensors")");
  CHECK(parse(whole).tensors().size() == 2);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    CHECK_THROWS(InvalidIndex, parse(std::string_view(whole).substr(0, length)));
  }
}

TEST("an index is read from its file, and no more of it than may be") {
  const scratch::Folder folder;
  const std::string text = map_of(R"("a":"1.safetensors")");
  scratch::write(folder / "index", std::as_bytes(std::span(text)));
  CHECK(WeightIndex::read(folder / "index").tensors().size() == 1);
  std::filesystem::resize_file(folder / "index", brisk::kIndexBytesMax + 1);
  CHECK_THROWS(InvalidIndex, WeightIndex::read(folder / "index"));
}

TEST("an index whose names are all alike, or all of one checksum, is refused in no time") {
  std::string twice;
  for (int i = 0; i < 100'000; ++i) twice += R"("same":"1.safetensors",)";
  twice.pop_back();
  CHECK_THROWS(InvalidIndex, parse(map_of(twice)));
}
