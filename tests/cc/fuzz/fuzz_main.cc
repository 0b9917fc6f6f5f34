// fuzz: random calls against the reference, until time is up or something is wrong.
//   fuzz [--seconds N] [--seed S] [--cases C] [--backend NAME]
//   fuzz --list-targets
// Case k of seed S is case 0 of seed S + k, so that every failure has a seed of its own.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "fusion_attention/plan.h"
#include "tests/cc/fuzz/case.h"
#include "tests/cc/fuzz/check.h"

namespace {

using fusion_attention::fuzz::CheckCase;
using fusion_attention::fuzz::CheckHostileCalls;
using fusion_attention::fuzz::Declines;
using fusion_attention::fuzz::Describe;
using fusion_attention::fuzz::MakeCall;

struct Options {
  double seconds = 10;
  uint64_t seed = 1;
  uint64_t cases = std::numeric_limits<uint64_t>::max();
  std::string backend = "cpu";
};

// How to see the failing case again. Written before a case runs, printed from a signal handler.
char repro[512];

void PrintReproAndDie(int signal_number) {
  const ssize_t written = write(STDERR_FILENO, repro, std::strlen(repro));
  static_cast<void>(written);
  signal(signal_number, SIG_DFL);
  raise(signal_number);
}

[[noreturn]] void Usage() {
  std::fputs("usage: fuzz [--seconds N] [--seed S] [--cases C] [--backend NAME] | --list-targets\n",
             stderr);
  std::exit(2);
}

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) Usage();
    char* end = argv[i + 1];
    if (name == "--seconds") {
      options.seconds = std::strtod(argv[i + 1], &end);
    } else if (name == "--seed") {
      options.seed = std::strtoull(argv[i + 1], &end, 10);
    } else if (name == "--cases") {
      options.cases = std::strtoull(argv[i + 1], &end, 10);
    } else if (name == "--backend") {
      options.backend = argv[i + 1];
      end += std::strlen(end);
    } else {
      Usage();
    }
    if (*end != '\0' || end == argv[i + 1]) Usage();
  }
  return options;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--list-targets") == 0) {
    for (const std::string& name : fusion_attention::TargetNames()) std::puts(name.c_str());
    return 0;
  }
  const Options options = Parse(argc, argv);
  for (const int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
    signal(number, PrintReproAndDie);
  }
  const auto start = std::chrono::steady_clock::now();
  double elapsed = 0;
  uint64_t done = 0;
  uint64_t declined = 0;
  for (; done < options.cases && elapsed < options.seconds; ++done) {
    const uint64_t seed = options.seed + done;
    std::snprintf(repro, sizeof(repro), "fuzz --backend %s --cases 1 --seed %llu  # %s\n",
                  options.backend.c_str(), static_cast<unsigned long long>(seed),
                  Describe(MakeCall(seed)).c_str());
    std::string finding = CheckHostileCalls(seed);
    const bool declines = Declines(seed, options.backend);
    if (finding.empty() && !declines) finding = CheckCase(seed, options.backend);
    if (declines) ++declined;
    if (!finding.empty()) {
      std::printf("FAILED: %s\n%s", finding.c_str(), repro);
      return 1;
    }
    elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  const auto target = fusion_attention::SelectedTarget();
  std::printf(
      "fuzz: %llu cases (%llu declined) in %.1f s, %.1f cases/s, backend %s, target %s: all "
      "agree\n",
      static_cast<unsigned long long>(done), static_cast<unsigned long long>(declined), elapsed,
      done / elapsed, options.backend.c_str(), target.ok() ? target->c_str() : "none");
  return 0;
}
