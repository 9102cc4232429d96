// Reading, pools and counters, as Python sees them.
#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/file_buffer.hpp"
#include "bindings/python.hpp"
#include "bindings/texts.hpp"
#include "brisk/cancel_token.hpp"
#include "brisk/chunk.hpp"
#include "brisk/counters.hpp"
#include "brisk/gathered_file.hpp"
#include "brisk/huge_pages.hpp"
#include "brisk/pool.hpp"
#include "brisk/read_files.hpp"
#include "brisk/trial_read.hpp"
#include "brisk/whole_file.hpp"

namespace brisk::bindings {
namespace {

using Cancel = std::shared_ptr<CancelToken>;

constexpr std::array<std::pair<std::string_view, PoolKind>, 4> kPoolKinds = {{
    {"hugetlb", PoolKind::kHugetlb},
    {"tmpfs", PoolKind::kTmpfs},
    {"private", PoolKind::kPrivate},
    {"small", PoolKind::kSmall},
}};

const char* name_of(Engine engine) { return engine == Engine::kUring ? "uring" : "pread"; }

std::string_view name_of(PoolKind kind) {
  for (const auto& [name, value] : kPoolKinds) {
    if (value == kind) return name;
  }
  return "unknown";
}

std::optional<PoolKind> to_pool_kind(std::string_view wanted) {
  if (wanted == "auto") return std::nullopt;
  for (const auto& [name, value] : kPoolKinds) {
    if (name == wanted) return value;
  }
  throw py::value_error("kind must be auto, hugetlb, tmpfs, private or small, not " +
                        std::string(wanted));
}

unsigned to_unsigned(std::int64_t value) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(value, 0, UINT32_MAX));
}

// Warns once in a process of what makes reads slow.
void notice(const FilesInMemory& result, const std::filesystem::path& path, bool is_in_pool) {
  if (result.buffered_bytes == 0 && (result.huge_pages || !is_in_pool)) return;
  py::module_::import("brisk_native._notices")
      .attr("note_read")(from_path(path), result.buffered_bytes, is_in_pool, result.huge_pages);
}

py::object to_result(const FilesInMemory& result) {
  return shared_type("ReadResult")(
      py::arg("bytes_read") = result.bytes(), py::arg("direct") = result.direct,
      py::arg("huge_pages") = result.huge_pages, py::arg("seconds") = result.elapsed.count(),
      py::arg("engine") = name_of(result.engine), py::arg("direct_bytes") = result.direct_bytes,
      py::arg("buffered_bytes") = result.buffered_bytes);
}

py::tuple read_file(const py::object& path, std::int64_t threads,
                    const std::optional<Checksums>& expected, const Progress& progress,
                    const Cancel& cancel) {
  const FileToRead source{.path = to_path(path), .expected = expected};
  const ReadFilesOptions options{.read = {.threads = to_unsigned(threads)},
                                 .watch = make_watch(progress),
                                 .cancel = cancel.get()};
  FilesInMemory result = [&] {
    const py::gil_scoped_release nogil;
    return brisk::read_files({&source, 1}, options);
  }();
  notice(result, source.path, false);
  return py::make_tuple(std::make_unique<FileBuffer>(std::move(result.files.front())),
                        to_result(result));
}

using Expected = std::optional<std::vector<std::optional<Checksums>>>;
using Order = std::optional<std::vector<std::pair<std::uint32_t, std::uint64_t>>>;

std::vector<FileToRead> to_sources(const std::vector<py::object>& paths, const Expected& expected) {
  if (expected && expected->size() != paths.size()) {
    throw py::value_error("expected_crc32c must have one entry per file");
  }
  std::vector<FileToRead> sources;
  for (std::size_t i = 0; i < paths.size(); ++i) {
    sources.push_back({.path = to_path(paths[i])});
    if (expected && (*expected)[i]) sources.back().expected = *(*expected)[i];
  }
  return sources;
}

// Returns buffers that share the memory of `files`.
py::list to_buffers(const std::vector<FileMemory>& files) {
  py::list buffers;
  for (const FileMemory& file : files) buffers.append(std::make_unique<FileBuffer>(file));
  return buffers;
}

py::tuple read_files(const std::vector<py::object>& paths, const py::object& settings,
                     const Order& order, const Expected& expected,
                     const std::shared_ptr<Pool>& pool, const Progress& progress,
                     const std::vector<std::uint64_t>& milestones, const Progress& on_milestone,
                     const Progress& on_buffers, const Cancel& cancel) {
  const std::vector<FileToRead> sources = to_sources(paths, expected);
  ReadFilesOptions options{.read = to_options(settings),
                           .milestones = milestones,
                           .pool = pool.get(),
                           .watch = make_watch(progress),
                           .cancel = cancel.get()};
  for (const auto& [file, chunk] : order.value_or(Order::value_type{})) {
    options.order.push_back({.file = file, .chunk = chunk});
  }
  options.on_milestone = [&on_milestone](std::uint64_t chunks) {
    const py::gil_scoped_acquire gil;
    if (on_milestone) (*on_milestone)(chunks);
  };
  options.on_memory = [&on_buffers](const std::vector<FileMemory>& files) {
    if (!on_buffers) return;
    const py::gil_scoped_acquire gil;
    (*on_buffers)(to_buffers(files));
  };
  const FilesInMemory result = [&] {
    const py::gil_scoped_release nogil;
    return brisk::read_files(sources, options);
  }();
  if (!sources.empty()) notice(result, sources.front().path, pool != nullptr);
  return py::make_tuple(to_buffers(result.files), to_result(result));
}

py::tuple trial_read(const py::object& path, const py::object& settings, std::uint64_t first,
                     std::uint64_t count, double seconds_max) {
  const std::filesystem::path source = to_path(path);
  const ReadOptions options = to_options(settings);
  const TrialRead trial = [&] {
    const py::gil_scoped_release nogil;
    return brisk::trial_read(source, options, first, count,
                             std::chrono::duration<double>(seconds_max));
  }();
  return py::make_tuple(trial.bytes, trial.elapsed.count(), name_of(trial.engine), trial.direct);
}

// Runs `job` without the GIL. `progress` and `cancel` belong to the caller, who waits for us.
template <typename Job>
auto run(std::int64_t threads, const Progress& progress, const Cancel& cancel, const Job& job) {
  JobOptions options;
  options.threads = to_unsigned(threads);
  options.watch = [watch = make_watch(progress)](std::uint64_t bytes, std::size_t) {
    watch(bytes);
  };
  options.cancel = cancel.get();
  const py::gil_scoped_release nogil;
  return job(options);
}

Checksums checksum_file(const py::object& path, std::int64_t threads, const Progress& progress,
                        const Cancel& cancel) {
  return run(threads, progress, cancel, [source = to_path(path)](const JobOptions& options) {
    return brisk::checksum_file(source, options);
  });
}

Checksums copy_file(const py::object& source, const py::object& target, const Progress& progress,
                    const Cancel& cancel) {
  constexpr std::int64_t kThreads = 2;  // one reads while the other writes
  return run(kThreads, progress, cancel,
             [from = to_path(source), to = to_path(target)](const JobOptions& options) {
               return brisk::copy_file(from, to, options);
             });
}

// (source, offset, size, target) of each piece; (path, checksums or None) of each source.
using Pieces = std::vector<std::array<std::uint64_t, 4>>;
using Sources = std::vector<std::pair<py::object, std::optional<Checksums>>>;

py::tuple gather_file(const py::object& target, const py::object& prefix, const Pieces& pieces,
                      const Sources& sources, std::uint64_t size, std::int64_t threads,
                      const Progress& progress, const Cancel& cancel) {
  const PinnedBuffer prefix_bytes(prefix);
  GatherPlan plan{.prefix = prefix_bytes.bytes(), .pieces = {}, .size = size};
  plan.pieces.reserve(pieces.size());
  for (const auto& [source, offset, piece_bytes, place] : pieces) {
    // A number beyond the sources stays one.
    const auto number = static_cast<std::uint32_t>(std::min<std::uint64_t>(source, UINT32_MAX));
    plan.pieces.push_back(
        {.source = number, .offset = offset, .size = piece_bytes, .target = place});
  }
  std::vector<GatherSource> files;
  files.reserve(sources.size());
  for (const auto& [path, expected] : sources) files.push_back({to_path(path), expected});
  const GatheredFile made =
      run(threads, progress, cancel, [&, to = to_path(target)](const JobOptions& options) {
        return brisk::gather_file(to, plan, files, options);
      });
  return py::make_tuple(made.checksums, made.direct_reads && made.direct_writes);
}

std::shared_ptr<Pool> make_pool(std::size_t size_bytes, const std::string& kind,
                                const py::object& folder, const std::string& name, bool populate) {
  const PoolOptions options{.kind = to_pool_kind(kind),
                            .folder = folder.is_none() ? std::filesystem::path() : to_path(folder),
                            .populate = populate,
                            .name = name};
  const auto pool = [&] {
    const py::gil_scoped_release nogil;
    return std::make_shared<Pool>(size_bytes, options);
  }();
  if (pool->kind() == PoolKind::kSmall && !options.kind) {
    py::dict refusals;
    for (const auto& [refused, why] : pool->refusals()) {
      refusals[to_str(name_of(refused))] = why.message();
    }
    py::module_::import("brisk_native._notices").attr("note_pool")(refusals);
  }
  return pool;
}

// Waits in short pieces, so that Ctrl-C gets through.
bool wait_populated(const Pool& pool, std::optional<double> timeout) {
  constexpr std::chrono::duration<double> kPiece{0.02};
  const auto begin = std::chrono::steady_clock::now();
  for (;;) {
    bool is_populated = false;
    {
      const py::gil_scoped_release nogil;
      is_populated = pool.wait_populated(kPiece);
    }
    if (is_populated) return true;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - begin;
    if (timeout && waited.count() >= *timeout) return false;
  }
}

std::unique_ptr<FileBuffer> view_of(Pool& pool, std::size_t offset, std::size_t size) {
  return std::make_unique<FileBuffer>(pool.view(offset, size), !pool.kind().has_value());
}

// Walks through the process's memory: called without the GIL.
std::size_t page_bytes_of(const Pool& pool) {
  return pool.in_huge_pages() ? kHugePageBytes : kDirectAlignment;
}

py::object path_of(const Pool& pool) {
  const auto path = pool.path();
  return path ? py::object(from_path(*path)) : py::none();
}

py::object to_python(const Counters& all) {
  return shared_type("Counters")(
      py::arg("direct_bytes") = all.direct_bytes, py::arg("buffered_bytes") = all.buffered_bytes,
      py::arg("uring_bytes") = all.uring_bytes, py::arg("verified_bytes") = all.verified_bytes,
      py::arg("huge_page_bytes") = all.huge_page_bytes,
      py::arg("small_page_bytes") = all.small_page_bytes);
}

void bind_buffers(py::module_& m) {
  py::class_<CancelToken, Cancel>(m, "CancelToken",
                                  "Ends the jobs it was given to within one read; thread-safe.")
      .def(py::init<>())
      .def("cancel", &CancelToken::cancel, "End the jobs, now and for ever.")
      .def_property_readonly("cancelled", &CancelToken::cancelled,
                             "True once `cancel` was called.");
  // Unmapping gigabytes takes milliseconds: other Python threads may run meanwhile.
  py::class_<FileBuffer>(m, "FileBuffer", py::buffer_protocol(),
                         py::release_gil_before_calling_cpp_dtor(),
                         "The page-aligned bytes of a file; freed with its last view.")
      .def("__len__", [](const FileBuffer& self) { return self.bytes().size(); })
      .def_property_readonly("pool_offset", &FileBuffer::pool_offset,
                             "Where it begins in its pool, in bytes; None if it is in none.")
      .def_buffer([](const FileBuffer& self) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(self.bytes().data()),
                               static_cast<py::ssize_t>(self.bytes().size()), self.is_readonly());
      });
}

void bind_pool(py::module_& m) {
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<Pool, std::shared_ptr<Pool>>(m, "Pool", py::release_gil_before_calling_cpp_dtor(),
                                          kPoolText)
      .def(py::init(&make_pool), py::arg("size_bytes"), py::kw_only(), py::arg("kind") = "auto",
           py::arg("folder") = py::none(), py::arg("name") = "", py::arg("populate") = true)
      .def_static(
          "attach", [](const py::object& path) { return std::make_shared<Pool>(to_path(path)); },
          py::arg("path"), "Look into the pool of another process.")
      .def_static(
          "adopt", [](const py::object& path) { return Pool::adopt(to_path(path)); },
          py::arg("path"), "Take up the pool that another process left.")
      .def("view", &view_of, py::arg("offset"), py::arg("size_bytes"), "Return a part of the pool.")
      .def("wait_populated", &wait_populated, py::arg("timeout") = py::none(),
           "Wait until populating ended.")
      .def("close", &Pool::close, py::call_guard<py::gil_scoped_release>(),
           "Let nothing more be allocated; the memory goes with its last view.")
      .def("__enter__", [](const std::shared_ptr<Pool>& self) { return self; })
      .def("__exit__",
           [](Pool& self, const py::args&) {
             const py::gil_scoped_release nogil;
             self.close();
           })
      .def_property_readonly("closed", &Pool::is_closed, "True once `close` was called.")
      .def_property_readonly(
          "kind",
          [](const Pool& self) {
            const auto kind = self.kind();
            return to_str(kind ? name_of(*kind) : "attached");
          },
          "What it is made of; \"attached\" if another process made it.")
      .def_property_readonly("page_bytes", py::cpp_function(&page_bytes_of, without_gil),
                             "Size of its pages, as `huge_pages` says: 2 MiB or 4 KiB.")
      .def_property_readonly("huge_pages", py::cpp_function(&Pool::in_huge_pages, without_gil),
                             "True if at least half of what was faulted in lies in 2 MiB pages.")
      .def_property_readonly("size_bytes", &Pool::size, "Its size, a multiple of 2 MiB.")
      .def_property_readonly("free_bytes", &Pool::free_bytes,
                             "What is free, maybe in several pieces.")
      .def_property_readonly("populated", &Pool::populated, "Bytes that were faulted in so far.")
      .def_property_readonly("path", &path_of,
                             "What `attach` takes; None if no other process can attach.");
}

}  // namespace

ReadOptions to_options(const py::object& settings) {
  const auto engine = settings.attr("engine").cast<std::string>();
  if (engine != "pread" && engine != "uring") {
    throw py::value_error("engine must be pread or uring, not " + engine);
  }
  const auto read_bytes = settings.attr("read_bytes").cast<std::int64_t>();
  return {.engine = engine == "uring" ? Engine::kUring : Engine::kPread,
          .threads = to_unsigned(settings.attr("threads").cast<std::int64_t>()),
          .depth = to_unsigned(settings.attr("depth").cast<std::int64_t>()),
          .read_bytes = static_cast<std::size_t>(std::max<std::int64_t>(read_bytes, 0))};
}

void bind_reading(py::module_& m) {
  bind_buffers(m);
  bind_pool(m);
  const auto no_cancel = Cancel();
  m.def("read_file", read_file, py::arg("path"), py::kw_only(), py::arg("threads") = 4,
        py::arg("expected_crc32c") = py::none(), py::arg("progress") = py::none(),
        py::arg("cancel") = no_cancel, "Read a whole file into fresh page-aligned memory.");
  m.def("read_files", read_files, py::arg("paths"), py::kw_only(), py::arg("settings"),
        py::arg("order") = py::none(), py::arg("expected_crc32c") = py::none(),
        py::arg("pool") = std::shared_ptr<Pool>(), py::arg("progress") = py::none(),
        py::arg("milestones") = std::vector<std::uint64_t>(), py::arg("on_milestone") = py::none(),
        py::arg("on_buffers") = py::none(), py::arg("cancel") = no_cancel,
        "Read whole files, through one queue over all of them.");
  m.def("trial_read", trial_read, py::arg("path"), py::arg("settings"), py::kw_only(),
        py::arg("first"), py::arg("count"), py::arg("seconds_max"),
        "Measure one way of reading on some chunks of a file.");
  m.def("checksum_file", checksum_file, py::arg("path"), py::kw_only(), py::arg("threads") = 2,
        py::arg("progress") = py::none(), py::arg("cancel") = no_cancel,
        "Return the CRC32C of each chunk of a file.");
  m.def("copy_file", copy_file, py::arg("src"), py::arg("dst"), py::kw_only(),
        py::arg("progress") = py::none(), py::arg("cancel") = no_cancel,
        "Copy a file to a new one and return the CRC32C of each chunk.");
  m.def("gather_file", gather_file, py::arg("dst"), py::kw_only(), py::arg("prefix"),
        py::arg("pieces"), py::arg("sources"), py::arg("size_bytes"), py::arg("threads") = 4,
        py::arg("progress") = py::none(), py::arg("cancel") = no_cancel,
        "Put a new file together from ranges of others.");
  m.def(
      "counters", [] { return to_python(brisk::counters()); },
      "Return what this process has read so far, and how.");
}

}  // namespace brisk::bindings
