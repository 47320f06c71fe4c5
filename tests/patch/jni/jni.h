/* As much of jni.h as examples/android needs, to check the glue where no JDK is installed. Not for running. */
#ifndef JNI_H
#define JNI_H
#include <stdint.h>
#define JNIEXPORT __attribute__((visibility("default")))
#define JNICALL
#define JNI_ABORT 2
typedef int32_t jint;
typedef int64_t jlong;
typedef jint jsize;
typedef struct object *jobject;
typedef jobject jclass, jarray, jintArray, jobjectArray;
typedef unsigned char jboolean;
typedef const struct functions *JNIEnv;
struct functions {
    jlong (*GetDirectBufferCapacity)(JNIEnv *, jobject);
    void *(*GetDirectBufferAddress)(JNIEnv *, jobject);
    jobject (*GetObjectArrayElement)(JNIEnv *, jobjectArray, jsize);
    void (*DeleteLocalRef)(JNIEnv *, jobject);
    jsize (*GetArrayLength)(JNIEnv *, jarray);
    jint *(*GetIntArrayElements)(JNIEnv *, jintArray, jboolean *);
    void (*ReleaseIntArrayElements)(JNIEnv *, jintArray, jint *, jint);
};
#endif
