#include "brisk/pool.hpp"

#include <algorithm>
#include <cerrno>
#include <map>
#include <mutex>
#include <new>
#include <string>

#include "brisk/chunk.hpp"
#include "brisk/huge_pages.hpp"
#include "brisk/populate.hpp"

namespace brisk {

PoolFull::PoolFull(std::size_t needed, std::size_t free, std::size_t largest)
    : std::runtime_error("the pool has no " + std::to_string(needed) +
                         " bytes in one piece: " + std::to_string(free) +
                         " are free, the largest piece has " + std::to_string(largest)),
      needed_(needed),
      free_(free),
      largest_(largest) {}

// What regions keep alive: the mapping, and the ledger of its pieces.
class PoolState {
 public:
  PoolState(PoolMemory memory, bool is_attached, bool populate)
      : memory_(std::move(memory)), is_attached_(is_attached) {
    if (populate) populate_ = std::make_unique<BackgroundPopulate>(std::vector{memory_.bytes()});
  }

  [[nodiscard]] const PoolMemory& memory() const noexcept { return memory_; }
  [[nodiscard]] bool is_attached() const noexcept { return is_attached_; }
  [[nodiscard]] const BackgroundPopulate* populate() const noexcept { return populate_.get(); }

  // Returns where the first free piece of `size` bytes begins, and takes it.
  [[nodiscard]] std::size_t take(std::size_t size) {
    const std::lock_guard lock(mutex_);
    std::size_t begin = 0;
    std::size_t largest = 0;
    for (auto next = used_.begin();; ++next) {
      const bool is_last = next == used_.end();
      const std::size_t end = is_last ? memory_.bytes().size() : next->first;
      if (end - begin >= size) {
        used_.emplace_hint(next, begin, Piece{.size = size, .region = {}});
        return begin;
      }
      largest = std::max(largest, end - begin);
      if (is_last) throw PoolFull(size, free_bytes_locked(), largest);
      begin = next->first + next->second.size;
    }
  }
  void give_back(std::size_t offset) noexcept {
    const std::lock_guard lock(mutex_);
    used_.erase(offset);
  }
  void name(std::size_t offset, const std::shared_ptr<PoolRegion>& region) {
    const std::lock_guard lock(mutex_);
    used_.at(offset).region = region;
  }
  // Returns the region that holds all of these bytes, or null.
  [[nodiscard]] std::shared_ptr<PoolRegion> find(std::size_t offset, std::size_t size) const {
    const std::lock_guard lock(mutex_);
    auto next = used_.upper_bound(offset);
    if (next == used_.begin()) return nullptr;
    const auto& [begin, piece] = *--next;
    if (offset - begin > piece.size || size > piece.size - (offset - begin)) return nullptr;
    return piece.region.lock();
  }
  [[nodiscard]] std::size_t free_bytes() const {
    const std::lock_guard lock(mutex_);
    return free_bytes_locked();
  }

 private:
  struct Piece {
    std::size_t size;
    std::weak_ptr<PoolRegion> region;
  };

  [[nodiscard]] std::size_t free_bytes_locked() const {
    std::size_t used = 0;
    for (const auto& [offset, piece] : used_) used += piece.size;
    return memory_.bytes().size() - used;
  }

  PoolMemory memory_;
  const bool is_attached_;
  mutable std::mutex mutex_;                      // guards used_
  std::map<std::size_t, Piece> used_;             // by offset
  std::unique_ptr<BackgroundPopulate> populate_;  // last: it ends before the memory goes
};

namespace {

// What a piece of `size` bytes takes; more than any pool has stays more than that.
std::size_t whole_pages(std::size_t size) {
  return align_up(std::clamp<std::size_t>(size, 1, SIZE_MAX / 2), kHugePageBytes);
}

// Memory of the first kind that can be had, with why the ones before it could not.
std::pair<PoolKind, PoolMemory> make_best(std::size_t size, const std::filesystem::path& folder,
                                          Pool::Refusals& refusals) {
  for (const PoolKind kind : {PoolKind::kHugetlb, PoolKind::kTmpfs, PoolKind::kPrivate}) {
    try {
      if (kind != PoolKind::kPrivate || has_transparent_huge_pages()) {
        return {kind, PoolMemory::make(kind, size, folder)};
      }
      refusals.emplace_back(kind, std::make_error_code(std::errc::not_supported));
    } catch (const std::system_error& error) {
      refusals.emplace_back(kind, error.code());
    }
  }
  return {PoolKind::kSmall, PoolMemory::make(PoolKind::kSmall, size, folder)};
}

}  // namespace

PoolRegion::PoolRegion(std::shared_ptr<PoolState> state, std::size_t offset, std::size_t size,
                       bool is_owner)
    : state_(std::move(state)), offset_(offset), size_(size), is_owner_(is_owner) {}

PoolRegion::~PoolRegion() {
  if (is_owner_) state_->give_back(offset_);
}

std::span<std::byte> PoolRegion::bytes() const noexcept {
  return state_->memory().bytes().subspan(offset_, size_);
}

std::span<std::byte> PoolRegion::room() const noexcept {
  const std::size_t room = align_up(std::max<std::size_t>(size_, 1), kDirectAlignment);
  return state_->memory().bytes().subspan(offset_, room);
}

Pool::Pool(std::size_t size, const PoolOptions& options) : kind_(options.kind) {
  if (size == 0) throw std::invalid_argument("a pool has at least 1 byte");
  if (!options.name.empty()) kind_ = kind_.value_or(PoolKind::kTmpfs);
  if (kind_) {
    state_ = std::make_shared<PoolState>(
        PoolMemory::make(*kind_, size, options.folder, options.name), false, options.populate);
    return;
  }
  auto [kind, memory] = make_best(size, options.folder, refusals_);
  kind_ = kind;
  state_ = std::make_shared<PoolState>(std::move(memory), false, options.populate);
}

Pool::Pool(const std::filesystem::path& path)
    : state_(std::make_shared<PoolState>(PoolMemory::attach(path), true, false)) {}

Pool::Pool(PoolKind kind, PoolMemory memory)
    : state_(std::make_shared<PoolState>(std::move(memory), false, true)), kind_(kind) {}

std::shared_ptr<Pool> Pool::adopt(const std::filesystem::path& path) {
  // A memfd of small pages lies in a tmpfs, too.
  return std::shared_ptr<Pool>(new Pool(PoolKind::kTmpfs, PoolMemory::adopt(path)));
}

Pool::~Pool() = default;

std::shared_ptr<PoolState> Pool::state() const {
  const std::lock_guard lock(mutex_);
  if (!state_) throw std::invalid_argument("the pool is closed");
  return state_;
}

std::shared_ptr<PoolRegion> Pool::allocate(std::size_t size) {
  const auto state = this->state();
  if (state->is_attached()) {
    throw std::invalid_argument("the pool of another process can only be looked into");
  }
  const std::size_t offset = state->take(whole_pages(size));
  std::shared_ptr<PoolRegion> region;
  try {
    region = std::make_shared<PoolRegion>(state, offset, size, true);
  } catch (...) {
    state->give_back(offset);
    throw;
  }
  state->name(offset, region);
  return region;
}

std::shared_ptr<PoolRegion> Pool::view(std::size_t offset, std::size_t size) {
  const auto state = this->state();
  const std::size_t all = state->memory().bytes().size();
  if (offset > all || size > all - offset) {
    throw std::invalid_argument("the pool has " + std::to_string(all) + " bytes, not " +
                                std::to_string(size) + " at " + std::to_string(offset));
  }
  if (state->is_attached()) return std::make_shared<PoolRegion>(state, offset, size, false);
  const auto owner = state->find(offset, size);
  if (!owner) throw std::invalid_argument("no region in use holds these bytes of the pool");
  // The part lives as long as someone holds it, and the region that it is of lives with it.
  struct Part {
    Part(std::shared_ptr<PoolRegion> whole, std::shared_ptr<PoolState> pool, std::size_t begin,
         std::size_t length)
        : owner(std::move(whole)), region(std::move(pool), begin, length, false) {}
    std::shared_ptr<PoolRegion> owner;
    PoolRegion region;
  };
  const auto part = std::make_shared<Part>(owner, state, offset, size);
  return {part, &part->region};
}

std::shared_ptr<PoolRegion> Pool::whole() const {
  const auto state = this->state();
  if (state->is_attached()) {
    throw std::invalid_argument("the pool of another process can only be looked into");
  }
  return std::make_shared<PoolRegion>(state, 0, state->memory().bytes().size(), false);
}

void Pool::close() {
  std::shared_ptr<PoolState> gone;  // freed without the lock
  const std::lock_guard lock(mutex_);
  gone.swap(state_);
}

bool Pool::is_closed() const {
  const std::lock_guard lock(mutex_);
  return state_ == nullptr;
}

std::size_t Pool::size() const { return state()->memory().bytes().size(); }

std::size_t Pool::free_bytes() const {
  const auto state = this->state();
  return state->is_attached() ? 0 : state->free_bytes();
}

std::size_t Pool::populated() const {
  const auto state = this->state();
  return state->populate() ? state->populate()->populated() : 0;
}

bool Pool::wait_populated(std::chrono::duration<double> timeout) const {
  const auto state = this->state();
  return state->populate() == nullptr || state->populate()->wait(timeout);
}

bool Pool::in_huge_pages() const {
  if (const signed char known = huge_.load(std::memory_order_relaxed); known >= 0) {
    static_cast<void>(state());  // throws if the pool is closed
    return known > 0;
  }
  const auto [bytes, populated] = [state = this->state()] {
    const std::size_t done = state->populate() ? state->populate()->populated() : 0;
    return std::pair(state->memory().bytes(), done);
  }();
  // This walks through all memory of the process: the pool may be closed, and gone, meanwhile.
  const std::size_t huge = huge_page_bytes_in(bytes);
  static_cast<void>(state());
  const bool is_huge = huge > 0 && huge >= populated / 2;
  if (populated == bytes.size()) huge_.store(is_huge ? 1 : 0, std::memory_order_relaxed);
  return is_huge;
}

std::optional<std::filesystem::path> Pool::path() const { return state()->memory().path(); }

int Pool::fd() const { return state()->memory().fd(); }

}  // namespace brisk
