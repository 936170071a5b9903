// What the runner asks of a runtime. Runtimes are loaded from a file, as an app of Android has them beside it.
#pragma once

#include <dlfcn.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "tensors.h"

struct Settings {
  std::string library, model;
  int threads = 1;
};

class Engine {
 public:
  virtual ~Engine() = default;
  // One inference of an example, up to outputs that lie in this process's memory: what is timed.
  virtual void run(const Example& example) = 0;
  // What the last inference gave.
  virtual std::vector<Tensor> outputs() = 0;
  // JSON.
  virtual std::string describe() const = 0;
};

inline void* open_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(std::string("the runtime cannot be loaded: ") + dlerror());
  return library;
}

template <typename Function>
void bind(void* library, Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (!function) throw std::runtime_error(std::string("the runtime has no ") + name + "; is it another version?");
}

std::unique_ptr<Engine> load_onnxruntime(const Settings& settings);
std::unique_ptr<Engine> load_litert(const Settings& settings);
