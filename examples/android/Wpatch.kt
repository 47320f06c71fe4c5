package com.example.autoglm

import java.nio.ByteBuffer

/**
 * The patch codec's core: blocks of a package in, elements of the new file out.
 *
 * Reading the package, its header and its hashes is the caller's part; docs/embedding-the-core.md says in which
 * order. All buffers are direct and little-endian, [ByteBuffer.allocateDirect]; the core writes into them.
 * A status is 0 when all went well, 1 for numbers or buffers that do not fit, 2 for a damaged block.
 */
object Wpatch {
    const val OK = 0
    const val TABLE_BYTES = 4 shl 11

    /** What the core wants to know of one part; the fields of `wpatch_part`, in the order of the array. */
    class Part(
        val mode: Int, val dtype: Int, val count: Int, val top: Int,
        val contexts: ByteBuffer, val elements: ByteBuffer, val base: ByteBuffer? = null,
        val scales: Scales? = null, val prediction: Prediction? = null,
    )

    class Scales(
        val dtype: Int, val group: Int, val first: Int, val count: Int,
        val old: ByteBuffer, val new: ByteBuffer,
    )

    /** [left] and [right] hold the factors of the whole matrix; [inline] is the tables of factors in the block. */
    class Prediction(
        val columns: Int, val firstColumn: Int, val rows: Int, val firstRow: Int, val matrixRows: Int,
        val rank: Int, val drop: Int, val limit: Int, val classes: Int,
        val slope: Int, val bend: Int, val shift: Int,
        val left: ByteBuffer, val right: ByteBuffer, val inline: ByteBuffer? = null,
    )

    init {
        System.loadLibrary("wpatch_jni")
        check(abi() == 2) { "the patch codec's core is of another version" }
    }

    /** Decode one block into the elements of its parts. */
    fun decode(slots: ByteBuffer, tables: Int, block: ByteBuffer, parts: List<Part>): Int {
        val numbers = parts.flatMap(::numbers).toIntArray()
        val buffers = parts.flatMap(::buffers).toTypedArray()
        return decode(slots, tables, block, block.capacity(), numbers, buffers)
    }

    private fun numbers(part: Part): List<Int> {
        val s = part.scales
        val p = part.prediction
        return listOf(
            part.mode, part.dtype, part.count, part.top, part.contexts.capacity(),
            s?.dtype ?: 0, s?.group ?: 0, s?.first ?: 0, s?.count ?: 0,
            p?.columns ?: 0, p?.firstColumn ?: 0, p?.rows ?: 0,
            p?.rank ?: 0, p?.drop ?: 0, p?.limit ?: 0, p?.classes ?: 0,
            p?.slope ?: 0, p?.bend ?: 0, p?.shift ?: 0,
            p?.matrixRows ?: 0, p?.inline?.capacity() ?: 0, if (p?.inline != null) 1 else 0, p?.firstRow ?: 0,
        )
    }

    private fun buffers(part: Part): List<ByteBuffer?> = listOf(
        part.contexts, part.base, part.scales?.old, part.scales?.new,
        part.prediction?.left, part.prediction?.right, part.prediction?.inline, part.elements,
    )

    @JvmStatic external fun abi(): Int

    /** [slots] has [tables] times [TABLE_BYTES] bytes; [frequencies] 64 numbers of 16 bits a table. */
    @JvmStatic external fun expandTables(frequencies: ByteBuffer, tables: Int, slots: ByteBuffer): Int

    @JvmStatic external fun decodeFactors(
        slots: ByteBuffer, tables: Int, block: ByteBuffer, length: Int, rows: Int, columns: Int, rank: Int,
        contexts: ByteBuffer, numContexts: Int, left: ByteBuffer, right: ByteBuffer,
    ): Int

    @JvmStatic private external fun decode(
        slots: ByteBuffer, tables: Int, block: ByteBuffer, length: Int, numbers: IntArray,
        buffers: Array<ByteBuffer?>,
    ): Int
}
