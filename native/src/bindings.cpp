// The Python face of the library, and the only file that knows Python. Arguments become plain C++
// values while the GIL is held; the work runs without it; the reading threads never see Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "brisk/cancel_token.hpp"
#include "brisk/chunk.hpp"
#include "brisk/crc32c.hpp"
#include "brisk/errors.hpp"
#include "brisk/gathered_file.hpp"
#include "brisk/manifest.hpp"
#include "brisk/page_buffer.hpp"
#include "brisk/safetensors_header.hpp"
#include "brisk/whole_file.hpp"

namespace py = pybind11;

namespace {

using Progress = std::optional<py::function>;
using Checksums = std::vector<std::uint32_t>;

// Owns the memory of a file that was read; every view of it keeps this object alive.
class FileBuffer {
 public:
  explicit FileBuffer(brisk::PageBuffer pages) noexcept : pages_(std::move(pages)) {}
  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return pages_.bytes(); }

 private:
  brisk::PageBuffer pages_;
};

// Keeps a Python buffer in place for as long as this object lives. Needs the GIL at both ends.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(const py::object& owner) {
    if (PyObject_GetBuffer(owner.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~PinnedBuffer() { PyBuffer_Release(&view_); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  [[nodiscard]] std::span<const std::byte> bytes() const noexcept {
    return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

py::object shared_type(const char* name) {
  return py::module_::import("brisk_native._types").attr(name);
}

// Accepts what os.open accepts, and fails as it does: TypeError, or ValueError for a NUL.
std::filesystem::path to_path(const py::object& path) {
  PyObject* encoded = nullptr;
  if (PyUnicode_FSConverter(path.ptr(), &encoded) == 0) throw py::error_already_set();
  return {std::string(py::reinterpret_steal<py::bytes>(encoded))};
}

py::str from_path(const std::filesystem::path& path) {
  const std::string& text = path.native();
  PyObject* decoded =
      PyUnicode_DecodeFSDefaultAndSize(text.data(), static_cast<py::ssize_t>(text.size()));
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(decoded);
}

// What runs on the calling thread about every 20 ms: lets Ctrl-C in and reports progress.
brisk::Watch make_watch(const Progress& progress) {
  return [&progress](std::uint64_t bytes_done, std::size_t) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (progress) (*progress)(bytes_done);
  };
}

// Runs `job` without the GIL. `progress` and `cancel` belong to the caller, who waits for us.
template <typename Job>
auto run(std::int64_t threads, const Progress& progress,
         const std::shared_ptr<brisk::CancelToken>& cancel, const Job& job) {
  brisk::JobOptions options;
  options.threads = static_cast<unsigned>(std::clamp<std::int64_t>(threads, 0, UINT32_MAX));
  options.watch = make_watch(progress);
  options.cancel = cancel.get();
  const py::gil_scoped_release nogil;
  return job(options);
}

py::tuple read_file(const py::object& path, std::int64_t threads,
                    const std::optional<Checksums>& expected, const Progress& progress,
                    const std::shared_ptr<brisk::CancelToken>& cancel) {
  brisk::WholeFile file =
      run(threads, progress, cancel,
          [source = to_path(path), &expected](const brisk::JobOptions& options) {
            return brisk::read_file(source, expected, options);
          });
  const py::object result = shared_type("ReadResult")(
      py::arg("bytes_read") = file.bytes.size(), py::arg("direct") = file.direct,
      py::arg("huge_pages") = file.huge_pages, py::arg("seconds") = file.elapsed.count());
  return py::make_tuple(std::make_unique<FileBuffer>(std::move(file.bytes)), result);
}

Checksums checksum_file(const py::object& path, std::int64_t threads, const Progress& progress,
                        const std::shared_ptr<brisk::CancelToken>& cancel) {
  return run(threads, progress, cancel, [source = to_path(path)](const brisk::JobOptions& options) {
    return brisk::checksum_file(source, options);
  });
}

Checksums copy_file(const py::object& source, const py::object& target, const Progress& progress,
                    const std::shared_ptr<brisk::CancelToken>& cancel) {
  constexpr std::int64_t kThreads = 2;  // one reads while the other writes
  return run(kThreads, progress, cancel,
             [from = to_path(source), to = to_path(target)](const brisk::JobOptions& options) {
               return brisk::copy_file(from, to, options);
             });
}

// (source, offset, size, target) of each piece; (path, checksums or None) of each source.
using Pieces = std::vector<std::array<std::uint64_t, 4>>;
using Sources = std::vector<std::pair<py::object, std::optional<Checksums>>>;

py::tuple gather_file(const py::object& target, const py::object& prefix, const Pieces& pieces,
                      const Sources& sources, std::uint64_t size, std::int64_t threads,
                      const Progress& progress, const std::shared_ptr<brisk::CancelToken>& cancel) {
  const PinnedBuffer prefix_bytes(prefix);
  brisk::GatherPlan plan{.prefix = prefix_bytes.bytes(), .pieces = {}, .size = size};
  plan.pieces.reserve(pieces.size());
  for (const auto& [source, offset, piece_bytes, place] : pieces) {
    // A number beyond the sources stays one.
    const auto number = static_cast<std::uint32_t>(std::min<std::uint64_t>(source, UINT32_MAX));
    plan.pieces.push_back(
        {.source = number, .offset = offset, .size = piece_bytes, .target = place});
  }
  std::vector<brisk::GatherSource> files;
  files.reserve(sources.size());
  for (const auto& [path, expected] : sources) files.push_back({to_path(path), expected});
  const brisk::GatheredFile made =
      run(threads, progress, cancel, [&, to = to_path(target)](const brisk::JobOptions& options) {
        return brisk::gather_file(to, plan, files, options);
      });
  return py::make_tuple(made.checksums, made.direct_reads && made.direct_writes);
}

std::uint32_t crc32c(const py::object& data, std::uint32_t value) {
  const PinnedBuffer buffer(data);
  const py::gil_scoped_release nogil;
  return brisk::crc32c(buffer.bytes(), value);
}

py::str to_str(std::string_view utf8) { return py::str(utf8.data(), utf8.size()); }

py::object to_python(const brisk::SafetensorsHeader& header, const brisk::HeaderTensor& tensor,
                     const py::object& tensor_info) {
  py::tuple shape(tensor.shape.size());
  for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) shape[axis] = tensor.shape[axis];
  return tensor_info(py::arg("name") = to_str(tensor.name),
                     py::arg("dtype") = to_str(tensor.dtype->name), py::arg("shape") = shape,
                     py::arg("offset") = header.data_offset() + tensor.begin,
                     py::arg("size_bytes") = tensor.end - tensor.begin);
}

py::object to_python(const brisk::SafetensorsHeader& header) {
  const py::object tensor_info = shared_type("TensorInfo");
  py::list tensors;
  py::list padding;
  for (const brisk::HeaderTensor& tensor : header.tensors()) {
    (header.is_padding(tensor) ? padding : tensors).append(to_python(header, tensor, tensor_info));
  }
  py::dict metadata;
  for (const auto& [key, value] : header.metadata()) metadata[to_str(key)] = to_str(value);
  return shared_type("Header")(
      py::arg("data_offset") = header.data_offset(), py::arg("file_bytes") = header.file_bytes(),
      py::arg("tensors") = py::tuple(tensors), py::arg("metadata") = metadata,
      py::arg("padding") = py::tuple(padding));
}

py::object to_python(const brisk::Manifest& manifest) {
  const py::object manifest_file = shared_type("ManifestFile");
  py::tuple files(manifest.files().size());
  std::size_t place = 0;
  for (const brisk::ManifestFile& file : manifest.files()) {
    py::tuple checksums(file.crc32c.size());
    for (std::size_t chunk = 0; chunk < file.crc32c.size(); ++chunk) {
      checksums[chunk] = file.crc32c[chunk];
    }
    files[place++] =
        manifest_file(py::arg("name") = to_str(file.name), py::arg("size_bytes") = file.size_bytes,
                      py::arg("crc32c") = checksums);
  }
  return shared_type("Manifest")(py::arg("version") = manifest.version(),
                                 py::arg("form") = manifest.form(), py::arg("files") = files);
}

// Runs `parse` without the GIL; gives its refusal the name of the file.
template <typename Parse>
py::object parse_named(const std::filesystem::path& path, const Parse& parse) {
  try {
    const auto parsed = [&] {
      const py::gil_scoped_release nogil;
      return parse();
    }();
    return to_python(parsed);
  } catch (const brisk::InvalidManifest& error) {
    const py::object type = shared_type("InvalidCheckpointError");
    PyErr_SetObject(type.ptr(), type(from_path(path), error.what()).ptr());
    throw py::error_already_set();
  } catch (const brisk::InvalidHeader& error) {
    const py::object type = shared_type("InvalidHeaderError");
    const py::object tensor = error.tensor() ? to_str(*error.tensor()) : py::object(py::none());
    PyErr_SetObject(type.ptr(), type(from_path(path), tensor, error.reason()).ptr());
    throw py::error_already_set();
  }
}

py::object parse_header(const py::object& path) {
  const std::filesystem::path source = to_path(path);
  return parse_named(source, [&] { return brisk::SafetensorsHeader::read(source); });
}

py::object parse_header_bytes(const py::object& data, std::int64_t file_bytes,
                              const py::object& path) {
  if (file_bytes < 0) throw py::type_error("a file has no negative size");
  const PinnedBuffer buffer(data);
  return parse_named(to_path(path), [&] {
    return brisk::SafetensorsHeader::parse(buffer.bytes(), static_cast<std::uint64_t>(file_bytes));
  });
}

py::object parse_manifest(const py::object& path) {
  const std::filesystem::path source = to_path(path);
  return parse_named(source, [&] { return brisk::Manifest::read(source); });
}

py::object parse_manifest_bytes(const py::object& data, const py::object& path) {
  const PinnedBuffer buffer(data);
  return parse_named(to_path(path), [&] { return brisk::Manifest::parse(buffer.bytes()); });
}

void set_os_error(const std::error_code& code, const py::object& filename) {
  const py::handle os_error(PyExc_OSError);
  // Called with an errno, OSError itself picks the right subclass, such as FileNotFoundError.
  const py::object error = os_error(code.value(), code.message(), filename);
  PyErr_SetObject(py::type::of(error).ptr(), error.ptr());
}

void set_shared_error(const char* name, const py::object& error) {
  PyErr_SetObject(shared_type(name).ptr(), error.ptr());
}

void translate(std::exception_ptr raised) {
  try {
    if (raised) std::rethrow_exception(raised);
  } catch (const std::filesystem::filesystem_error& error) {
    set_os_error(error.code(), from_path(error.path1()));
  } catch (const std::system_error& error) {
    set_os_error(error.code(), py::none());
  } catch (const brisk::ShortRead& error) {
    set_shared_error("ShortReadError", shared_type("ShortReadError")(error.what()));
  } catch (const brisk::ChecksumMismatch& error) {
    set_shared_error("ChecksumError",
                     shared_type("ChecksumError")(from_path(error.path()), error.chunk(),
                                                  error.offset(), error.detail()));
  } catch (const brisk::Cancelled& error) {
    set_shared_error("ReadCancelledError", shared_type("ReadCancelledError")(error.bytes_done()));
  }
}

void bind_types(py::module_& m) {
  py::class_<brisk::CancelToken, std::shared_ptr<brisk::CancelToken>>(
      m, "CancelToken", "Ends the jobs it was given to within one chunk; thread-safe.")
      .def(py::init<>())
      .def("cancel", &brisk::CancelToken::cancel, "End the jobs, now and for ever.")
      .def_property_readonly("cancelled", &brisk::CancelToken::cancelled,
                             "True once `cancel` was called.");
  // Unmapping gigabytes takes milliseconds: other Python threads may run meanwhile.
  py::class_<FileBuffer>(m, "FileBuffer", py::buffer_protocol(),
                         py::release_gil_before_calling_cpp_dtor(),
                         "The writable, page-aligned bytes of a file; freed with its last view.")
      .def("__len__", [](const FileBuffer& self) { return self.bytes().size(); })
      .def_buffer([](const FileBuffer& self) {
        return py::buffer_info(reinterpret_cast<std::uint8_t*>(self.bytes().data()),
                               static_cast<py::ssize_t>(self.bytes().size()));
      });
}

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled loader; see _native.pyi for types and meanings.";
  py::register_local_exception_translator(translate);
  bind_types(m);
  const auto no_cancel = std::shared_ptr<brisk::CancelToken>();
  m.def("read_file", read_file, py::arg("path"), py::kw_only(), py::arg("threads") = 4,
        py::arg("expected_crc32c") = py::none(), py::arg("progress") = py::none(),
        py::arg("cancel") = no_cancel, "Read a whole file into fresh page-aligned memory.");
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
  m.def("crc32c", crc32c, py::arg("data"), py::arg("value") = 0,
        "Return the CRC32C of a buffer, continuing from `value`.");
  m.def("parse_header", parse_header, py::arg("path"),
        "Return the header of a safetensors file, checked completely.");
  m.def("parse_header_bytes", parse_header_bytes, py::arg("data"), py::arg("file_bytes"),
        py::arg("path") = "<memory>", "Return the header that a file's first bytes hold.");
  m.def("parse_manifest", parse_manifest, py::arg("path"),
        "Return what a manifest says of the files beside it, checked by itself.");
  m.def("parse_manifest_bytes", parse_manifest_bytes, py::arg("data"), py::arg("path") = "<memory>",
        "Return what the text of a manifest says.");
  m.attr("CRC32C_IN_HARDWARE") = brisk::crc32c_in_hardware();
}
