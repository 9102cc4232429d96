// The manifest parser's promise: what it accepts is whole and leads to no other folder, and what
// lies is refused in time and memory that follow from its length alone.
#include "brisk/manifest.hpp"

#include <string>
#include <string_view>

#include "brisk/errors.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::InvalidManifest;
using brisk::Manifest;

constexpr std::string_view kHead = R"({"version":2,"form":1,"chunk_bytes":4194304,"files":[)";

Manifest parse(std::string_view text) {
  return Manifest::parse(std::as_bytes(std::span(text.data(), text.size())));
}

std::string repeated(std::string_view part, std::size_t times) {
  std::string whole;
  whole.reserve(part.size() * times);
  for (std::size_t time = 0; time < times; ++time) whole.append(part);
  return whole;
}

std::string manifest_of(std::string_view files) {
  return std::string(kHead).append(files).append("]}");
}

}  // namespace

TEST("a manifest keeps its names and checksums wherever it is moved") {
  Manifest first = parse(manifest_of(
      R"({"name":"\u0061","size_bytes":4194305,"crc32c":["00000000","deadbeef"],"kind":"x"})"));
  const Manifest manifest = std::move(first);
  CHECK(manifest.version() == 2);
  CHECK(manifest.form() == 1);
  CHECK(manifest.files().size() == 1);
  CHECK(manifest.files()[0].name == "a");
  CHECK(manifest.files()[0].crc32c.size() == 2);
  CHECK(manifest.files()[0].crc32c[1] == 0xdeadbeef);
}

TEST("a manifest that is cut short anywhere is refused") {
  const std::string whole = manifest_of(
      R"({"name":"a","size_bytes":1,"crc32c":["00000000"],"x":[{"y":-1.5e3},null,"\n"]})");
  CHECK(parse(whole).files().size() == 1);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    CHECK_THROWS(InvalidManifest, parse(std::string_view(whole).substr(0, length)));
  }
}

TEST("a manifest of nothing but brackets, names or checksums is refused within its length") {
  CHECK_THROWS(InvalidManifest, parse(repeated("[", 1 << 20)));
  CHECK_THROWS(InvalidManifest, parse(manifest_of(repeated("{\"x\":", 1 << 18))));
  CHECK_THROWS(InvalidManifest, parse(manifest_of(repeated(R"({"name":"a"},)", 1 << 16))));
  const std::string checksums = repeated(R"("00000000",)", 1 << 17) + R"("00000000")";
  CHECK_THROWS(InvalidManifest,
               parse(manifest_of(R"({"name":"a","size_bytes":1,"crc32c":[)" + checksums + "]}")));
}

TEST("a manifest that shrinks while it is read is refused as such") {
  const scratch::Folder folder;
  scratch::write(folder / "brisk.json", scratch::noise(100));
  brisk::SystemCalls calls;
  calls.pread = [](int, void*, std::size_t, off_t) { return ssize_t{0}; };
  CHECK_THROWS(brisk::ShortRead, Manifest::read(folder / "brisk.json", calls));
}
