#include "edgeloop_bundle.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <set>

namespace edgeloop {
namespace {

const char FORMAT[] = "edgeloop-bundle-1", MANIFEST[] = "manifest.json";
const char SIGNATURE[] = "manifest.sig", ANY_DEVICE[] = "*";
constexpr std::size_t ALIGNMENT = 64, MAX_ENTRIES = 1000, MAX_MANIFEST = 4u << 20;
constexpr std::size_t MAX_BYTES = (1u << 31) - 1;
constexpr std::size_t LOCAL = 30, CENTRAL = 46, END = 22;
constexpr std::uint32_t DATE = 1 << 5 | 1, PERMISSIONS = 0100644u << 16, PADDING_ID = 0xd935;

// Fields of a zip: little-endian numbers, one after the other.
class Record {
  public:
    Record &u16(std::uint32_t value) { return number(value, 2); }
    Record &u32(std::uint32_t value) { return number(value, 4); }
    Record &text(const std::string &value) {
        bytes_ += value;
        return *this;
    }
    const std::string &bytes() const { return bytes_; }
    bool is_at(Bytes file, std::size_t offset) const {
        return offset <= file.size && bytes_.size() <= file.size - offset &&
               !std::memcmp(file.data + offset, bytes_.data(), bytes_.size());
    }

  private:
    Record &number(std::uint32_t value, int size) {
        for (int i = 0; i < size; i++) bytes_ += static_cast<char>(value >> 8 * i & 0xff);
        return *this;
    }
    std::string bytes_;
};

std::uint32_t number_at(Bytes file, std::size_t offset, int size) {
    std::uint32_t value = 0;
    for (int i = 0; i < size; i++) value |= std::uint32_t{file.data[offset + i]} << 8 * i;
    return value;
}

struct Entry {
    std::string name;
    std::uint32_t crc, size, offset;
};

// The only header that an entry at its offset of the file may have.
Record local_header(const Entry &entry) {
    std::size_t fixed = LOCAL + entry.name.size();
    std::size_t room = (ALIGNMENT - (entry.offset + fixed) % ALIGNMENT) % ALIGNMENT;
    if (room && room < 6) room += ALIGNMENT;
    Record record;
    record.text(std::string("PK\3\4", 4)).u16(20).u16(0).u16(0).u16(0).u16(DATE);
    record.u32(entry.crc).u32(entry.size).u32(entry.size);
    record.u16(entry.name.size()).u16(room).text(entry.name);
    if (room) record.u16(PADDING_ID).u16(room - 4).u16(ALIGNMENT).text(std::string(room - 6, '\0'));
    return record;
}

Record central_header(const Entry &entry) {
    Record record;
    record.text(std::string("PK\1\2", 4)).u16(3 << 8 | 20).u16(20).u16(0).u16(0).u16(0).u16(DATE);
    record.u32(entry.crc).u32(entry.size).u32(entry.size).u16(entry.name.size());
    record.u16(0).u16(0).u16(0).u16(0).u32(PERMISSIONS).u32(entry.offset).text(entry.name);
    return record;
}

Record end_record(std::uint32_t count, std::uint32_t size, std::uint32_t offset) {
    Record record;
    record.text(std::string("PK\5\6", 4)).u16(0).u16(0).u16(count).u16(count);
    record.u32(size).u32(offset).u16(0);
    return record;
}

// Parts of lower-case letters, digits, '.', '_' and '-', none of which begins with a sign: no path
// that leads out of a folder is among them.
bool is_name(const std::string &name) {
    bool first = true;
    for (char c : name) {
        bool letter = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        bool sign = c == '.' || c == '_' || c == '-' || c == '/';
        if (!letter && (first || !sign)) return false;
        first = c == '/';
    }
    return !first;
}

std::uint32_t crc32(Bytes bytes) {
    static const auto table = [] {
        std::array<std::uint32_t, 256> made{};
        for (std::uint32_t i = 0; i < 256; i++) {
            std::uint32_t value = i;
            for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
            made[i] = value;
        }
        return made;
    }();
    std::uint32_t value = ~0u;
    for (std::size_t i = 0; i < bytes.size; i++)
        value = table[(value ^ bytes.data[i]) & 0xff] ^ value >> 8;
    return ~value;
}

// The entry that the directory gives at this place; what else stands there is compared.
Entry entry_at(Bytes file, std::size_t at, std::size_t end, std::uint32_t offset) {
    if (at + CENTRAL > end) throw BundleError("its directory ends too early");
    std::size_t length = number_at(file, at + 28, 2);
    if (length > end - at - CENTRAL) throw BundleError("its directory ends too early");
    std::string name(reinterpret_cast<const char *>(file.data) + at + CENTRAL, length);
    if (!is_name(name)) throw BundleError("an entry's name is none of a bundle");
    return {name, number_at(file, at + 16, 4), number_at(file, at + 24, 4), offset};
}

std::map<std::string, Bytes> read_entries(Bytes file) {
    if (file.size < END || file.size > MAX_BYTES) throw BundleError("its size is no bundle's");
    std::size_t end = file.size - END;
    std::uint32_t count = number_at(file, end + 10, 2);
    std::uint32_t size = number_at(file, end + 12, 4), start = number_at(file, end + 16, 4);
    if (!end_record(count, size, start).is_at(file, end) || std::uint64_t{start} + size != end)
        throw BundleError("its end is not that of a bundle: truncated, or not one");
    if (count > MAX_ENTRIES) throw BundleError("it has too many entries");
    std::map<std::string, Bytes> entries;
    std::string last;
    std::size_t at = start, offset = 0;
    for (std::uint32_t i = 0; i < count; i++) {
        Entry entry = entry_at(file, at, end, static_cast<std::uint32_t>(offset));
        if (entry.name <= last) throw BundleError(entry.name + " stands twice or out of order");
        if (!central_header(entry).is_at(file, at))
            throw BundleError("the directory's entry of " + entry.name + " is not a bundle's");
        Record header = local_header(entry);
        std::size_t begin = offset + header.bytes().size();
        if (begin > start || entry.size > start - begin || !header.is_at(file, offset))
            throw BundleError("the header of " + entry.name + " is not a bundle's");
        Bytes content{file.data + begin, entry.size};
        if (crc32(content) != entry.crc)
            throw BundleError("the checksum of " + entry.name + " does not match");
        entries[entry.name] = content;
        at += CENTRAL + entry.name.size();
        offset = begin + entry.size;
        last = entry.name;
    }
    if (at != end || offset != start)
        throw BundleError("there are bytes between its entries and its directory, or its end");
    return entries;
}

std::vector<std::uint8_t> key_bytes(const std::string &text) {
    std::vector<std::uint8_t> key(33); // with what stands for the padding
    if (text.size() != 44 || text[43] != '=' || text[42] == '=' ||
        EVP_DecodeBlock(key.data(), reinterpret_cast<const std::uint8_t *>(text.data()), 44) != 33)
        throw BundleError("'" + text + "' is no public key: base64 of 32 bytes");
    key.resize(32);
    return key;
}

bool is_signed_by(const std::vector<std::uint8_t> &key, Bytes message, Bytes signature) {
    using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
    using Context = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;
    Key known(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, key.data(), key.size()),
              EVP_PKEY_free);
    Context context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    return known && context &&
           EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, known.get()) == 1 &&
           EVP_DigestVerify(context.get(), signature.data, signature.size, message.data,
                            message.size) == 1;
}

std::string sha256(Bytes bytes) {
    std::uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    if (EVP_Digest(bytes.data, bytes.size, digest, &size, EVP_sha256(), nullptr) != 1)
        throw BundleError("libcrypto cannot compute a sha256");
    std::string text;
    for (unsigned i = 0; i < size; i++) {
        text += "0123456789abcdef"[digest[i] >> 4];
        text += "0123456789abcdef"[digest[i] & 15];
    }
    return text;
}

std::string clock_now() {
    char text[32];
    std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
    return text;
}

void demand_listed(const nlohmann::json &files, const std::map<std::string, Bytes> &entries) {
    std::set<std::string> listed{MANIFEST, SIGNATURE};
    for (const auto &each : files) {
        std::string name = each.at("name").get<std::string>();
        auto found = entries.find(name);
        if (found == entries.end()) throw BundleError(name + " of its manifest is missing");
        if (found->second.size != each.at("size_bytes").get<std::uint64_t>())
            throw BundleError(name + " has another size than was signed");
        if (sha256(found->second) != each.at("sha256").get<std::string>())
            throw BundleError(name + " is not the file that was signed: its sha256 differs");
        listed.insert(name);
    }
    for (const auto &entry : entries)
        if (!listed.count(entry.first)) throw BundleError(entry.first + " is not in its manifest");
}

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(),
                   [](unsigned char c) { return std::tolower(c); });
    return text;
}

std::vector<std::uint64_t> numbers(const std::string &version) {
    std::vector<std::uint64_t> found;
    bool inside = false;
    for (unsigned char c : version) {
        if (std::isdigit(c)) {
            if (!inside) found.push_back(0);
            found.back() = found.back() * 10 + (c - '0');
        }
        inside = std::isdigit(c);
    }
    return found;
}

bool is_new_enough(const std::string &version, const nlohmann::json &minimal) {
    return version.empty() || minimal.is_null() ||
           numbers(version) >= numbers(minimal.get<std::string>());
}

} // namespace

Bytes Bundle::read_whole(const std::string &path, Buffer &buffer) {
    std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path.c_str(), "rb"),
                                                          std::fclose);
    if (!file || std::fseek(file.get(), 0, SEEK_END)) throw BundleError("it cannot be read");
    long size = std::ftell(file.get());
    if (size < 0 || static_cast<unsigned long>(size) > MAX_BYTES)
        throw BundleError("its size is no bundle's");
    std::rewind(file.get());
    std::size_t length = static_cast<std::size_t>(size);
    std::size_t room = (length / ALIGNMENT + 1) * ALIGNMENT;
    buffer.reset(static_cast<std::uint8_t *>(std::aligned_alloc(ALIGNMENT, room)));
    if (!buffer || std::fread(buffer.get(), 1, length, file.get()) != length)
        throw BundleError("it cannot be read");
    return {buffer.get(), length};
}

Bundle Bundle::open(const std::string &path, const std::vector<std::string> &public_keys,
                    const std::string &now) {
    Bundle bundle;
    bundle.entries_ = read_entries(read_whole(path, bundle.buffer_));
    Bytes manifest = bundle.file(MANIFEST), signature = bundle.file(SIGNATURE);
    if (manifest.size > MAX_MANIFEST) throw BundleError("its manifest is too long");
    if (std::none_of(public_keys.begin(), public_keys.end(), [&](const std::string &key) {
            return is_signed_by(key_bytes(key), manifest, signature);
        }))
        throw BundleError("its manifest is not signed by a key that is trusted here");
    try {
        bundle.manifest_ = nlohmann::json::parse(manifest.data, manifest.data + manifest.size);
        if (bundle.manifest_.at("format") != FORMAT)
            throw BundleError(std::string("this loader reads ") + FORMAT);
        const auto &not_after = bundle.manifest_.at("signer").at("not_after");
        if (!not_after.is_null() &&
            (now.empty() ? clock_now() : now) > not_after.get<std::string>())
            throw BundleError("the key it is signed with has expired");
        demand_listed(bundle.manifest_.at("files"), bundle.entries_);
    } catch (const nlohmann::json::exception &error) {
        throw BundleError(std::string("its manifest is none: ") + error.what());
    }
    return bundle;
}

// What fits a device, best first; what fits any device, last.
std::vector<nlohmann::json> Bundle::choices(std::vector<std::string> device) const {
    std::vector<nlohmann::json> found;
    device.push_back(ANY_DEVICE);
    for (const auto &name : device)
        for (const auto &group : manifest_.at("devices"))
            for (const auto &called : group.at("names"))
                if (lower(called.get<std::string>()) == lower(name)) {
                    const auto &more = group.at("choices");
                    found.insert(found.end(), more.begin(), more.end());
                    break;
                }
    return found;
}

Choice Bundle::choose(const std::vector<std::string> &device,
                      const std::map<std::string, std::string> &runtimes) const {
    std::map<std::string, nlohmann::json> artifacts;
    for (const auto &each : manifest_.at("artifacts")) artifacts[each.at("sha256")] = each;
    for (const auto &choice : choices(device)) {
        const auto &artifact = artifacts.at(choice.at("artifact"));
        auto found = runtimes.find(artifact.at("runtime").at("name"));
        if (found == runtimes.end() ||
            !is_new_enough(found->second, artifact.at("runtime").at("minimal_version")))
            continue;
        const auto &threads = choice.at("threads"), &delegate = choice.at("delegate");
        return {artifact, choice.at("evidence"), threads.is_null() ? 0 : threads.get<int>(),
                delegate.is_null() ? "" : delegate.get<std::string>(), file(artifact.at("file"))};
    }
    throw BundleError("it has nothing for this device with the runtimes that are there");
}

Bytes Bundle::file(const std::string &name) const {
    auto found = entries_.find(name);
    if (found == entries_.end()) throw BundleError("there is no " + name + " in it");
    return found->second;
}

} // namespace edgeloop
