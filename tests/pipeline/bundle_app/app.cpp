// An app that loads bundles, as tests have one.
//
//   app verify KEY FILE...                          one line for each: "whole" or "refused: why"
//   app run KEY FILE DEVICE RUNTIME=LIBRARY...      the golden calls of what it picks

#include "app.hpp"

#include <cmath>
#include <cstring>
#include <iostream>

using edgeloop::Bundle;
using edgeloop::BundleError;
using edgeloop::Bytes;
using nlohmann::json;

static int verify(const std::string &key, const std::vector<std::string> &files) {
    for (const auto &file : files) {
        try {
            Bundle::open(file, {key});
            std::cout << "whole\n";
        } catch (const BundleError &error) {
            std::cout << "refused: " << error.what() << "\n";
        }
    }
    return 0;
}

static std::vector<float> floats(Bytes bytes) {
    std::vector<float> values(bytes.size / sizeof(float));
    std::memcpy(values.data(), bytes.data, bytes.size);
    return values;
}

// The bytes of an image, as the manifest says they become an input.
static std::vector<float> preprocessed(const json &how, const json &raw, const json &input,
                                       Bytes bytes) {
    std::size_t channels = input.at("shape")[1], area = input.at("shape")[2];
    area *= input.at("shape")[3].get<std::size_t>();
    bool last = how.at("raw_layout") == "nhwc", byte = raw.at("dtype") == "uint8";
    std::vector<float> given = byte ? std::vector<float>(bytes.data, bytes.data + bytes.size)
                                    : floats(bytes);
    std::vector<float> values(given.size());
    for (std::size_t i = 0; i < values.size(); i++) {
        std::size_t channel = i / area % channels, place = i % area, image = i / area / channels;
        float value = last ? given[(image * area + place) * channels + channel] : given[i];
        value /= how.at("divide_by").get<float>();
        if (!how.at("mean").is_null())
            value = (value - how["mean"][channel].get<float>()) / how["std"][channel].get<float>();
        values[i] = value;
    }
    return values;
}

static float distance(const std::vector<float> &a, const std::vector<float> &b) {
    if (a.size() != b.size()) throw BundleError("another number of values");
    float worst = 0, largest = 0;
    for (std::size_t i = 0; i < a.size(); i++) {
        worst = std::max(worst, std::abs(a[i] - b[i]));
        largest = std::max(largest, std::abs(b[i]));
    }
    return worst / largest;
}

static int run(const std::string &key, const std::string &file, const std::string &device,
               const std::map<std::string, std::string> &libraries) {
    Bundle bundle = Bundle::open(file, {key});
    std::map<std::string, std::string> runtimes;
    for (const auto &each : libraries) runtimes[each.first] = "";
    auto choice = bundle.choose({device}, runtimes);
    const std::string runtime = choice.artifact.at("runtime").at("name");
    auto load = runtime == "onnxruntime" ? onnx_model : litert_model;
    auto model = load(libraries.at(runtime), choice);
    json told{{"runtime", runtime}, {"variant", choice.artifact.at("variant")},
              {"threads", choice.threads}, {"input_errors", json::array()},
              {"output_errors", json::array()}};
    for (const auto &vector : choice.artifact.at("vectors")) {
        auto input = floats(bundle.file(vector.at("input").at("file")));
        auto expected = floats(bundle.file(vector.at("output").at("file")));
        if (!vector.at("raw").is_null())
            told["input_errors"].push_back(
                distance(preprocessed(choice.artifact.at("preprocessing"), vector["raw"],
                                      vector["input"], bundle.file(vector["raw"].at("file"))),
                         input));
        told["output_errors"].push_back(distance(model(input, expected.size()), expected));
    }
    std::cout << told << "\n";
    return 0;
}

int main(int count, char **words) {
    std::vector<std::string> rest(words + std::min(count, 3), words + count);
    try {
        if (count >= 3 && !std::strcmp(words[1], "verify")) return verify(words[2], rest);
        std::map<std::string, std::string> libraries;
        for (std::size_t i = 2; i < rest.size(); i++) {
            auto sign = rest[i].find('=');
            libraries[rest[i].substr(0, sign)] = rest[i].substr(sign + 1);
        }
        return run(words[2], rest.at(0), rest.at(1), libraries);
    } catch (const std::exception &error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}
