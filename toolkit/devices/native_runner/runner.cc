// Runs an ONNX or a LiteRT file on a device without Python, and tells how long it took.
//
//     native_runner STEP --engine onnxruntime|litert --library FILE --model FILE --inputs FOLDER [options]
//
// STEP is one of
//     start      load the model and run every example; the times of that, and the memory that it takes
//     times      queries in rounds that load the model anew, each warmed up until its times are stable
//     answers    run every example once and write what it gives to --answers FOLDER
// and the options are
//     --threads N      of the runtime (1)
//     --cores 4,5      to run on
//     --rounds N --seconds S --queries N --seed N     of `times`: seconds and queries are the least of all rounds
//                      together, and a round takes the examples in an order drawn anew (8, 5, 50, 0)
//     --spawned T      of `start`: when this process was started, in seconds since 1970 (`date +%s.%N`); without it the
//                      kernel is asked, which counts in steps of 10 ms
//     --timeout S      end this process after so many seconds
//
// --library is libonnxruntime.so or libLiteRt.so (2.1.6 or newer) of the device's architecture: those of Python wheels
// and of Android archives are the same. --inputs is a folder of encoded examples as tensors.h describes them; they have
// the types and shapes of the file's inputs. Nothing but the inference is timed: copying inputs to where the runtime
// wants them, running, and reading the outputs.
//
// The result is one JSON object on the standard output, of the shape that toolkit/bench/measure.py gives for the steps
// `start` and `times`; the progress is lines of JSON on the standard error. It ends with 0, or with 1 and a line
// `error: …` on the standard error.
//
// Build: g++ -std=c++17 -O2 -static-libstdc++ -static-libgcc -o native_runner *.cc -ldl
// with aarch64-linux-gnu-g++, or with the NDK's clang++ for Android.

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <utility>

#include "engine.h"

namespace {

constexpr size_t WARM_UP_WINDOW = 8;  // as in toolkit/bench/loops.py
constexpr double WARM_UP_STEP = 0.02, WARM_UP_SECONDS = 20;
constexpr int WARM_UP_STABLE = 2;
constexpr double PROGRESS_SECONDS = 0.2;

struct Request {
  std::string step, engine, inputs, answers;
  Settings settings;
  int rounds = 8;
  double seconds = 5, queries = 50, spawned = -1;
  uint64_t seed = 0;
};

double clock_of(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

double now() { return clock_of(CLOCK_MONOTONIC); }

void progress(int done, int total, const std::string& text) {
  static double shown = 0;
  if (now() - shown < PROGRESS_SECONDS && done < total) return;
  shown = now();
  std::cerr << "{\"done\": " << done << ", \"total\": " << total << ", \"text\": \"" << text << "\"}" << std::endl;
}

using Fields = std::vector<std::pair<std::string, std::string>>;  // of a JSON object; values are JSON

std::string object(const Fields& fields) {
  std::string text;
  for (const auto& [name, value] : fields) text += (text.empty() ? "{\"" : ", \"") + name + "\": " + value;
  return text + "}";
}

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

template <typename Value>
std::string list(const std::vector<Value>& values, const std::function<std::string(const Value&)>& written) {
  std::string text = "[";
  for (const Value& value : values) text += (text.size() > 1 ? ", " : "") + written(value);
  return text + "]";
}

// Bytes by the names of toolkit/bench/memory.py; null for what the system does not say.
Fields memory() {
  const std::pair<const char*, const char*> names[] = {{"VmRSS:", "rss_bytes"},
                                                       {"VmHWM:", "peak_rss_bytes"},
                                                       {"Pss:", "pss_bytes"},
                                                       {"Private_Dirty:", "private_dirty_bytes"}};
  std::map<std::string, long long> found;
  for (const char* path : {"/proc/self/status", "/proc/self/smaps_rollup"}) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
      std::istringstream parts(line);
      std::string key;
      long long kilobytes = 0;
      if (parts >> key >> kilobytes) found[key] = kilobytes * 1024;
    }
  }
  Fields fields;
  for (const auto& [key, name] : names) fields.emplace_back(name, found.count(key) ? std::to_string(found[key]) : "null");
  return fields;
}

std::string peak_of(const Fields& first, const Fields& second) {
  long long most = 0;
  for (const Fields* fields : {&first, &second})
    for (const auto& [name, value] : *fields)
      if (name == "peak_rss_bytes" && value != "null") most = std::max(most, std::stoll(value));
  return most ? std::to_string(most) : "null";
}

// Seconds since this process was started.
double age() {
  std::ifstream file("/proc/self/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  std::istringstream fields(text.substr(text.rfind(')') + 1));  // behind the name, which may hold anything
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  double ticks = 0;
  fields >> ticks;
  return clock_of(CLOCK_BOOTTIME) - ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

std::unique_ptr<Engine> load(const Request& request) {
  if (request.engine == "onnxruntime") return load_onnxruntime(request.settings);
  if (request.engine == "litert") return load_litert(request.settings);
  throw std::runtime_error("--engine is onnxruntime or litert, not '" + request.engine + "'");
}

std::string start(const Request& request, const std::vector<Example>& examples, double process_seconds) {
  Fields before = memory();
  double began = now();
  std::unique_ptr<Engine> engine = load(request);
  double loaded = now();
  Fields after_load = memory();
  double began_first = now();
  engine->run(examples[0]);
  double first = now();
  Fields after_first = memory();
  for (const Example& example : examples) engine->run(example);
  std::ofstream("/proc/self/clear_refs") << "5" << std::flush;  // the highest resident set begins anew
  for (const Example& example : examples) engine->run(example);
  Fields running = memory();
  return object({{"process_s", number(process_seconds)},
                 {"load_s", number(loaded - began)},
                 {"first_inference_s", number(first - began_first)},
                 {"memory", object({{"before_load", object(before)},
                                    {"after_load", object(after_load)},
                                    {"after_first_inference", object(after_first)},
                                    {"running", object(running)},
                                    {"peak_rss_bytes", peak_of(after_first, running)},
                                    {"gpu_bytes", "null"}})},
                 {"engine", engine->describe()}});
}

double timed(Engine& engine, const Example& example) {
  double began = now();
  engine.run(example);
  return now() - began;
}

// As toolkit/bench/loops.py: all examples once, then on until a window of runs was not faster than the fastest before
// it, twice in a row. The runs made, and whether that came in time.
std::pair<int, bool> warm_up(Engine& engine, const std::vector<Example>& examples) {
  for (const Example& example : examples) engine.run(example);
  double began = now(), fastest = std::numeric_limits<double>::infinity();
  int made = static_cast<int>(examples.size()), stable = 0;
  size_t window = std::min(examples.size(), WARM_UP_WINDOW);
  while (stable < WARM_UP_STABLE) {
    if (now() - began > WARM_UP_SECONDS) return {made, false};
    std::vector<double> times;
    for (size_t turn = 0; turn < std::max<size_t>(1, WARM_UP_WINDOW / window); ++turn)
      for (size_t index = 0; index < window; ++index) times.push_back(timed(engine, examples[index]));
    made += static_cast<int>(times.size());
    std::sort(times.begin(), times.end());
    double median = (times[(times.size() - 1) / 2] + times[times.size() / 2]) / 2;
    stable = median > (1 - WARM_UP_STEP) * fastest ? stable + 1 : 0;
    fastest = std::min(fastest, median);
  }
  return {made, true};
}

std::string times(const Request& request, const std::vector<Example>& examples) {
  std::mt19937_64 generator(request.seed);
  std::vector<std::vector<double>> rounds;
  std::vector<int> warm_ups;
  bool stable = true;
  std::string described;
  for (int round = 0; round < request.rounds; ++round) {
    std::string title = "round " + std::to_string(round + 1) + " of " + std::to_string(request.rounds);
    std::unique_ptr<Engine> engine = load(request);
    progress(round, request.rounds, title + ": warming up");
    auto [made, settled] = warm_up(*engine, examples);
    warm_ups.push_back(made);
    stable = stable && settled;
    std::vector<double> taken;
    std::vector<size_t> order(examples.size());
    std::iota(order.begin(), order.end(), 0);
    double began = now();
    auto enough = [&] {
      return static_cast<double>(taken.size()) >= request.queries / request.rounds &&
             now() - began >= request.seconds / request.rounds;
    };
    while (!enough()) {
      std::shuffle(order.begin(), order.end(), generator);
      for (size_t index : order) {
        taken.push_back(timed(*engine, examples[index]));
        if (enough()) break;
      }
      progress(round, request.rounds, title + ": timing");
    }
    rounds.push_back(std::move(taken));
    described = engine->describe();
  }
  progress(request.rounds, request.rounds, "done");
  auto written = [](const std::vector<double>& taken) {
    return object({{"inference", list<double>(taken, number)}});
  };
  return object({{"rounds", list<std::vector<double>>(rounds, written)},
                 {"warm_up_runs", list<int>(warm_ups, [](const int& runs) { return std::to_string(runs); })},
                 {"stable", stable ? "true" : "false"},
                 {"engine", described},
                 {"others", "{}"},
                 {"energy", "[]"}});
}

std::string answers(const Request& request, const std::vector<Example>& examples) {
  std::unique_ptr<Engine> engine = load(request);
  std::vector<Example> given;
  for (const Example& example : examples) {
    engine->run(example);
    given.push_back({example.signature, engine->outputs()});
  }
  write_examples(request.answers, given);
  return object({{"examples", std::to_string(given.size())}, {"engine", engine->describe()}});
}

void run_on(const std::string& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::istringstream numbers(cores);
  for (std::string core; std::getline(numbers, core, ',');) CPU_SET(std::stoi(core), &set);
  if (sched_setaffinity(0, sizeof set, &set)) throw std::runtime_error("this device cannot run on the cores " + cores);
}

void take(Request& request, const std::string& name, const std::string& value) {
  if (name == "--engine") request.engine = value;
  else if (name == "--library") request.settings.library = value;
  else if (name == "--model") request.settings.model = value;
  else if (name == "--inputs") request.inputs = value;
  else if (name == "--answers") request.answers = value;
  else if (name == "--threads") request.settings.threads = std::stoi(value);
  else if (name == "--rounds") request.rounds = std::stoi(value);
  else if (name == "--seconds") request.seconds = std::stod(value);
  else if (name == "--queries") request.queries = std::stod(value);
  else if (name == "--seed") request.seed = std::stoull(value);
  else if (name == "--spawned") request.spawned = std::stod(value);
  else if (name == "--cores") run_on(value);
  else if (name == "--timeout") alarm(static_cast<unsigned>(std::stoul(value)));
  else throw std::runtime_error("there is no option " + name);
}

Request parse(int count, char** arguments) {
  Request request;
  request.step = count > 1 ? arguments[1] : "";
  for (int at = 2; at < count; at += 2) {
    std::string name = arguments[at];
    if (at + 1 >= count) throw std::runtime_error(name + " has no value");
    std::string value = arguments[at + 1];
    try {
      take(request, name, value);
    } catch (const std::logic_error&) {  // of std::stoi and its like
      throw std::runtime_error("'" + value + "' is no value of " + name);
    }
  }
  return request;
}

std::string run(int count, char** arguments) {
  double entered = clock_of(CLOCK_REALTIME), entered_age = age();
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);  // ONNX Runtime reads it when it is loaded
  Request request = parse(count, arguments);
  std::vector<Example> examples = read_examples(request.inputs);
  if (request.step == "start")
    return start(request, examples, request.spawned < 0 ? entered_age : entered - request.spawned);
  if (request.step == "times") return times(request, examples);
  if (request.step == "answers") return answers(request, examples);
  throw std::runtime_error("the step is start, times or answers, not '" + request.step + "'");
}

}  // namespace

int main(int count, char** arguments) {
  try {
    std::cout << run(count, arguments) << std::endl;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 1;
  }
  return 0;
}
