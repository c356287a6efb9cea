// Load a bundle of models that edgeloop made: verify it, and pick the artifact for a device.
//
// NOT COMPILED, NOT RUN by edgeloop's tests, for want of a Kotlin compiler and an Android there: it
// follows edgeloop_bundle.py and edgeloop_bundle.cpp, which are.  Before you rely on it, run it on a
// bundle of yours, on the same with one byte changed, and on the golden vectors.
//
// Android 8 (API 26) or newer.  The platform verifies Ed25519 from Android 13 (API 33) on; for older
// ones hand over a verifier, such as Tink's Ed25519Verify.

package edgeloop.bundle

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.Signature
import java.security.spec.X509EncodedKeySpec
import java.time.Instant
import java.time.temporal.ChronoUnit
import java.util.Base64
import java.util.zip.CRC32
import org.json.JSONException
import org.json.JSONObject

/** A bundle is not what it should be, or has nothing for a device: the reason in one line. */
class BundleException(message: String) : Exception(message)

/** Whether a signature of 64 bytes is this key's, of 32 bytes, of a message. */
typealias Verifier = (key: ByteArray, message: ByteArray, signature: ByteArray) -> Boolean

/**
 * What to run on a device.
 *
 * @property artifact its record in the manifest: inputs, outputs, preprocessing, labels...
 * @property threads that it was measured with, or null where it was not measured on such a device
 * @property delegate that was asked for, or null for the runtime's own choice
 * @property evidence what was measured on such a device, or null
 * @property content the bytes that were verified, in a direct buffer as runtimes want it
 */
class Choice(
    val artifact: JSONObject,
    val threads: Int?,
    val delegate: String?,
    val evidence: JSONObject?,
    val content: ByteBuffer,
)

class EdgeloopBundle private constructor(
    val manifest: JSONObject,
    private val content: ByteArray,
    private val entries: Map<String, Entry>,
) {
    internal class Entry(val begin: Int, val size: Int)

    /** The bytes of a file that the manifest names. */
    fun file(name: String): ByteBuffer {
        val entry = entries[name] ?: throw BundleException("there is no $name in it")
        val buffer = ByteBuffer.allocateDirect(entry.size).order(ByteOrder.LITTLE_ENDIAN)
        buffer.put(content, entry.begin, entry.size)
        buffer.rewind()
        return buffer
    }

    /**
     * The best artifact for a device, among the runtimes that the app has.
     *
     * @param device names of it, the one that fits best first: its id, its model
     *     (android.os.Build.MODEL), its profile
     * @param runtimes the app's (onnxruntime, litert, executorch), with their versions; null for one
     *     that is unknown, which is taken to be new enough
     */
    fun choose(device: List<String>, runtimes: Map<String, String?>): Choice {
        val artifacts = manifest.getJSONArray("artifacts").objects().associateBy { it.getString("sha256") }
        for (choice in choices(device)) {
            val artifact = artifacts.getValue(choice.getString("artifact"))
            val runtime = artifact.getJSONObject("runtime")
            val name = runtime.getString("name")
            if (name !in runtimes) continue
            if (!isNewEnough(runtimes[name], runtime.textOrNull("minimal_version"))) continue
            return Choice(
                artifact,
                if (choice.isNull("threads")) null else choice.getInt("threads"),
                choice.textOrNull("delegate"),
                if (choice.isNull("evidence")) null else choice.getJSONObject("evidence"),
                file(artifact.getString("file")),
            )
        }
        throw BundleException("it has nothing for $device with ${runtimes.keys}")
    }

    /** What fits a device, best first; what fits any device, last. */
    private fun choices(device: List<String>): List<JSONObject> {
        val groups = manifest.getJSONArray("devices").objects()
        return (device + ANY_DEVICE).flatMap { name ->
            groups.filter { group ->
                val called = group.getJSONArray("names")
                (0 until called.length()).any { called.getString(it).equals(name, ignoreCase = true) }
            }
        }.flatMap { it.getJSONArray("choices").objects() }
    }

    companion object {
        private const val FORMAT = "edgeloop-bundle-1"
        private const val MANIFEST = "manifest.json"
        private const val SIGNATURE = "manifest.sig"
        private const val ANY_DEVICE = "*"
        private const val ALIGNMENT = 64
        private const val MAX_ENTRIES = 1000
        private const val MAX_MANIFEST_BYTES = 4 shl 20
        private const val LOCAL = 30
        private const val CENTRAL = 46
        private const val END = 22
        private const val DATE = (1 shl 5) or 1
        private const val PERMISSIONS = 0x81a4 shl 16 // 0100644: a plain file
        private const val PADDING_ID = 0xd935
        private val NAME = Regex("[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")

        /**
         * Read and verify a file.
         *
         * @param publicKeys that are trusted, each as the base64 text of its 32 bytes
         * @param now the time that an expiry is compared with
         * @throws BundleException if it is not whole, not signed by one of the keys, or expired
         */
        fun open(
            file: File,
            publicKeys: List<String>,
            now: Instant = Instant.now(),
            verifier: Verifier = { key, message, signature -> isSignedOnThisPlatform(key, message, signature) },
        ): EdgeloopBundle {
            if (file.length() > Int.MAX_VALUE - 8) throw BundleException("its size is no bundle's")
            val content = file.readBytes()
            val entries = readEntries(content)
            fun bytes(name: String): ByteArray {
                val entry = entries[name] ?: throw BundleException("there is no $name in it")
                return content.copyOfRange(entry.begin, entry.begin + entry.size)
            }
            val text = bytes(MANIFEST)
            val signature = bytes(SIGNATURE)
            if (text.size > MAX_MANIFEST_BYTES) throw BundleException("its manifest is too long")
            val signed = publicKeys.map { keyBytes(it) }.any { signature.size == 64 && verifier(it, text, signature) }
            if (!signed) throw BundleException("its manifest is not signed by a key that is trusted here")
            try {
                val manifest = JSONObject(String(text, Charsets.UTF_8))
                if (manifest.getString("format") != FORMAT) throw BundleException("this loader reads $FORMAT")
                val notAfter = manifest.getJSONObject("signer").textOrNull("not_after")
                if (notAfter != null && now.truncatedTo(ChronoUnit.SECONDS).isAfter(Instant.parse(notAfter))) {
                    throw BundleException("the key it is signed with expired at $notAfter")
                }
                demandListed(manifest, entries, content)
                return EdgeloopBundle(manifest, content, entries)
            } catch (error: JSONException) {
                throw BundleException("its manifest is none: ${error.message}")
            }
        }

        private fun readEntries(content: ByteArray): Map<String, Entry> {
            if (content.size < END) throw BundleException("its size is no bundle's")
            val bytes = ByteBuffer.wrap(content).order(ByteOrder.LITTLE_ENDIAN)
            val end = content.size - END
            val count = bytes.getShort(end + 10).toInt() and 0xffff
            val size = bytes.getInt(end + 12)
            val start = bytes.getInt(end + 16)
            val whole = start >= 0 && size >= 0 && start.toLong() + size == end.toLong()
            if (!whole || !content.hasAt(end, endRecord(count, size, start))) {
                throw BundleException("its end is not that of a bundle: truncated, or not one")
            }
            if (count > MAX_ENTRIES) throw BundleException("it has too many entries")
            val entries = LinkedHashMap<String, Entry>()
            var at = start
            var offset = 0
            var last = ""
            repeat(count) {
                if (end - at < CENTRAL) throw BundleException("its directory ends too early")
                val nameSize = bytes.getShort(at + 28).toInt() and 0xffff
                if (end - at - CENTRAL < nameSize) throw BundleException("its directory ends too early")
                val name = String(content, at + CENTRAL, nameSize, Charsets.ISO_8859_1)
                val crc = bytes.getInt(at + 16)
                val length = bytes.getInt(at + 24)
                if (!NAME.matches(name)) throw BundleException("an entry's name is none of a bundle")
                if (name <= last) throw BundleException("$name stands twice or out of order")
                val header = localHeader(name, crc, length, offset)
                val begin = offset.toLong() + header.size
                if (!content.hasAt(at, centralHeader(name, crc, length, offset)) ||
                    length < 0 || begin + length > start || !content.hasAt(offset, header)
                ) {
                    throw BundleException("the headers of $name are not a bundle's")
                }
                val sum = CRC32().apply { update(content, begin.toInt(), length) }
                if (sum.value.toInt() != crc) throw BundleException("the checksum of $name does not match")
                entries[name] = Entry(begin.toInt(), length)
                at += CENTRAL + nameSize
                offset = begin.toInt() + length
                last = name
            }
            if (at != end || offset != start) throw BundleException("there are bytes between its parts")
            return entries
        }

        private fun localHeader(name: String, crc: Int, size: Int, offset: Int): ByteArray {
            var room = Math.floorMod(-(offset.toLong() + LOCAL + name.length), ALIGNMENT.toLong()).toInt()
            if (room in 1..5) room += ALIGNMENT
            val record = record(LOCAL + name.length + room)
            record.putInt(0x04034b50).u16(20).u16(0).u16(0).u16(0).u16(DATE)
            record.putInt(crc).putInt(size).putInt(size).u16(name.length).u16(room)
            record.put(name.toByteArray(Charsets.US_ASCII))
            if (room > 0) record.u16(PADDING_ID).u16(room - 4).u16(ALIGNMENT)
            return record.array()
        }

        private fun centralHeader(name: String, crc: Int, size: Int, offset: Int): ByteArray {
            val record = record(CENTRAL + name.length)
            record.putInt(0x02014b50).u16((3 shl 8) or 20).u16(20).u16(0).u16(0).u16(0).u16(DATE)
            record.putInt(crc).putInt(size).putInt(size).u16(name.length)
            record.u16(0).u16(0).u16(0).u16(0).putInt(PERMISSIONS).putInt(offset)
            record.put(name.toByteArray(Charsets.US_ASCII))
            return record.array()
        }

        private fun endRecord(count: Int, size: Int, offset: Int): ByteArray {
            val record = record(END)
            record.putInt(0x06054b50).u16(0).u16(0).u16(count).u16(count)
            record.putInt(size).putInt(offset).u16(0)
            return record.array()
        }

        private fun record(size: Int) = ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN)

        private fun ByteBuffer.u16(value: Int): ByteBuffer = putShort(value.toShort())

        private fun ByteArray.hasAt(offset: Int, expected: ByteArray): Boolean =
            offset >= 0 && size - offset >= expected.size &&
                expected.indices.all { this[offset + it] == expected[it] }

        private fun demandListed(manifest: JSONObject, entries: Map<String, Entry>, content: ByteArray) {
            val listed = mutableSetOf(MANIFEST, SIGNATURE)
            for (each in manifest.getJSONArray("files").objects()) {
                val name = each.getString("name")
                val entry = entries[name] ?: throw BundleException("$name of its manifest is missing")
                if (entry.size.toLong() != each.getLong("size_bytes")) throw BundleException("$name has another size")
                val digest = MessageDigest.getInstance("SHA-256")
                digest.update(content, entry.begin, entry.size)
                val sha256 = digest.digest().joinToString("") { "%02x".format(it) }
                if (sha256 != each.getString("sha256")) throw BundleException("$name is not the file that was signed")
                listed += name
            }
            entries.keys.firstOrNull { it !in listed }?.let { throw BundleException("$it is not in its manifest") }
        }

        private fun keyBytes(text: String): ByteArray {
            val key = try {
                Base64.getDecoder().decode(text)
            } catch (error: IllegalArgumentException) {
                ByteArray(0)
            }
            if (key.size != 32) throw BundleException("'$text' is no public key: base64 of 32 bytes")
            return key
        }

        /** Of Android 13 and newer, and Java 15 and newer. */
        fun isSignedOnThisPlatform(key: ByteArray, message: ByteArray, signature: ByteArray): Boolean {
            // What stands before an Ed25519 key in X.509's encoding.  Source: RFC 8410.
            val head = byteArrayOf(0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00)
            return try {
                val public = KeyFactory.getInstance("Ed25519").generatePublic(X509EncodedKeySpec(head + key))
                Signature.getInstance("Ed25519").run {
                    initVerify(public)
                    update(message)
                    verify(signature)
                }
            } catch (error: GeneralSecurityException) {
                false
            }
        }

        private fun isNewEnough(version: String?, minimal: String?): Boolean {
            if (version == null || minimal == null) return true
            fun numbers(text: String) = Regex("[0-9]+").findAll(text).map { it.value.toLong() }.toList()
            val (there, least) = numbers(version) to numbers(minimal)
            for (place in 0 until minOf(there.size, least.size)) {
                if (there[place] != least[place]) return there[place] > least[place]
            }
            return there.size >= least.size
        }

        private fun org.json.JSONArray.objects() = (0 until length()).map { getJSONObject(it) }

        private fun JSONObject.textOrNull(name: String) = if (isNull(name)) null else getString(name)
    }
}
