import com.example.autoglm.Wpatch;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;

/** apply_block on the Java virtual machine: reads what lay_out.py wrote, decodes through the JNI glue. */
public final class ApplyBlock {
    private static ByteBuffer file;

    private static long number() {
        return file.getLong();
    }

    private static ByteBuffer room(long size) {
        return ByteBuffer.allocateDirect((int) size).order(ByteOrder.LITTLE_ENDIAN);
    }

    private static ByteBuffer bytes(long size) {
        byte[] content = new byte[(int) size];
        file.get(content);
        return room(size).put(content);
    }

    private static ByteBuffer at(RandomAccessFile from, long offset, long size) throws Exception {
        byte[] content = new byte[(int) size];
        from.seek(offset);
        from.readFully(content);
        return room(size).put(content);
    }

    private static void demand(int status) {
        if (status != 0) {
            System.err.println("status " + status);
            System.exit(1);
        }
    }

    public static void main(String[] given) throws Exception {
        System.load(given[0]);
        if (Wpatch.abi() != 2) {
            System.exit(2);
        }
        RandomAccessFile base = new RandomAccessFile(given[1], "r");
        RandomAccessFile made = new RandomAccessFile(given[2], "rw");
        for (int i = 3; i < given.length; i++) {
            file = ByteBuffer.wrap(Files.readAllBytes(Path.of(given[i]))).order(ByteOrder.LITTLE_ENDIAN);
            apply(base, made);
        }
    }

    private static void apply(RandomAccessFile base, RandomAccessFile made) throws Exception {
        int numTables = (int) number(), numParts = (int) number(), length = (int) number();
        ByteBuffer frequencies = room(numTables * 128L), slots = room(numTables * 8192L);
        for (int i = 0; i < numTables * 64; i++) {
            frequencies.putShort((short) number());
        }
        demand(Wpatch.expandTables(frequencies, numTables, slots));
        int[] numbers = new int[numParts * 23];
        ByteBuffer[] buffers = new ByteBuffer[numParts * 8];
        long[] offsets = new long[numParts];
        for (int part = 0; part < numParts; part++) {
            int n = part * 23, b = part * 8;
            for (int i = 0; i < 19; i++) {
                numbers[n + i] = (int) number();
            }
            int rank = numbers[n + 12], even = (rank + 1) & ~1, columns = numbers[n + 9];
            long scales = numbers[n + 8] * (numbers[n + 5] == 12 ? 4L : 2L);
            long from = number(), old = number(), fresh = number();
            offsets[part] = number();
            long size = number();
            buffers[b] = bytes(numbers[n + 4]);
            int rows = (int) number(), contexts = (int) number();
            ByteBuffer tables = bytes(contexts);
            int firstRow = (int) number(), factorLength = (int) number();
            buffers[b + 1] = numbers[n] == 2 ? null : at(base, from, size);
            buffers[b + 2] = numbers[n + 5] == 0 ? null : at(base, old, scales);
            buffers[b + 3] = numbers[n + 5] == 0 ? null : at(made, fresh, scales);
            buffers[b + 4] = room(2L * rows * even);
            buffers[b + 5] = room(2L * columns * even);
            buffers[b + 6] = tables;
            buffers[b + 7] = room(size);
            numbers[n + 19] = rows;
            numbers[n + 20] = contexts;
            numbers[n + 21] = rank > 0 && factorLength == 0 ? 1 : 0;
            numbers[n + 22] = firstRow;
            if (factorLength > 0) {
                ByteBuffer block = bytes(factorLength);
                demand(Wpatch.decodeFactors(slots, numTables, block, factorLength, rows, columns, rank, tables,
                    contexts, buffers[b + 4], buffers[b + 5]));
            }
        }
        ByteBuffer block = bytes(length);
        ByteBuffer[] short_ = buffers.clone();
        short_[7] = room(0);
        if (Wpatch.decode(slots, numTables, block, length, numbers, short_) != 1) {
            throw new AssertionError("a buffer that is too small was taken");
        }
        demand(Wpatch.decode(slots, numTables, block, length, numbers, buffers));
        for (int part = 0; part < numParts; part++) {
            byte[] content = new byte[buffers[part * 8 + 7].capacity()];
            buffers[part * 8 + 7].get(0, content);
            made.seek(offsets[part]);
            made.write(content);
        }
    }
}
