// The header parser's promise: a header is believed only if every byte of the file belongs to
// exactly one tensor, and one that lies is refused in time and memory that its file does not set.
#include "brisk/safetensors_header.hpp"

#include <sys/resource.h>
#include <time.h>

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "brisk/errors.hpp"
#include "check.hpp"
#include "scratch.hpp"

namespace {

using brisk::InvalidHeader;
using brisk::SafetensorsHeader;

scratch::Bytes file_of(std::string_view json, std::size_t data_bytes) {
  scratch::Bytes file;
  for (unsigned byte = 0; byte < 8; ++byte) {
    file.push_back(static_cast<std::byte>(std::uint64_t{json.size()} >> (8 * byte)));
  }
  for (const char sign : json) file.push_back(static_cast<std::byte>(sign));
  file.resize(file.size() + data_bytes);
  return file;
}

SafetensorsHeader parse(std::string_view json, std::size_t data_bytes) {
  const scratch::Bytes file = file_of(json, data_bytes);
  return SafetensorsHeader::parse(file, file.size());
}

std::string joined(std::initializer_list<std::string_view> parts) {
  std::string whole;
  for (const std::string_view part : parts) whole.append(part);
  return whole;
}

std::string entry(std::string_view name, std::uint64_t begin, std::uint64_t end) {
  return joined({"\"", name, R"(":{"dtype":"U8","shape":[)", std::to_string(end - begin),
                 R"(],"data_offsets":[)", std::to_string(begin), ",", std::to_string(end), "]}"});
}

// A header of these members.
std::string header_of(std::initializer_list<std::string_view> members) {
  std::string whole = "{";
  for (const std::string_view member : members) {
    if (whole.size() > 1) whole.append(",");
    whole.append(member);
  }
  return whole.append("}");
}

void check_refused(std::string_view json, std::size_t data_bytes, std::string_view reason) {
  try {
    static_cast<void>(parse(json, data_bytes));
  } catch (const InvalidHeader& error) {
    CHECK(std::string_view(error.what()).find(reason) != std::string_view::npos);
    return;
  }
  check::report(std::string(json).c_str(), std::source_location::current());
}

double processor_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

// Checks that `json` is refused within 50 ms of processor time, which other work on the machine
// does not lengthen, and 50 MB. The time counts only in a build for speed.
void check_refused_cheaply(const std::string& json) {
  const scratch::Bytes file = file_of(json, 0);
  const auto resident_kib = [] {
    rusage usage{};
    ::getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  [[maybe_unused]] const long before_kib = resident_kib();
  const double begin_ms = processor_ms();
  CHECK_THROWS(InvalidHeader, SafetensorsHeader::parse(file, file.size()));
  const double took_ms = processor_ms() - begin_ms;
  std::printf("refused %zu bytes in %.1f ms\n", json.size(), took_ms);
#ifndef __SANITIZE_THREAD__  // its shadow memory is resident too
  CHECK(resident_kib() - before_kib < 50'000);
#endif
#ifdef BRISK_FOR_SPEED
  CHECK(took_ms < 50);
#endif
}

}  // namespace

TEST("a sound header is read in the order of its bytes") {
  const auto header = parse(
      R"({"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},"__metadata__":{"format":"pt"},)"
      R"( "a" : {"shape":[2,3], "data_offsets":[0,24], "dtype":"F32"} }  )",
      32);
  CHECK(header.tensors().size() == 2);
  CHECK(header.tensors()[0].name == "a" && header.tensors()[1].name == "b");
  CHECK(header.tensors()[0].dtype->name == "F32" && header.tensors()[0].dtype->bits == 32);
  CHECK(header.tensors()[0].shape.size() == 2 && header.tensors()[0].shape[1] == 3);
  CHECK(header.tensors()[1].begin == 24 && header.tensors()[1].end == 32);
  CHECK(header.metadata().size() == 1 && header.metadata()[0].second == "pt");
  CHECK(header.file_bytes() == header.data_offset() + 32);
}

TEST("a header can be moved and its names stay") {
  auto first = parse(header_of({entry("kept", 0, 3)}), 3);
  const SafetensorsHeader second = std::move(first);
  CHECK(second.tensors()[0].name == "kept" && second.tensors()[0].shape[0] == 3);
}

TEST("escapes and every length of UTF-8 come out as what they stand for") {
  const auto header = parse(header_of({entry(R"(\u0041\/\n\\\"\u00e9\u20AC\ud83d\ude00)", 0, 1),
                                       entry("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", 1, 2)}),
                            2);
  CHECK(header.tensors()[0].name == "A/\n\\\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK(header.tensors()[1].name == "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
}

TEST("text that is not UTF-8 or not a JSON string is refused") {
  for (const char* name :
       {"\xFF", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xC3", "\x01",
        R"(\ud800)", R"(\udc00)", R"(\ud800\u0041)", R"(\x)", R"(\u12g4)", R"(\u12)"}) {
    check_refused(header_of({entry(name, 0, 1)}), 1, "not JSON in UTF-8");
  }
}

TEST("every byte belongs to exactly one tensor") {
  check_refused(header_of({entry("a", 1, 2)}), 2, "tensor a: leaves a hole");
  check_refused(header_of({entry("a", 0, 2), entry("b", 1, 3)}), 3, "b: overlaps");
  check_refused(header_of({entry("a", 0, 2), entry("b", 0, 2)}), 2, "b: overlaps");
  check_refused(header_of({entry("a", 0, 2)}), 3, "1 bytes that belong to no tensor");
  check_refused(header_of({entry("a", 0, 2)}), 1, "truncated");
  check_refused("{}", 1, "belong to no tensor");
  CHECK(parse("{}", 0).tensors().empty());
}

TEST("names and keys are there once, whatever they are spelt like") {
  check_refused(header_of({entry("a", 0, 1), entry(R"(\u0061)", 1, 2)}), 2, "a: is there twice");
  check_refused(R"({"__metadata__":{"a":"","a":""}})", 0, "metadata twice");
  check_refused(R"({"__metadata__":{},"\u005f_metadata__":{}})", 0, "metadata twice");
  check_refused(R"({"a":{"dtype":"U8","dtype":"U8","shape":[],"data_offsets":[0,1]}})", 1, "twice");
}

TEST("arithmetic does not wrap") {
  const auto shaped = [](const char* shape) {
    return joined({R"({"a":{"dtype":"F64","shape":)", shape, R"(,"data_offsets":[0,0]}})"});
  };
  check_refused(shaped("[4294967296,4294967296]"), 0, "too large");
  check_refused(shaped("[9223372036854775807]"), 0, "too large");
  check_refused(shaped("[9223372036854775808]"), 0, "at most 9223372036854775807");
  check_refused(shaped("[99999999999999999999999999]"), 0, "at most");
  CHECK(parse(shaped("[0,9223372036854775807]"), 0).tensors().size() == 1);
}

TEST("a length that no header can have is refused before anything is read") {
  for (const std::uint64_t length : {~std::uint64_t{0}, brisk::kHeaderBytesMax + 1}) {
    scratch::Bytes file = file_of("{}", 0);
    for (unsigned byte = 0; byte < 8; ++byte)
      file[byte] = static_cast<std::byte>(length >> 8 * byte);
    CHECK_THROWS(InvalidHeader, SafetensorsHeader::parse(file, ~std::uint64_t{0}));
  }
  const scratch::Bytes file = file_of("{}", 0);
  for (std::size_t bytes = 0; bytes < file.size(); ++bytes) {
    CHECK_THROWS(InvalidHeader, SafetensorsHeader::parse(std::span(file).first(bytes), bytes));
    CHECK_THROWS(InvalidHeader, SafetensorsHeader::parse(std::span(file).first(bytes), 10));
  }
}

TEST("the largest headers are refused within 50 ms and 50 MB") {
  std::string tensors = "{";
  for (std::uint64_t place = 1; place < brisk::kHeaderTensorsMax; ++place) {
    const std::uint64_t scattered = place * 60'013 % 100'003;  // so that there is much to sort
    const std::string name =
        joined({"model.layers.7.mlp.experts.gate_and_up.weight.", std::to_string(scattered)});
    tensors.append(entry(name, scattered, scattered + 1)).append(",");
  }
  check_refused_cheaply(tensors.append(entry("model", 200'000, 200'001)).append("}"));
  std::string wide = "{";
  for (int place = 0; wide.size() < brisk::kHeaderBytesMax - 700; ++place) {
    wide.append(joined({"\"", std::to_string(place),
                        R"(":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],)",
                        R"("data_offsets":[0,1]},)"}));
  }
  check_refused_cheaply(wide.append(entry("a", 0, 1)).append("}"));
  const std::size_t room = brisk::kHeaderBytesMax - 100;
  check_refused_cheaply(std::string(room, '['));
  check_refused_cheaply(joined({R"({"a":)", std::string(room, '{')}));
  check_refused_cheaply(joined({"{\"", std::string(room, 'n'), "\":1}"}));
  check_refused_cheaply(joined({"{", std::string(room, ' ')}));
  std::string metadata = R"({"__metadata__":{)";
  while (metadata.size() < room) metadata += R"("":"",)";
  check_refused_cheaply(metadata);
  std::string escapes = R"({"__metadata__":{"a":")";
  while (escapes.size() < room) escapes += R"(\u00e9)";
  check_refused_cheaply(escapes.append("\"}"));
}

TEST("a file is read no further than its header, and one that shrinks is a short read") {
  const scratch::Folder folder;
  const auto path = folder / "f.safetensors";
  scratch::write(path, file_of(header_of({entry("a", 0, 5)}), 5));
  CHECK(SafetensorsHeader::read(path).tensors()[0].end == 5);
  brisk::SystemCalls calls;
  calls.pread = [real = calls.pread](int fd, void* target, std::size_t length, off_t offset) {
    return offset == 0 ? real(fd, target, length, offset) : 0;
  };
  CHECK_THROWS(brisk::ShortRead, SafetensorsHeader::read(path, calls));
  scratch::write(path, std::span<const std::byte>());
  CHECK_THROWS(InvalidHeader, SafetensorsHeader::read(path));
}

TEST("padding is told from a tensor of its name by the form alone") {
  constexpr std::string_view kPadding = R"("__brisk_padding__.0":)";
  const std::string entry_text =
      joined({kPadding, R"({"dtype":"U8","shape":[3],"data_offsets":[0,3]})"});
  const std::string form = R"("__metadata__":{"a":"b","brisk_form":"1"})";
  const SafetensorsHeader stored = parse(header_of({entry_text, form}), 3);
  CHECK(stored.is_stored_form());
  CHECK(stored.is_padding(stored.tensors()[0]));
  const SafetensorsHeader other = parse(header_of({entry_text}), 3);
  CHECK(!other.is_stored_form());
  CHECK(!other.is_padding(other.tensors()[0]));
}
