// The Python face of the library; with src/bindings/ the only files that know Python.
#include <cstddef>
#include <cstdint>
#include <filesystem>

#include "bindings/python.hpp"
#include "brisk/crc32c.hpp"
#include "brisk/manifest.hpp"
#include "brisk/safetensors_header.hpp"

namespace {

namespace py = pybind11;
using namespace brisk::bindings;

std::uint32_t crc32c(const py::object& data, std::uint32_t value) {
  const PinnedBuffer buffer(data);
  const py::gil_scoped_release nogil;
  return brisk::crc32c(buffer.bytes(), value);
}

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

}  // namespace

PYBIND11_MODULE(_native, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled loader; see _native.pyi for types and meanings.";
  py::register_local_exception_translator(translate);
  bind_reading(m);
  bind_pieces(m);
  bind_devices(m);
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
