// Headers, manifests and indexes, as Python sees them.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/python.hpp"
#include "brisk/manifest.hpp"
#include "brisk/safetensors_header.hpp"
#include "brisk/weight_index.hpp"

namespace brisk::bindings {
namespace {

// Makes objects of a frozen dataclass with slots, all of its fields in their order, without its
// __init__: that takes microseconds for each, and a header may have 65,536 tensors.
class Maker {
 public:
  Maker(const char* type, std::initializer_list<const char*> fields) : type_(shared_type(type)) {
    for (const char* field : fields) {
      py::object slot = type_.attr(field);
      if (Py_TYPE(slot.ptr())->tp_descr_set == nullptr) {
        throw std::logic_error(std::string(type) + "." + field + " is no slot");
      }
      slots_.push_back(std::move(slot));
    }
  }

  // Throws py::error_already_set.
  [[nodiscard]] py::object operator()(std::initializer_list<py::object> values) const {
    auto* const type = reinterpret_cast<PyTypeObject*>(type_.ptr());
    auto made = py::reinterpret_steal<py::object>(type->tp_alloc(type, 0));
    if (!made) throw py::error_already_set();
    auto slot = slots_.begin();
    for (const py::object& value : values) {
      PyObject* const raw = (slot++)->ptr();
      if (Py_TYPE(raw)->tp_descr_set(raw, made.ptr(), value.ptr()) != 0) {
        throw py::error_already_set();
      }
    }
    return made;
  }

 private:
  py::object type_;
  std::vector<py::object> slots_;
};

py::tuple to_python(std::span<const std::uint64_t> shape) {
  py::tuple made(shape.size());
  for (std::size_t axis = 0; axis < shape.size(); ++axis) made[axis] = py::int_(shape[axis]);
  return made;
}

py::object to_python(const SafetensorsHeader& header) {
  const Maker tensor_info("TensorInfo", {"name", "dtype", "shape", "offset", "size_bytes"});
  std::vector<py::str> dtypes;
  for (const Dtype& dtype : brisk::dtypes()) dtypes.push_back(to_str(dtype.name));
  const auto make = [&](const HeaderTensor& tensor) {
    const auto number = static_cast<std::size_t>(tensor.dtype - brisk::dtypes().data());
    return tensor_info({to_str(tensor.name), dtypes[number], to_python(tensor.shape),
                        py::int_(header.data_offset() + tensor.begin),
                        py::int_(tensor.end - tensor.begin)});
  };
  std::size_t padded = 0;
  for (const HeaderTensor& tensor : header.tensors()) padded += header.is_padding(tensor) ? 1 : 0;
  py::tuple tensors(header.tensors().size() - padded);
  py::tuple padding(padded);
  std::size_t next = 0;
  std::size_t next_padding = 0;
  for (const HeaderTensor& tensor : header.tensors()) {
    if (header.is_padding(tensor)) {
      padding[next_padding++] = make(tensor);
    } else {
      tensors[next++] = make(tensor);
    }
  }
  py::dict metadata;
  for (const auto& [key, value] : header.metadata()) metadata[to_str(key)] = to_str(value);
  return shared_type("Header")(
      py::arg("data_offset") = header.data_offset(), py::arg("file_bytes") = header.file_bytes(),
      py::arg("tensors") = tensors, py::arg("metadata") = metadata, py::arg("padding") = padding);
}

py::object to_python(const Manifest& manifest) {
  const py::object manifest_file = shared_type("ManifestFile");
  py::tuple files(manifest.files().size());
  std::size_t place = 0;
  for (const ManifestFile& file : manifest.files()) {
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

// An index stays where it was parsed: as Python objects it would take several times the memory.
py::object to_python(WeightIndex index) { return py::cast(std::move(index)); }

[[noreturn]] void raise(const char* type, const py::tuple& arguments) {
  const py::object error = shared_type(type)(*arguments);
  PyErr_SetObject(shared_type(type).ptr(), error.ptr());
  throw py::error_already_set();
}

// Runs `parse` without the GIL; gives its refusal the name of the file.
template <typename Parse>
py::object parse_named(const std::filesystem::path& path, const Parse& parse) {
  try {
    auto parsed = [&] {
      const py::gil_scoped_release nogil;
      return parse();
    }();
    return to_python(std::move(parsed));
  } catch (const InvalidManifest& error) {
    raise("InvalidCheckpointError", py::make_tuple(from_path(path), error.what()));
  } catch (const InvalidIndex& error) {
    raise("InvalidCheckpointError", py::make_tuple(from_path(path), error.what()));
  } catch (const InvalidHeader& error) {
    const py::object tensor = error.tensor() ? to_str(*error.tensor()) : py::object(py::none());
    raise("InvalidHeaderError", py::make_tuple(from_path(path), tensor, error.reason()));
  }
}

py::object parse_header(const py::object& path) {
  const std::filesystem::path source = to_path(path);
  return parse_named(source, [&] { return SafetensorsHeader::read(source); });
}

py::object parse_header_bytes(const py::object& data, std::int64_t file_bytes,
                              const py::object& path) {
  if (file_bytes < 0) throw py::type_error("a file has no negative size");
  const PinnedBuffer buffer(data);
  return parse_named(to_path(path), [&] {
    return SafetensorsHeader::parse(buffer.bytes(), static_cast<std::uint64_t>(file_bytes));
  });
}

template <typename Parsed>
py::object parse_file(const py::object& path) {
  const std::filesystem::path source = to_path(path);
  return parse_named(source, [&] { return Parsed::read(source); });
}

template <typename Parsed>
py::object parse_bytes(const py::object& data, const py::object& path) {
  const PinnedBuffer buffer(data);
  return parse_named(to_path(path), [&] { return Parsed::parse(buffer.bytes()); });
}

py::tuple files_of(const WeightIndex& index) {
  py::tuple files(index.files().size());
  for (std::size_t i = 0; i < files.size(); ++i) files[i] = to_str(index.files()[i]);
  return files;
}

// Returns the first tensor and its file that `file_of` does not have so, or None.
py::object misplaced(const WeightIndex& index, const py::dict& file_of) {
  const py::tuple files = files_of(index);
  for (const WeightIndex::Entry& entry : index.tensors()) {
    const py::str tensor = to_str(entry.tensor);
    const py::object wanted = files[entry.file];
    PyObject* const found = PyDict_GetItemWithError(file_of.ptr(), tensor.ptr());
    if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (found == nullptr || !wanted.equal(py::handle(found))) return py::make_tuple(tensor, wanted);
  }
  return py::none();
}

}  // namespace

void bind_parsing(py::module_& m) {
  py::class_<WeightIndex>(m, "WeightIndex", "Which file holds which tensor, checked by itself.")
      .def("__len__", [](const WeightIndex& self) { return self.tensors().size(); })
      .def_property_readonly("files", &files_of,
                             "Names of the files, each once, in the order of the index.")
      .def("misplaced", &misplaced, py::arg("file_of"),
           "Return the first tensor and file that `file_of` does not have so.");
  m.def("parse_header", parse_header, py::arg("path"),
        "Return the header of a safetensors file, checked completely.");
  m.def("parse_header_bytes", parse_header_bytes, py::arg("data"), py::arg("file_bytes"),
        py::arg("path") = "<memory>", "Return the header that a file's first bytes hold.");
  m.def("parse_manifest", parse_file<Manifest>, py::arg("path"),
        "Return what a manifest says of the files beside it, checked by itself.");
  m.def("parse_manifest_bytes", parse_bytes<Manifest>, py::arg("data"),
        py::arg("path") = "<memory>", "Return what the text of a manifest says.");
  m.def("parse_index", parse_file<WeightIndex>, py::arg("path"),
        "Return which file holds which tensor, as an index says, checked by itself.");
  m.def("parse_index_bytes", parse_bytes<WeightIndex>, py::arg("data"),
        py::arg("path") = "<memory>", "Return what the text of an index says.");
}

}  // namespace brisk::bindings
