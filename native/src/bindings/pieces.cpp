// Files that lie in chunks of a pool, as Python sees them.
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/file_buffer.hpp"
#include "bindings/python.hpp"
#include "brisk/cancel_token.hpp"
#include "brisk/pool.hpp"
#include "brisk/pool_pieces.hpp"

namespace brisk::bindings {
namespace {

using Cancel = std::shared_ptr<CancelToken>;
using Pieces = std::vector<std::pair<std::uint64_t, std::uint64_t>>;

std::vector<PoolPiece> to_pieces(const Pieces& pieces) {
  std::vector<PoolPiece> found;
  found.reserve(pieces.size());
  for (const auto& [offset, size] : pieces) found.push_back({.offset = offset, .size = size});
  return found;
}

std::unique_ptr<FileBuffer> map_pieces(const py::object& path, const Pieces& pieces,
                                       std::size_t size) {
  const auto mapped = [&, pool = to_path(path), parts = to_pieces(pieces)] {
    const py::gil_scoped_release nogil;
    return std::make_shared<MappedPieces>(pool, parts, size);
  }();
  return std::make_unique<FileBuffer>(mapped);
}

bool pieces_in_use(const std::shared_ptr<Pool>& pool, const Pieces& pieces) {
  return in_use(*pool, to_pieces(pieces));
}

std::uint64_t read_pieces(const py::object& path, const std::shared_ptr<Pool>& pool,
                          const Pieces& pieces, std::uint64_t first, std::uint64_t count,
                          const py::object& settings, const std::optional<Checksums>& expected,
                          const Progress& progress, const Cancel& cancel) {
  const FileToRead source{.path = to_path(path), .expected = expected};
  const std::vector<PoolPiece> parts = to_pieces(pieces);
  const ReadPiecesOptions options{.read = to_options(settings),
                                  .first_chunk = first,
                                  .chunks = count,
                                  .watch = make_watch(progress),
                                  .cancel = cancel.get()};
  const py::gil_scoped_release nogil;
  return brisk::read_pieces(source, *pool, parts, options).bytes;
}

Checksums checksum_pieces(const std::shared_ptr<Pool>& pool, const Pieces& pieces, std::size_t size,
                          const Cancel& cancel) {
  const std::vector<PoolPiece> parts = to_pieces(pieces);
  const py::gil_scoped_release nogil;
  return brisk::checksum_pieces(*pool, parts, size, cancel.get());
}

}  // namespace

void bind_pieces(py::module_& m) {
  const auto no_cancel = Cancel();
  m.def("map_pieces", map_pieces, py::arg("path"), py::arg("pieces"), py::arg("size_bytes"),
        "Map a file that lies in pieces of another process's pool, read-only.");
  m.def("pieces_in_use", pieces_in_use, py::arg("pool"), py::arg("pieces"),
        "Return whether any process has these pieces mapped.");
  m.def("read_pieces", read_pieces, py::arg("path"), py::arg("pool"), py::arg("pieces"),
        py::kw_only(), py::arg("first"), py::arg("count"), py::arg("settings"),
        py::arg("expected_crc32c") = py::none(), py::arg("progress") = py::none(),
        py::arg("cancel") = no_cancel, "Read chunks of a file into its pieces of a pool.");
  m.def("checksum_pieces", checksum_pieces, py::arg("pool"), py::arg("pieces"),
        py::arg("size_bytes"), py::kw_only(), py::arg("cancel") = no_cancel,
        "Return the CRC32C of each chunk of a file that lies in pieces of a pool.");
}

}  // namespace brisk::bindings
