// Load a bundle of models that edgeloop made: verify it, and pick the artifact for a device.
//
// NOT COMPILED, NOT RUN by edgeloop's tests, for want of a Swift compiler there: it follows
// edgeloop_bundle.py and edgeloop_bundle.cpp, which are.  Before you rely on it, run it on a bundle
// of yours, on the same with one byte changed, and on the golden vectors.
//
// iOS 13, macOS 10.15 or newer: Foundation and CryptoKit.

import CryptoKit
import Foundation

/// A bundle is not what it should be, or has nothing for a device: the reason in one line.
public struct BundleError: Error, CustomStringConvertible {
    public let description: String
    init(_ description: String) { self.description = description }
}

/// What to run on a device.
public struct Choice {
    /// Its record in the manifest: inputs, outputs, preprocessing, labels...
    public let artifact: [String: Any]
    /// That it was measured with; nil where it was not measured on such a device.
    public let threads: Int?
    /// That was asked for; nil for the runtime's own choice.
    public let delegate: String?
    /// What was measured on such a device, or nil.
    public let evidence: [String: Any]?
    /// The bytes that were verified.
    public let content: Data
}

public struct EdgeloopBundle {
    public let manifest: [String: Any]
    private let entries: [String: Data]

    private static let format = "edgeloop-bundle-1"
    private static let manifestName = "manifest.json", signatureName = "manifest.sig"
    private static let anyDevice = "*"
    private static let alignment = 64, maxEntries = 1000, maxManifestBytes = 4 << 20
    private static let maxBytes = (1 << 31) - 1
    private static let local = 30, central = 46, end = 22
    private static let date: UInt16 = 1 << 5 | 1
    private static let permissions: UInt32 = 0o100644 << 16

    /// Read and verify a file.
    ///
    /// - Parameters:
    ///   - publicKeys: that are trusted, each as the base64 text of its 32 bytes.
    ///   - now: the time that an expiry is compared with.
    /// - Throws: `BundleError` if it is not whole, not signed by one of the keys, or expired.
    public static func open(_ url: URL, publicKeys: [String], now: Date = Date()) throws -> EdgeloopBundle {
        let content = try Data(contentsOf: url)
        let entries = try readEntries([UInt8](content))
        guard let text = entries[manifestName], let signature = entries[signatureName] else {
            throw BundleError("its manifest or signature is missing")
        }
        guard text.count <= maxManifestBytes else { throw BundleError("its manifest is too long") }
        let signed = try publicKeys.contains { key in
            guard let raw = Data(base64Encoded: key), raw.count == 32,
                let known = try? Curve25519.Signing.PublicKey(rawRepresentation: raw)
            else { throw BundleError("'\(key)' is no public key: base64 of 32 bytes") }
            return known.isValidSignature(signature, for: text)
        }
        guard signed else {
            throw BundleError("its manifest is not signed by a key that is trusted here")
        }
        guard let manifest = (try? JSONSerialization.jsonObject(with: text)) as? [String: Any],
            let signer = manifest["signer"] as? [String: Any],
            let files = manifest["files"] as? [[String: Any]],
            let notAfter = signer["not_after"]
        else { throw BundleError("its manifest is none") }
        guard manifest["format"] as? String == format else {
            throw BundleError("this loader reads \(format)")
        }
        // Written alike, times compare as texts do.
        if let until = notAfter as? String, moment(now) > until {
            throw BundleError("the key it is signed with expired at \(until)")
        }
        guard notAfter is NSNull || notAfter is String else { throw BundleError("its manifest is none") }
        try demandListed(files, entries)
        return EdgeloopBundle(manifest: manifest, entries: entries)
    }

    /// The bytes of a file that the manifest names.
    public func file(_ name: String) throws -> Data {
        guard let found = entries[name] else { throw BundleError("there is no \(name) in it") }
        return found
    }

    /// The best artifact for a device, among the runtimes that the app has.
    ///
    /// - Parameters:
    ///   - device: names of it, the one that fits best first: its id, its model, its profile.
    ///   - runtimes: the app's (onnxruntime, litert, executorch), with their versions; an empty one
    ///     is unknown, and taken to be new enough.
    public func choose(device: [String], runtimes: [String: String]) throws -> Choice {
        let artifacts = manifest["artifacts"] as? [[String: Any]] ?? []
        for choice in choices(device) {
            guard let sha256 = choice["artifact"] as? String,
                let artifact = artifacts.first(where: { $0["sha256"] as? String == sha256 }),
                let runtime = artifact["runtime"] as? [String: Any],
                let name = runtime["name"] as? String,
                let version = runtimes[name],
                EdgeloopBundle.isNewEnough(version, runtime["minimal_version"] as? String),
                let path = artifact["file"] as? String
            else { continue }
            return Choice(
                artifact: artifact, threads: choice["threads"] as? Int,
                delegate: choice["delegate"] as? String,
                evidence: choice["evidence"] as? [String: Any], content: try file(path))
        }
        throw BundleError("it has nothing for \(device) with \(runtimes.keys.sorted())")
    }

    /// What fits a device, best first; what fits any device, last.
    private func choices(_ device: [String]) -> [[String: Any]] {
        let groups = manifest["devices"] as? [[String: Any]] ?? []
        return (device + [EdgeloopBundle.anyDevice]).flatMap { name in
            groups.filter { group in
                (group["names"] as? [String] ?? []).contains { $0.lowercased() == name.lowercased() }
            }
        }.flatMap { $0["choices"] as? [[String: Any]] ?? [] }
    }

    private static func readEntries(_ bytes: [UInt8]) throws -> [String: Data] {
        guard bytes.count >= end, bytes.count <= maxBytes else {
            throw BundleError("its size is no bundle's")
        }
        let last = bytes.count - end
        let count = number(bytes, last + 10, 2)
        let size = number(bytes, last + 12, 4), start = number(bytes, last + 16, 4)
        guard start + size == last, has(bytes, last, endRecord(count, size, start)) else {
            throw BundleError("its end is not that of a bundle: truncated, or not one")
        }
        guard count <= maxEntries else { throw BundleError("it has too many entries") }
        var entries: [String: Data] = [:]
        var at = start, offset = 0, before: [UInt8] = []
        for _ in 0..<count {
            guard last - at >= central, last - at - central >= number(bytes, at + 28, 2) else {
                throw BundleError("its directory ends too early")
            }
            let nameSize = number(bytes, at + 28, 2)
            let name = [UInt8](bytes[(at + central)..<(at + central + nameSize)])
            let crc = number(bytes, at + 16, 4), length = number(bytes, at + 24, 4)
            guard isName(name) else { throw BundleError("an entry's name is none of a bundle") }
            guard before.lexicographicallyPrecedes(name) else {
                throw BundleError("an entry stands twice or out of order")
            }
            let header = localHeader(name, crc, length, offset)
            let begin = offset + header.count
            guard has(bytes, at, centralHeader(name, crc, length, offset)),
                begin + length <= start, has(bytes, offset, header)
            else { throw BundleError("an entry's headers are not a bundle's") }
            let content = Data(bytes[begin..<(begin + length)])
            guard crc32(content) == UInt32(crc) else {
                throw BundleError("an entry's checksum does not match")
            }
            entries[String(decoding: name, as: UTF8.self)] = content
            at += central + nameSize
            offset = begin + length
            before = name
        }
        guard at == last, offset == start else { throw BundleError("there are bytes between its parts") }
        return entries
    }

    private static func localHeader(_ name: [UInt8], _ crc: Int, _ size: Int, _ offset: Int) -> [UInt8] {
        var room = (alignment - (offset + local + name.count) % alignment) % alignment
        if room > 0 && room < 6 { room += alignment }
        var record = little(0x0403_4b50, 4) + little(20, 2) + little(0, 6) + little(Int(date), 2)
        record += little(crc, 4) + little(size, 4) + little(size, 4)
        record += little(name.count, 2) + little(room, 2) + name
        if room > 0 {
            record += little(0xd935, 2) + little(room - 4, 2) + little(alignment, 2)
            record += [UInt8](repeating: 0, count: room - 6)
        }
        return record
    }

    private static func centralHeader(_ name: [UInt8], _ crc: Int, _ size: Int, _ offset: Int) -> [UInt8] {
        var record = little(0x0201_4b50, 4) + little(3 << 8 | 20, 2) + little(20, 2) + little(0, 6)
        record += little(Int(date), 2) + little(crc, 4) + little(size, 4) + little(size, 4)
        record += little(name.count, 2) + little(0, 8)
        return record + little(Int(permissions), 4) + little(offset, 4) + name
    }

    private static func endRecord(_ count: Int, _ size: Int, _ offset: Int) -> [UInt8] {
        var record = little(0x0605_4b50, 4) + little(0, 4) + little(count, 2) + little(count, 2)
        record += little(size, 4) + little(offset, 4) + little(0, 2)
        return record
    }

    private static func little(_ value: Int, _ size: Int) -> [UInt8] {
        (0..<size).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
    }

    private static func number(_ bytes: [UInt8], _ offset: Int, _ size: Int) -> Int {
        (0..<size).reduce(0) { $0 | Int(bytes[offset + $1]) << (8 * $1) }
    }

    private static func has(_ bytes: [UInt8], _ offset: Int, _ expected: [UInt8]) -> Bool {
        bytes.count - offset >= expected.count
            && bytes[offset..<(offset + expected.count)].elementsEqual(expected)
    }

    /// Parts of lower-case letters, digits, `.`, `_`, `-`, none of which begins with a sign.
    private static func isName(_ name: [UInt8]) -> Bool {
        var first = true
        for byte in name {
            let letter = (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte)
                || (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte)
            if !letter && (first || !"._-/".utf8.contains(byte)) { return false }
            first = byte == UInt8(ascii: "/")
        }
        return !first
    }

    private static let crcTable: [UInt32] = (0..<256).map { index in
        (0..<8).reduce(UInt32(index)) { value, _ in
            value & 1 == 1 ? value >> 1 ^ 0xedb8_8320 : value >> 1
        }
    }

    private static func crc32(_ data: Data) -> UInt32 {
        ~data.reduce(~UInt32(0)) { crcTable[Int(UInt8(truncatingIfNeeded: $0) ^ $1)] ^ $0 >> 8 }
    }

    private static func demandListed(_ files: [[String: Any]], _ entries: [String: Data]) throws {
        var listed: Set<String> = [manifestName, signatureName]
        for each in files {
            guard let name = each["name"] as? String, let content = entries[name] else {
                throw BundleError("a file of its manifest is missing")
            }
            let sha256 = SHA256.hash(data: content).map { String(format: "%02x", $0) }.joined()
            guard content.count == each["size_bytes"] as? Int, sha256 == each["sha256"] as? String else {
                throw BundleError("\(name) is not the file that was signed")
            }
            listed.insert(name)
        }
        if let other = entries.keys.first(where: { !listed.contains($0) }) {
            throw BundleError("\(other) is not in its manifest")
        }
    }

    private static func moment(_ date: Date) -> String {
        let formatter = ISO8601DateFormatter()  // in UTC, as 2027-12-31T23:59:59Z
        return formatter.string(from: date)
    }

    private static func isNewEnough(_ version: String, _ minimal: String?) -> Bool {
        guard !version.isEmpty, let minimal = minimal else { return true }
        let digits = CharacterSet.decimalDigits.inverted
        let there = version.components(separatedBy: digits).compactMap { Int($0) }
        let least = minimal.components(separatedBy: digits).compactMap { Int($0) }
        return !there.lexicographicallyPrecedes(least)
    }
}
