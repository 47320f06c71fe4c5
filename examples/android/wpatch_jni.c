/* The patch codec's core for the Java virtual machine; Wpatch.kt declares these functions.
 *
 * All arrays are direct buffers: nothing is copied. Each is checked to be as large as the numbers demand, because
 * the core trusts its caller in that, and a mistake in Kotlin must not become a write out of bounds.
 */
#include <jni.h>
#include <stdlib.h>

#include "wpatch.h"

enum { NUMBERS = 23, BUFFERS = 8 };
enum { TABLES, BASE, OLD_SCALES, NEW_SCALES, LEFT, RIGHT, FACTOR_TABLES, ELEMENTS };

/* Bytes of an element, 0 for what is no type. */
static size_t element_bytes(uint32_t dtype) {
    switch (dtype) {
    case WPATCH_I8:
    case WPATCH_U8:
    case WPATCH_BOOL:
    case WPATCH_F8_E4M3:
    case WPATCH_F8_E5M2:
        return 1;
    case WPATCH_F16:
    case WPATCH_BF16:
        return 2;
    case WPATCH_F32:
        return 4;
    case WPATCH_Q4_0:
        return 18;
    case WPATCH_Q8_0:
        return 34;
    case WPATCH_Q4_K:
        return 144;
    case WPATCH_Q5_K:
        return 176;
    case WPATCH_Q6_K:
        return 210;
    default:
        return 0;
    }
}

/* Return where a direct buffer lies when it holds at least `size` bytes; NULL otherwise, and for none needed. */
static void *address(JNIEnv *env, jobject buffer, size_t size) {
    if (!buffer || size == 0) {
        return NULL;
    }
    jlong capacity = (*env)->GetDirectBufferCapacity(env, buffer);
    return capacity < 0 || (size_t)capacity < size ? NULL : (*env)->GetDirectBufferAddress(env, buffer);
}

/* Take one array of a part; return 0 when it is needed and not there. */
static int take(JNIEnv *env, jobjectArray buffers, jsize index, size_t size, void **found) {
    jobject buffer = (*env)->GetObjectArrayElement(env, buffers, index);
    *found = address(env, buffer, size);
    if (buffer) {
        (*env)->DeleteLocalRef(env, buffer);
    }
    return size == 0 || *found != NULL;
}

static void take_numbers(const jint *n, wpatch_part *p) {
    uint32_t *const fields[] = {&p->mode, &p->dtype, &p->count, &p->top, &p->num_contexts, &p->scale_dtype,
                                &p->group, &p->first, &p->num_scales, &p->columns, &p->first_column, &p->num_rows,
                                &p->curve.rank, &p->curve.drop, &p->curve.limit, &p->curve.classes};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        *fields[i] = (uint32_t)n[i];
    }
    p->curve.slope = n[16];
    p->curve.bend = n[17];
    p->curve.shift = n[18];
}

/* Fill a part from its numbers and buffers; return 0 when they do not fit together. */
static int fill(JNIEnv *env, const jint *n, jobjectArray buffers, jsize at, wpatch_part *p, wpatch_factors *f) {
    void *found[BUFFERS];
    take_numbers(n, p);
    f->rows = (uint32_t)n[19];
    f->num_contexts = (uint32_t)n[20];
    f->columns = p->columns;
    f->rank = p->curve.rank;
    uint32_t first_row = (uint32_t)n[22], most = WPATCH_MAX_FACTORS;
    int predicted = p->mode == WPATCH_PREDICTED;
    if (p->count > WPATCH_MAX_BLOCK || p->num_scales > WPATCH_MAX_BLOCK || p->num_contexts > WPATCH_MAX_CONTEXTS ||
        element_bytes(p->dtype) == 0) {
        return 0;
    }
    if (predicted && (f->rank > WPATCH_MAX_RANK || f->rows > most || f->columns > most ||
                      f->num_contexts > WPATCH_NUM_TOKENS || first_row > f->rows ||
                      p->num_rows > f->rows - first_row)) {
        return 0;
    }
    size_t elements = p->count * element_bytes(p->dtype);
    size_t scales = p->scale_dtype ? p->num_scales * element_bytes(p->scale_dtype) : 0;
    size_t sizes[BUFFERS] = {[TABLES] = p->num_contexts, [BASE] = p->mode == WPATCH_FULL ? 0 : elements,
                             [OLD_SCALES] = scales, [NEW_SCALES] = scales, [ELEMENTS] = elements};
    if (predicted) {
        sizes[LEFT] = sizeof(int16_t) * WPATCH_FACTORS(f->rows, f->rank);
        sizes[RIGHT] = sizeof(int16_t) * WPATCH_FACTORS(f->columns, f->rank);
        sizes[FACTOR_TABLES] = n[21] ? f->num_contexts : 0;
    }
    for (jsize i = 0; i < BUFFERS; i++) {
        if (!take(env, buffers, at + i, sizes[i], &found[i])) {
            return 0;
        }
    }
    p->tables = found[TABLES];
    p->base = found[BASE];
    p->old_scales = found[OLD_SCALES];
    p->new_scales = found[NEW_SCALES];
    p->elements = found[ELEMENTS];
    f->tables = found[FACTOR_TABLES];
    f->left = found[LEFT];
    f->right = found[RIGHT];
    p->left = f->left ? f->left + (size_t)first_row * WPATCH_EVEN(f->rank) : NULL;
    p->right = f->right;
    p->inline_factors = predicted && n[21] ? f : NULL;
    return 1;
}

JNIEXPORT jint JNICALL Java_com_example_autoglm_Wpatch_abi(JNIEnv *env, jclass type) {
    (void)env;
    (void)type;
    return wpatch_abi();
}

JNIEXPORT jint JNICALL Java_com_example_autoglm_Wpatch_expandTables(JNIEnv *env, jclass type, jobject frequencies,
                                                                    jint tables, jobject slots) {
    (void)type;
    if (tables < 1 || tables > (jint)WPATCH_MAX_TABLES) {
        return WPATCH_BAD_ARGUMENT;
    }
    size_t count = (size_t)tables;
    const uint16_t *from = address(env, frequencies, count * WPATCH_NUM_TOKENS * sizeof(uint16_t));
    uint32_t *to = address(env, slots, (count << WPATCH_TABLE_BITS) * sizeof(uint32_t));
    return from && to ? wpatch_expand_tables(from, count, to) : WPATCH_BAD_ARGUMENT;
}

JNIEXPORT jint JNICALL Java_com_example_autoglm_Wpatch_decodeFactors(JNIEnv *env, jclass type, jobject slots,
                                                                     jint tables, jobject block, jint length,
                                                                     jint rows, jint columns, jint rank,
                                                                     jobject contexts, jint num_contexts, jobject left,
                                                                     jobject right) {
    (void)type;
    if (tables < 1 || tables > (jint)WPATCH_MAX_TABLES || length < 1 || rows < 1 || columns < 1 || rank < 1 ||
        rank > (jint)WPATCH_MAX_RANK || rows > (jint)WPATCH_MAX_FACTORS || columns > (jint)WPATCH_MAX_FACTORS ||
        num_contexts < 1 || num_contexts > (jint)WPATCH_NUM_TOKENS) {
        return WPATCH_BAD_ARGUMENT;
    }
    wpatch_factors f = {(uint32_t)rows, (uint32_t)columns, (uint32_t)rank, (uint32_t)num_contexts, NULL, NULL, NULL};
    const uint32_t *table = address(env, slots, ((size_t)tables << WPATCH_TABLE_BITS) * sizeof(uint32_t));
    const uint8_t *from = address(env, block, (size_t)length);
    f.tables = address(env, contexts, f.num_contexts);
    f.left = address(env, left, sizeof(int16_t) * WPATCH_FACTORS(f.rows, f.rank));
    f.right = address(env, right, sizeof(int16_t) * WPATCH_FACTORS(f.columns, f.rank));
    if (!table || !from || !f.tables || !f.left || !f.right) {
        return WPATCH_BAD_ARGUMENT;
    }
    return wpatch_decode_factors(table, (size_t)tables, from, (size_t)length, &f);
}

static int decode_parts(JNIEnv *env, const uint32_t *slots, size_t tables, const uint8_t *block, size_t length,
                        const jint *numbers, jobjectArray buffers, size_t num_parts) {
    wpatch_part *parts = calloc(num_parts, sizeof *parts);
    wpatch_factors *factors = calloc(num_parts, sizeof *factors);
    int status = parts && factors ? WPATCH_OK : WPATCH_BAD_ARGUMENT;
    for (size_t i = 0; i < num_parts && status == WPATCH_OK; i++) {
        if (!fill(env, numbers + i * NUMBERS, buffers, (jsize)(i * BUFFERS), &parts[i], &factors[i])) {
            status = WPATCH_BAD_ARGUMENT;
        }
    }
    if (status == WPATCH_OK) {
        status = wpatch_decode(slots, tables, block, length, parts, num_parts);
    }
    free(parts);
    free(factors);
    return status;
}

JNIEXPORT jint JNICALL Java_com_example_autoglm_Wpatch_decode(JNIEnv *env, jclass type, jobject slots, jint tables,
                                                              jobject block, jint length, jintArray numbers,
                                                              jobjectArray buffers) {
    (void)type;
    jsize num_numbers = (*env)->GetArrayLength(env, numbers), num_parts = num_numbers / NUMBERS;
    if (tables < 1 || tables > (jint)WPATCH_MAX_TABLES || length < 1 || num_parts < 1 ||
        num_numbers % NUMBERS || (*env)->GetArrayLength(env, buffers) != num_parts * BUFFERS) {
        return WPATCH_BAD_ARGUMENT;
    }
    const uint32_t *table = address(env, slots, ((size_t)tables << WPATCH_TABLE_BITS) * sizeof(uint32_t));
    const uint8_t *from = address(env, block, (size_t)length);
    jint *values = (*env)->GetIntArrayElements(env, numbers, NULL);
    int status = WPATCH_BAD_ARGUMENT;
    if (table && from && values) {
        status = decode_parts(env, table, (size_t)tables, from, (size_t)length, values, buffers, (size_t)num_parts);
    }
    if (values) {
        (*env)->ReleaseIntArrayElements(env, numbers, values, JNI_ABORT);
    }
    return status;
}
