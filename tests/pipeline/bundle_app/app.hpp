// Models of a bundle, run from memory by the runtimes' C libraries.

#pragma once

#include <dlfcn.h>

#include <functional>

#include "edgeloop_bundle.hpp"

// Takes the values of the one input and the number of those of the first output, and gives these.
using Model = std::function<std::vector<float>(std::vector<float> &input, std::size_t outputs)>;

Model onnx_model(const std::string &library, const edgeloop::Choice &choice);
Model litert_model(const std::string &library, const edgeloop::Choice &choice);

inline void *opened(const std::string &library) {
    void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) throw edgeloop::BundleError(dlerror());
    return handle;
}

inline std::vector<std::int64_t> shape_of(const nlohmann::json &tensor) {
    std::vector<std::int64_t> shape = tensor.at("shape");
    for (auto &size : shape) size = size < 0 ? 1 : size; // an open batch
    return shape;
}
