// Runs every test whose promise contains the first argument, or all of them, and names the slow.
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>

#include "check.hpp"

void check::report(const char* expression, std::source_location where) {
  ++failures();
  std::fprintf(stderr, "%s:%u: not so: %s\n", where.file_name(), where.line(), expression);
}

int main(int count, char** arguments) {
  const std::string wanted = count > 1 ? arguments[1] : "";
  int ran = 0;
  int failed = 0;
  for (const auto& test : check::tests()) {
    if (test.promise.find(wanted) == std::string::npos) continue;
    ++ran;
    const int before = check::failures();
    const auto begin = std::chrono::steady_clock::now();
    try {
      test.body();
    } catch (const std::exception& error) {
      ++check::failures();
      std::fprintf(stderr, "threw %s\n", error.what());
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (took.count() >= 1) std::printf("%5.1f s  %s\n", took.count(), test.promise.c_str());
    if (check::failures() != before) {
      ++failed;
      std::fprintf(stderr, "FAILED: %s\n", test.promise.c_str());
    }
  }
  std::printf("%d tests, %d failed\n", ran, failed);
  return ran > 0 && failed == 0 ? 0 : 1;
}
