// LiteRT, by its C library.
// Source: litert/c/litert_{environment,model,options,compiled_model,tensor_buffer}.h, as in the
// native agent.

#include <cstring>

#include "app.hpp"

namespace {

void *library;

template <typename... Arguments> int status(const char *name, Arguments... arguments) {
    void *symbol = dlsym(library, name);
    if (!symbol) throw edgeloop::BundleError(dlerror());
    return reinterpret_cast<int (*)(Arguments...)>(symbol)(arguments...);
}

template <typename... Arguments> void call(const char *name, Arguments... arguments) {
    if (status(name, arguments...)) throw edgeloop::BundleError(std::string(name) + " failed");
}

struct Type { // LiteRtRankedTensorType, with room for what a later layout appends
    int words[32];
};

using Place = void *;

Place buffer(Place environment, Place signature, Place compiled, const char *side) {
    Place tensor, needs, made;
    Type type{};
    std::string name(side);
    call(("LiteRtGetSignature" + name + "TensorByIndex").c_str(), signature, std::size_t{0},
         &tensor);
    call("LiteRtGetRankedTensorType", tensor, &type);
    call(("LiteRtGetCompiledModel" + name + "BufferRequirements").c_str(), compiled, std::size_t{0},
         std::size_t{0}, &needs);
    call("LiteRtCreateManagedTensorBufferFromRequirements", environment, &type, needs, &made);
    return made;
}

void copy(Place buffer, std::vector<float> &values, bool in) {
    void *bytes;
    std::size_t room;
    call("LiteRtGetTensorBufferPackedSize", buffer, &room);
    if (room != values.size() * sizeof(float)) throw edgeloop::BundleError("another size");
    call("LiteRtLockTensorBuffer", buffer, &bytes, in ? 1 : 0);
    in ? std::memcpy(bytes, values.data(), room) : std::memcpy(values.data(), bytes, room);
    call("LiteRtUnlockTensorBuffer", buffer);
}

} // namespace

Model litert_model(const std::string &path, const edgeloop::Choice &choice) {
    library = opened(path);
    Place environment, model, options, compiled, signature;
    call("LiteRtCreateEnvironment", 0, static_cast<Place>(nullptr), &environment);
    call("LiteRtCreateModelFromBuffer", environment,
         static_cast<const void *>(choice.content.data), choice.content.size, &model);
    call("LiteRtCreateOptions", &options);
    call("LiteRtSetOptionsHardwareAccelerators", options, 1);
    call("LiteRtCreateCompiledModel", environment, model, options, &compiled);
    call("LiteRtGetModelSignature", model, std::size_t{0}, &signature);
    Place in = buffer(environment, signature, compiled, "Input");
    Place out = buffer(environment, signature, compiled, "Output");
    return [=](std::vector<float> &values, std::size_t outputs) {
        std::vector<float> result(outputs);
        Place inputs[] = {in}, results[] = {out};
        copy(in, values, true);
        call("LiteRtRunCompiledModel", compiled, std::size_t{0}, std::size_t{1}, &inputs[0],
             std::size_t{1}, &results[0]);
        copy(out, result, false);
        return result;
    };
}
