import CWpatch
import Foundation

/// The patch codec's core: blocks of a package in, elements of the new file out.
///
/// Reading the package, its header and its hashes is the caller's part; docs/embedding-the-core.md says in which order.
/// The core trusts its caller in the sizes of arrays, so they are checked here.
struct Wpatch {
    enum Failure: Error {
        /// Numbers or arrays do not fit together: the header was not checked as the format demands.
        case badArgument
        /// The block is damaged, or was made against another base.
        case badBlock
    }

    /// One part without predicted values; `contexts`, `base` and scales as in `wpatch_part`.
    struct Part {
        var mode: UInt32
        var dtype: UInt32
        var count: UInt32
        var elementBytes: Int
        var top: UInt32
        var contexts: [UInt8]
        var base: [UInt8] = []
        var scaleDtype: UInt32 = 0
        var group: UInt32 = 0
        var first: UInt32 = 0
        var numScales: UInt32 = 0
        var oldScales: [UInt8] = []
        var newScales: [UInt8] = []
    }

    private let slots: [UInt32]
    private let numTables: Int

    /// - Parameter frequencies: 64 numbers a table, as the package's header holds them.
    init(frequencies: [UInt16]) throws {
        guard wpatch_abi() == WPATCH_ABI, !frequencies.isEmpty, frequencies.count % 64 == 0, frequencies.count <= 64 * 64
        else { throw Failure.badArgument }
        numTables = frequencies.count / 64
        var slots = [UInt32](repeating: 0, count: numTables << 11)
        try Wpatch.check(wpatch_expand_tables(frequencies, numTables, &slots))
        self.slots = slots
    }

    /// Decode a block of one part and return its elements.
    func decode(_ block: [UInt8], _ part: Part) throws -> [UInt8] {
        let size = Int(part.count) * part.elementBytes
        let scaleBytes = part.scaleDtype == 12 ? 4 : 2
        let needed = part.scaleDtype == 0 ? 0 : Int(part.numScales) * scaleBytes
        guard part.count <= 512 << 10, part.mode == 2 || part.base.count == size, part.mode != 5,
            part.oldScales.count >= needed, part.newScales.count >= needed
        else { throw Failure.badArgument }
        var elements = [UInt8](repeating: 0, count: size)
        let status = part.contexts.withUnsafeBufferPointer { contexts in
            part.base.withUnsafeBufferPointer { base in
                part.oldScales.withUnsafeBufferPointer { old in
                    part.newScales.withUnsafeBufferPointer { new in
                        elements.withUnsafeMutableBufferPointer { out -> Int32 in
                            var c = wpatch_part()
                            c.mode = part.mode
                            c.dtype = part.dtype
                            c.count = part.count
                            c.top = part.top
                            c.num_contexts = UInt32(contexts.count)
                            c.scale_dtype = part.scaleDtype
                            c.group = part.group
                            c.first = part.first
                            c.num_scales = part.numScales
                            c.tables = contexts.baseAddress
                            c.base = base.baseAddress
                            c.old_scales = old.baseAddress
                            c.new_scales = new.baseAddress
                            c.elements = out.baseAddress
                            return wpatch_decode(slots, numTables, block, block.count, &c, 1)
                        }
                    }
                }
            }
        }
        try Wpatch.check(status)
        return elements
    }

    private static func check(_ status: Int32) throws {
        if status == Int32(WPATCH_BAD_BLOCK.rawValue) { throw Failure.badBlock }
        if status != Int32(WPATCH_OK.rawValue) { throw Failure.badArgument }
    }
}
