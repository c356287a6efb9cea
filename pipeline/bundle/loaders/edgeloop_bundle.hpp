// Load a bundle of models that edgeloop made: verify it, and pick the artifact for a device.
//
// For an app to take with it, with edgeloop_bundle.cpp: C++17, OpenSSL's libcrypto (1.1.1 or newer)
// and nlohmann/json.  The contract is that of edgeloop_bundle.py: nothing of a bundle is believed
// before its signature is, and the bytes that were verified are the bytes that are used.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace edgeloop {

// A bundle is not what it should be, or has nothing for a device: the reason in one line.
struct BundleError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Bytes of a bundle, for as long as it lives; they begin at a multiple of 64.
struct Bytes {
    const std::uint8_t *data = nullptr;
    std::size_t size = 0;
};

// What to run on a device.
struct Choice {
    nlohmann::json artifact; // its record in the manifest: inputs, outputs, preprocessing, labels...
    nlohmann::json evidence; // what was measured on such a device, or null
    int threads = 0;         // that it was measured with; 0: not measured on such a device
    std::string delegate;    // that was asked for; empty: the runtime's own choice
    Bytes content;           // of the artifact
};

class Bundle {
  public:
    // Read and verify a file.
    //
    // public_keys: that are trusted, each as the base64 text of its 32 bytes.
    // now: the time that an expiry is compared with, as 2027-12-31T23:59:59Z; the clock's if empty.
    //
    // Throws BundleError if it cannot be read, is not whole, not signed by one of the keys, or
    // expired.
    static Bundle open(const std::string &path, const std::vector<std::string> &public_keys,
                       const std::string &now = "");

    // The best artifact for a device, among the runtimes that the app has.
    //
    // device: names of it, the one that fits best first: its id, its model as the maker says it, its
    // profile.
    // runtimes: the app's, with their versions; an empty one is unknown, and taken to be new enough.
    //
    // Throws BundleError if there is none.
    Choice choose(const std::vector<std::string> &device,
                  const std::map<std::string, std::string> &runtimes) const;

    // The bytes of a file that the manifest names.  Throws BundleError if there is none.
    Bytes file(const std::string &name) const;

    const nlohmann::json &manifest() const { return manifest_; }

  private:
    struct Free {
        void operator()(std::uint8_t *bytes) const { std::free(bytes); }
    };
    using Buffer = std::unique_ptr<std::uint8_t, Free>;

    std::vector<nlohmann::json> choices(std::vector<std::string> device) const;
    static Bytes read_whole(const std::string &path, Buffer &buffer);

    Buffer buffer_;
    std::map<std::string, Bytes> entries_;
    nlohmann::json manifest_;
};

} // namespace edgeloop
