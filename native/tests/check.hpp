// A test runner of one page: TEST("promise") { CHECK(...); } and a list of failures at the end.
#pragma once

#include <exception>
#include <functional>
#include <source_location>
#include <string>
#include <utility>
#include <vector>

namespace check {

struct Test {
  std::string promise;
  std::function<void()> body;
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* promise, std::function<void()> body) {
    tests().push_back({promise, std::move(body)});
  }
};

void report(const char* expression, std::source_location where);

inline void that(bool holds, const char* expression,
                 std::source_location where = std::source_location::current()) {
  if (!holds) report(expression, where);
}

// Returns the error of this type that `action` throws; reports a failure if it throws none.
template <typename Error, typename Action>
std::exception_ptr thrown(const Action& action, const char* expression,
                          std::source_location where = std::source_location::current()) {
  try {
    action();
  } catch (const Error&) {
    return std::current_exception();
  }
  report(expression, where);
  return nullptr;
}

}  // namespace check

#define CHECK_JOIN_(a, b) a##b
#define CHECK_JOIN(a, b) CHECK_JOIN_(a, b)
#define TEST(promise)                                                   \
  static void CHECK_JOIN(test_, __LINE__)();                            \
  static const check::Registration CHECK_JOIN(registration_, __LINE__)( \
      promise, CHECK_JOIN(test_, __LINE__));                            \
  static void CHECK_JOIN(test_, __LINE__)()
#define CHECK(expression) check::that(static_cast<bool>(expression), #expression)
#define CHECK_THROWS(Error, ...) \
  check::thrown<Error>([&] { static_cast<void>(__VA_ARGS__); }, #__VA_ARGS__ " throws " #Error)
