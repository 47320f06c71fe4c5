package com.example.autoglm;

import java.nio.ByteBuffer;

/** The native functions of Wpatch.kt, for a machine without a Kotlin compiler. */
public final class Wpatch {
    public static native int abi();

    public static native int expandTables(ByteBuffer frequencies, int tables, ByteBuffer slots);

    public static native int decodeFactors(
        ByteBuffer slots, int tables, ByteBuffer block, int length, int rows, int columns, int rank,
        ByteBuffer contexts, int numContexts, ByteBuffer left, ByteBuffer right);

    public static native int decode(
        ByteBuffer slots, int tables, ByteBuffer block, int length, int[] numbers, ByteBuffer[] buffers);
}
